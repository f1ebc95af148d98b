from __future__ import annotations

import pytest
from session_reaper import deadline as module
from session_reaper.deadline import Deadline
from session_reaper.errors import DeadlineError


class Clock:
    """Stands in for time.monotonic, and goes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def test_counts_down_to_nothing_and_stays_there(clock: Clock) -> None:
    deadline = Deadline(10)
    assert deadline.remaining() == 10
    clock.now += 4
    assert deadline.remaining() == 6
    clock.now += 100
    assert deadline.remaining() == 0


def test_a_step_gets_what_is_left_but_never_more_than_its_own_limit(clock: Clock) -> None:
    deadline = Deadline(10)
    assert deadline.remaining_or_raise(3) == 3
    clock.now += 8
    assert deadline.remaining_or_raise(3) == 2


def test_a_step_that_starts_too_late_does_not_start(clock: Clock) -> None:
    deadline = Deadline(10)
    clock.now += 10
    # A socket timeout of 0 would mean "do not block", of None "for ever".
    with pytest.raises(DeadlineError):
        deadline.remaining_or_raise(3)


@pytest.mark.parametrize(("asked", "given"), [(3, 3), (10, 10), (99, 10)])
def test_a_part_never_ends_after_the_whole(clock: Clock, asked: float, given: float) -> None:
    whole = Deadline(10)
    part = whole.capped_at(asked)
    assert part.remaining() == given
    clock.now += 11
    assert part.remaining() == 0


def test_a_deadline_in_the_past_is_over(clock: Clock) -> None:
    assert Deadline(-1).remaining() == 0
    assert Deadline(-1).capped_at(5).remaining() == 0
    assert clock.now == 1000


def test_a_little_more_is_more_than_what_is_left(clock: Clock) -> None:
    deadline = Deadline(1)
    clock.now += 5
    assert deadline.extended_by(2).remaining() == 2
    assert Deadline(1).extended_by(2).remaining() == 3
