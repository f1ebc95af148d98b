"""Deciding on the sessions of one target takes a part of its time."""

from __future__ import annotations

import pytest
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.runs.deciding import decide_in_time

from tests.builders import SlowClock, a_policy, a_session, a_snapshot

SNAPSHOT = a_snapshot(*(a_session(pid=pid, idle_seconds=3600.0) for pid in range(1, 101)))


def test_deciding_in_time_decides_on_every_session() -> None:
    decided = decide_in_time(SNAPSHOT, a_policy(), Deadline(1000, SlowClock()))
    assert len(decided.decisions) == 100


def test_deciding_takes_half_of_the_time_left_at_most() -> None:
    deadline = Deadline(150, SlowClock())
    with pytest.raises(TargetError, match="deciding on 100 sessions took longer") as error:
        decide_in_time(SNAPSHOT, a_policy(), deadline)
    assert error.value.code == "deadline"
    assert "role" in error.value.hint
    assert deadline.remaining() > 60
