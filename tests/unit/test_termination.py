"""A run that is cut off while it terminates or observes reports what it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from session_reaper.deadline import Deadline
from session_reaper.decision.model import Verdict
from session_reaper.errors import ConnectionLostError, DeadlineError
from session_reaper.observability import OutcomeLog
from session_reaper.policy.enums import Action, Mode
from session_reaper.postgres.signals import Signal
from session_reaper.report.model import Outcome
from session_reaper.runs.parallel import Progress
from session_reaper.runs.quota import allow_all
from session_reaper.runs.target_session import TargetJob, TargetSession
from session_reaper.runs.termination import Termination
from session_reaper.sessions.snapshot import ServerIdentity, Verification

from tests.builders import (
    SlowClock,
    a_decision,
    a_policy,
    a_result,
    a_rule,
    a_session,
    a_snapshot,
    a_target_report,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from session_reaper.decision.model import Decision
    from session_reaper.report.model import TargetReport
    from session_reaper.sessions.session import Identity, WaitGuard
    from session_reaper.sessions.snapshot import Snapshot, SnapshotScope

PIDS = range(1, 7)
LOST = ConnectionLostError("lost", "the connection was lost", "Wait for the next run.")


class LostServer:
    """A server that takes so many signals, answers fewer of them, and is gone."""

    role = "session_reaper"

    def __init__(self, *, taken: int, answered: int) -> None:
        self._taken = taken
        self._answered = answered

    def signal(
        self,
        identities: Iterator[Identity],
        _action: Action,
        _deadline: Deadline,
        _guards: Mapping[int, WaitGuard],
    ) -> Iterator[Signal]:
        for _ in range(self._taken):
            next(identities)
        for _ in range(self._answered):
            yield Signal.SENT
        raise LOST

    def close(self) -> None:
        """Close nothing."""


def a_target_session(
    progress: Progress[TargetReport],
    outcomes: OutcomeLog,
    *,
    server: object = None,
    connect: Callable[[], Any] | None = None,
    **job: object,
) -> TargetSession:
    values: dict[str, Any] = {
        "target": None,
        "policy": a_policy(),
        "mode": Mode.ENFORCE,
        "quota": allow_all,
        "progress": progress,
        "outcomes": outcomes,
        "deadline": Deadline(60),
    }
    return TargetSession(
        job=TargetJob(**values | job),
        server=cast("Any", server),
        connect=cast("Any", connect),
        connect_by_fallback=cast("Any", None),
        report=progress.result.latest,
        admit=cast("Any", None),
    )


def decisions() -> list[Decision]:
    return [a_decision(a_session(pid=pid)) for pid in PIDS]


def a_report_of_decisions() -> TargetReport:
    return a_target_report(*(a_result(Outcome.SPARED, pid=pid) for pid in PIDS))


def terminate(session: TargetSession, condemned: Sequence[Decision]) -> TargetReport:
    return Termination(session, session.report, a_snapshot()).run(condemned)


def outcomes_of(report: TargetReport) -> dict[int, Outcome]:
    return {result.decision.pid: result.outcome for result in report.results}


def test_a_run_that_ends_while_it_logs_what_it_observed_reports_all_of_it() -> None:
    progress, outcomes = Progress(a_report_of_decisions()), OutcomeLog()
    outcomes.complete(progress.result.latest, Deadline(60))  # as a run does at its end
    with pytest.raises(DeadlineError):
        terminate(a_target_session(progress, outcomes, mode=Mode.OBSERVE), decisions())
    expected = dict.fromkeys(PIDS, Outcome.WOULD_TERMINATE)
    assert outcomes_of(progress.result.latest) == expected


def test_a_run_that_ends_while_it_logs_reports_for_which_sessions_it_had_no_time() -> None:
    progress, outcomes = Progress(a_report_of_decisions()), OutcomeLog()
    outcomes.complete(progress.result.latest, Deadline(60))  # as a run does at its end
    policy = a_policy({**a_rule(), "confirm_after": "5m"})
    condemned = [decision._replace(rule=policy.rules[0]) for decision in decisions()]
    with pytest.raises(DeadlineError):
        terminate(a_target_session(progress, outcomes, policy=policy), condemned)
    reasons = [result.decision.reason for result in progress.result.latest.results]
    assert all(each.endswith("; the run has no time for confirm_after: 5m") for each in reasons)


def test_a_run_that_ends_while_it_signals_reports_what_it_observed() -> None:
    observed = a_decision(a_session(pid=9, signalable=False), verdict=Verdict.OBSERVE)
    report = a_target_report(*(a_result(Outcome.SPARED, pid=pid) for pid in (1, 9)))
    progress = Progress(report)
    reported: list[TargetReport] = []

    def connect() -> None:
        reported.append(progress.result.latest)
        raise LOST

    server = LostServer(taken=1, answered=1)
    session = a_target_session(progress, OutcomeLog(), server=server, connect=connect)
    final = terminate(session, [a_decision(a_session(pid=1)), observed])
    expected = {1: Outcome.LINGERING, 9: Outcome.WOULD_TERMINATE}
    assert [outcomes_of(each) for each in (*reported, final)] == [expected, expected]


def test_while_it_reconnects_a_run_reports_unsent_sessions_as_spared() -> None:
    progress = Progress(a_report_of_decisions())
    reported: list[TargetReport] = []

    def connect() -> None:
        reported.append(progress.result.latest)
        raise LOST

    server = LostServer(taken=3, answered=1)
    session = a_target_session(progress, OutcomeLog(), server=server, connect=connect)
    final = terminate(session, decisions())
    expected = {pid: Outcome.LINGERING if pid <= 3 else Outcome.SPARED for pid in PIDS}
    assert [outcomes_of(report) for report in (*reported, final)] == [expected, expected]
    assert reported[0].error is not None
    assert reported[0].error.message == LOST.message


def test_slots_are_unknown_after_signals_that_could_not_be_verified() -> None:
    def connect() -> None:
        raise LOST

    server = LostServer(taken=3, answered=1)
    progress = Progress(a_report_of_decisions())
    session = a_target_session(progress, OutcomeLog(), server=server, connect=connect)
    assert terminate(session, decisions()).used_after is None


class LateServer:
    """A server that answers a verification when the run's time is over: every session remains."""

    role = "session_reaper"

    def __init__(self) -> None:
        self.now = 0.0
        self.actions: list[Action] = []

    def signal(
        self,
        identities: Iterator[Identity],
        action: Action,
        _deadline: Deadline,
        _guards: Mapping[int, WaitGuard],
    ) -> Iterator[Signal]:
        self.actions.append(action)
        return (Signal.SENT for _ in identities)

    def verify(
        self, signalled: Collection[tuple[Identity, Action]], _deadline: Deadline
    ) -> Verification:
        self.now += 60
        remaining = frozenset(identity.pid for identity, _ in signalled)
        return Verification(server=SERVER, remaining=remaining, can_see=True, used=7)


SERVER = ServerIdentity(started=1, checkpointer=2, checkpointer_started=3)


def test_a_cancelled_query_whose_escalation_is_not_due_before_the_run_ends_lingers() -> None:
    server = LateServer()
    rule = a_rule(state="active", query_for="1m") | {"action": "cancel", "escalate_after": "5m"}
    policy = a_policy(rule)
    condemned = [a_decision(a_session(pid=1))._replace(rule=policy.rules[0])]
    progress = Progress(a_target_report(a_result(Outcome.SPARED, pid=1)))
    deadline = Deadline(60, lambda: server.now)
    session = a_target_session(
        progress, OutcomeLog(), server=server, deadline=deadline, policy=policy
    )
    snapshot = a_snapshot(server=SERVER)
    report = Termination(session, session.report, snapshot).run(condemned)
    (result,) = report.results
    assert result.outcome is Outcome.LINGERING
    assert result.decision.reason.endswith("; the run has no time for escalate_after: 5m")
    assert server.actions == [Action.CANCEL]


class UnchangedServer:
    """A server on which nothing changes between two snapshots."""

    role = "session_reaper"

    def take_snapshot(self, _scope: SnapshotScope, _deadline: Deadline) -> Snapshot:
        return a_snapshot(*(a_session(pid=pid) for pid in PIDS))


def test_sessions_are_spared_if_deciding_on_the_second_snapshot_takes_too_long() -> None:
    progress = Progress(a_report_of_decisions())
    # Each session takes a second, and six are more than half of what is left.
    policy = a_policy({**a_rule(), "confirm_after": "1ms"})
    session = a_target_session(
        progress,
        OutcomeLog(),
        server=UnchangedServer(),
        deadline=Deadline(12, SlowClock()),
        policy=policy,
    )
    report = terminate(session, [each._replace(rule=policy.rules[0]) for each in decisions()])
    assert outcomes_of(report) == dict.fromkeys(PIDS, Outcome.SPARED)
    assert report.error is not None
    assert report.error.message.startswith("deciding on 6 sessions took longer")
    assert all(report.error.message in result.decision.reason for result in report.results)
