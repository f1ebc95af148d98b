"""A run that is stopped signals no further session, and reports what it did not do."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import pytest
from session_reaper.deadline import Deadline
from session_reaper.observability import OutcomeLog
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import read_policy
from session_reaper.report.model import Outcome
from session_reaper.runs.operations import reap
from session_reaper.runs.parallel import Progress
from session_reaper.runs.quota import allow_all
from session_reaper.runs.target_report import create_report
from session_reaper.runs.target_session import TargetJob, TargetSession
from session_reaper_cli.connections.login import connect
from session_reaper_cli.connections.target import find_target

from tests.integration.cli import uri
from tests.integration.stage import LEAK, PATIENCE, policy, rule

if TYPE_CHECKING:
    from session_reaper.postgres.server import Server

    from tests.integration.stage import Stage


def fail_if_called(*_: object) -> Server:
    raise AssertionError("no second connection is needed")


@pytest.mark.parametrize("pauses", [{}, {"confirm_after": "50ms"}], ids=["at once", "confirmed"])
def test_a_stopped_run_signals_no_session(stage: Stage, pauses: dict[str, str]) -> None:
    leak = stage.session(LEAK)
    rules = read_policy(policy(rule(idle_for="1ms") | pauses))
    target = find_target(uri(stage), {}, Path("/nonexistent")).target
    stopped = Event()
    stopped.set()
    with closing(connect(target)) as server:
        job = TargetJob(
            target=target,
            policy=rules,
            mode=Mode.ENFORCE,
            quota=allow_all,
            progress=Progress(create_report(target)),
            outcomes=OutcomeLog(),
            deadline=Deadline(3 * PATIENCE),
        )
        session = TargetSession(
            job=job,
            server=server,
            connect=fail_if_called,
            connect_by_fallback=fail_if_called,
            report=create_report(target),
            admit=lambda _: target,
            stop=stopped,
        )
        report = reap(session)
    assert [result.outcome for result in report.results] == [Outcome.SPARED]
    assert report.error is not None
    assert leak.is_there
