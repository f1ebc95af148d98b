"""Every outcome is in the log once: in a line of its own while there is time, else with others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.deadline import Deadline
from session_reaper.decision.model import Verdict
from session_reaper.errors import DeadlineError
from session_reaper.observability import OutcomeLog, log_remaining, log_spared
from session_reaper.report.model import Outcome, SessionResult, TargetReport

from tests.builders import a_decision, a_result, a_session, a_target_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from session_reaper.sessions.session import Identity

UNTOUCHED = [Outcome.SPARED, Outcome.WOULD_TERMINATE]
SIGNALLED = [outcome for outcome in Outcome if outcome not in UNTOUCHED]


def make_deadline() -> Deadline:
    return Deadline(60)


def make_late_deadline() -> Deadline:
    return Deadline(0)


def one_of_each(name: str = "orders") -> TargetReport:
    results = [a_result(outcome, pid=pid) for pid, outcome in enumerate(Outcome, 1)]
    return a_target_report(*results, name=name)


def lines(caplog: pytest.LogCaptureFixture, message: str = "outcome") -> Sequence[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == message]


def outcomes(caplog: pytest.LogCaptureFixture) -> Sequence[Outcome]:
    return [line["outcome"] for line in lines(caplog)]


@pytest.mark.parametrize("outcome", SIGNALLED)
def test_a_signalled_session_is_logged_as_soon_as_its_outcome_is_known(
    caplog: pytest.LogCaptureFixture, outcome: Outcome
) -> None:
    log = OutcomeLog()
    result = a_result(outcome)
    log.write(a_target_report(result), result)
    log.write(a_target_report(result), result)
    assert outcomes(caplog) == [outcome]


@pytest.mark.parametrize("outcome", UNTOUCHED)
def test_a_session_that_was_not_touched_is_logged_at_the_end(
    caplog: pytest.LogCaptureFixture, outcome: Outcome
) -> None:
    log = OutcomeLog()
    result = a_result(outcome)
    log.write(a_target_report(result), result)
    log.complete(a_target_report(result), make_deadline())
    assert outcomes(caplog) == []
    log_remaining([log], make_deadline())
    assert outcomes(caplog) == [outcome]


def test_the_outcome_that_was_logged_is_the_one_that_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = OutcomeLog()
    ended, lingering = a_result(Outcome.TERMINATED), a_result(Outcome.LINGERING)
    log.write(a_target_report(lingering), ended)
    assert log.complete(a_target_report(lingering), make_deadline()).results == (ended,)
    assert outcomes(caplog) == [Outcome.TERMINATED]


def test_a_target_that_goes_on_after_the_run_s_end_is_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = OutcomeLog()
    report = one_of_each()
    log.complete(a_target_report(), make_deadline())
    for result in report.results:
        with pytest.raises(DeadlineError):
            log.write(report, result)
    assert outcomes(caplog) == []


def test_before_the_summary_only_signalled_sessions_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    OutcomeLog().complete(one_of_each(), make_deadline())
    assert sorted(outcomes(caplog)) == sorted(SIGNALLED)


def test_what_was_not_logged_before_the_summary_is_logged_after_it_signalled_sessions_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logs = [OutcomeLog(), OutcomeLog()]
    for log, name in zip(logs, ["orders", "billing"], strict=True):
        log.complete(one_of_each(name), make_late_deadline())
    assert outcomes(caplog) == []
    log_remaining(logs, make_deadline())
    found = [(line["target"], line["session"]["pid"]) for line in lines(caplog)]
    assert len(set(found)) == len(found) == 2 * len(Outcome)
    assert set(outcomes(caplog)[: 2 * len(SIGNALLED)]) == set(SIGNALLED)


def test_without_time_sessions_share_a_line_that_has_their_pids(
    caplog: pytest.LogCaptureFixture,
) -> None:
    results = [
        *(a_result(Outcome.LINGERING, pid=pid) for pid in (1, 2)),
        *(a_result(Outcome.SPARED, pid=pid) for pid in (3, 4)),
        SessionResult(decision=a_decision(a_session(pid=5), rule="other"), outcome=Outcome.SPARED),
    ]
    log = OutcomeLog()
    log.complete(a_target_report(*results), make_late_deadline())
    log_remaining([log], make_late_deadline())
    keys = ("target", "outcome", "rule", "count", "pids")
    assert [tuple(line[key] for key in keys) for line in lines(caplog, "outcomes")] == [
        ("orders", "lingering", "idle-in-transaction", 2, [1, 2]),
        ("orders", "spared", "idle-in-transaction", 2, [3, 4]),
        ("orders", "spared", "other", 1, [5]),
    ]
    assert outcomes(caplog) == []


def test_targets_of_the_same_name_do_not_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    logs = [OutcomeLog(), OutcomeLog()]
    for log in logs:
        log.complete(a_target_report(a_result(Outcome.SPARED)), make_late_deadline())
    log_remaining(logs, make_late_deadline())
    assert [line["pids"] for line in lines(caplog, "outcomes")] == [[4711], [4711]]


def test_a_line_for_many_is_never_too_long_for_cloudwatch(caplog: pytest.LogCaptureFixture) -> None:
    result = a_result(Outcome.SPARED)
    pids = range(2**22 - 12_000, 2**22)  # the longest that Linux gives
    sessions = [replace(result.decision.session, identity=_identity(pid)) for pid in pids]
    results = [
        result._replace(decision=result.decision._replace(session=each)) for each in sessions
    ]
    log = OutcomeLog()
    log.complete(a_target_report(*results), make_late_deadline())
    log_remaining([log], make_late_deadline())
    found = lines(caplog, "outcomes")
    assert [pid for line in found for pid in line["pids"]] == [*pids]
    assert max(len(str(line["pids"])) for line in found) < 250_000


def _identity(pid: int) -> Identity:
    return replace(a_session().identity, pid=pid)


def test_a_log_of_a_target_that_has_not_ended_has_nothing_to_add(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log_remaining([OutcomeLog()], make_deadline())
    assert caplog.records == []


@pytest.mark.parametrize(("deadline", "alone"), [(make_deadline, 3), (make_late_deadline, 0)])
def test_spared_sessions_have_a_line_each_while_there_is_time_and_else_one_per_rule(
    caplog: pytest.LogCaptureFixture, deadline: Callable[[], Deadline], alone: int
) -> None:
    spared = [
        a_decision(a_session(pid=pid), rule=rule, verdict=Verdict.SPARE)
        for pid, rule in ((1, "a"), (2, "b"), (3, "a"))
    ]
    log_spared(a_target_report(), spared, deadline())
    assert len(lines(caplog, "decision")) == alone
    together = [
        (line["verdict"], line["rule"], line["pids"]) for line in lines(caplog, "decisions")
    ]
    assert together == ([] if alone else [("spare", "a", [1, 3]), ("spare", "b", [2])])
