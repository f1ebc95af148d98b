"""The lines of CloudWatch's embedded metric format that a run writes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from session_reaper.observability import (
    emit_count,
    emit_run_metrics,
    emit_target_metrics,
)
from session_reaper.policy.enums import Mode
from session_reaper.report.model import Outcome, SessionResult, TargetReport, TargetStatus
from session_reaper.sessions.session import State

from tests.builders import (
    a_decision,
    a_report,
    a_result,
    a_session,
    a_target_report,
    some_results,
    some_slots,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_reaper.report.model import Report

TERMINATED = Outcome.TERMINATED

Capture = pytest.CaptureFixture[str]

SEEN = {
    "states": {State.ACTIVE: 5, State.IDLE: 60, State.IDLE_IN_TRANSACTION: 30, State.FASTPATH: 1},
    "oldest_idle_in_transaction": 901.2,
}
UNREACHED = TargetReport(name="billing", status=TargetStatus.FAILED)
# Every reached target publishes these metrics; the others cost nothing while they are 0.
ALWAYS = {
    "FailedTargets",
    "SlotsUsed",
    "SessionsActive",
    "SessionsIdle",
    "SessionsIdleInTransaction",
    "SessionsIdleInTransactionAborted",
    "OldestIdleInTransaction",
}


class Line(NamedTuple):
    dimensions: Mapping[str, str]
    metrics: Mapping[str, float]
    units: Mapping[str, str]


def parse_written(capture: Capture) -> list[Line]:
    return [line_of(json.loads(text)) for text in capture.readouterr().out.splitlines()]


def line_of(document: dict[str, Any]) -> Line:
    (directive,) = document["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "SessionReaper"
    (names,) = directive["Dimensions"]
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    values = {name: document[name] for name in units}
    assert all(len(value) == 1 for value in values.values())
    return Line(
        dimensions={name: document[name] for name in names},
        metrics={name: value for name, (value,) in values.items()},
        units=units,
    )


def of_target(capture: Capture, *results: SessionResult, **overrides: object) -> Line:
    emit_target_metrics(a_target_report(*results, **SEEN | overrides))
    return parse_written(capture)[0]


def of_run(capture: Capture, report: Report) -> Line:
    emit_run_metrics(report, 1.25)
    (line,) = parse_written(capture)
    return line


def by_rule(result: SessionResult, name: str) -> SessionResult:
    return result._replace(decision=a_decision(result.decision.session, rule=name))


# -- a target --------------------------------------------------------------------------------------


def test_a_quiet_target_publishes_its_slots_and_its_sessions_and_nothing_else(
    capsys: Capture,
) -> None:
    line = of_target(capsys, used_after=85)
    assert line.dimensions == {"service": "session-reaper", "target": "orders"}
    assert line.metrics == {
        "FailedTargets": 0,
        "SlotsUsed": pytest.approx(100 * 85 / 97),
        "SessionsActive": 5,
        "SessionsIdle": 60,
        "SessionsIdleInTransaction": 30,
        "SessionsIdleInTransactionAborted": 0,
        "OldestIdleInTransaction": 901.2,
    }
    assert line.units == dict.fromkeys(ALWAYS, "Count") | {
        "SlotsUsed": "Percent",
        "OldestIdleInTransaction": "Seconds",
    }


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (TERMINATED, "Terminated"),
        (Outcome.CANCELLED, "Cancelled"),
        (Outcome.WOULD_TERMINATE, "WouldTerminate"),
        (Outcome.ESCAPED, "Escaped"),
        (Outcome.DENIED, "Denied"),
        (Outcome.LINGERING, "Lingering"),
        (Outcome.SPARED, "Spared"),
    ],
)
def test_an_outcome_is_published_only_if_it_happened(
    capsys: Capture, outcome: Outcome, name: str
) -> None:
    line = of_target(capsys, *some_results(3, outcome))
    assert set(line.metrics) == ALWAYS | {name}
    assert line.metrics[name] == 3
    assert line.units[name] == "Count"


@pytest.mark.parametrize("status", TargetStatus)
def test_a_target_that_was_not_reached_is_counted(capsys: Capture, status: TargetStatus) -> None:
    reached = status in {TargetStatus.OK, TargetStatus.BREAKER, TargetStatus.PAUSED}
    assert of_target(capsys, status=status).metrics["FailedTargets"] == (not reached)


def test_a_target_without_a_snapshot_publishes_only_its_failure(capsys: Capture) -> None:
    emit_target_metrics(UNREACHED)
    (line,) = parse_written(capsys)
    assert line.dimensions["target"] == "billing"
    assert line.metrics == {"FailedTargets": 1}


def test_slots_that_were_not_counted_after_the_run_are_not_published(capsys: Capture) -> None:
    assert set(of_target(capsys, used_after=None).metrics) == ALWAYS - {"SlotsUsed"}
    assert set(of_target(capsys, slots=some_slots(maximum=3)).metrics) == ALWAYS - {"SlotsUsed"}


def test_each_rule_that_terminated_sessions_has_its_own_line(capsys: Capture) -> None:
    terminated = some_results(3, TERMINATED)
    results = [by_rule(result, name) for result, name in zip(terminated, "aba", strict=True)]
    spared = by_rule(a_result(Outcome.SPARED), "c")
    emit_target_metrics(a_target_report(*results, spared))
    whole, *rules = parse_written(capsys)
    assert whole.metrics["Terminated"] == 3
    here = {"service": "session-reaper", "target": "orders"}
    assert [(line.dimensions, line.metrics) for line in rules] == [
        (here | {"rule": "a"}, {"Terminated": 2}),
        (here | {"rule": "b"}, {"Terminated": 1}),
    ]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("shop: leaks (old)", "shop: leaks (old)"),
        ("Aufträge", "Auftr?ge"),
        ("a\nb\tc\x7f\ud800", "a?b?c??"),
        ("   ", "?"),
        ("", "?"),
        ("x" * 2000, "x" * 250),
    ],
)
def test_characters_that_cloudwatch_would_drop_are_replaced(
    capsys: Capture, name: str, published: str
) -> None:
    emit_target_metrics(a_target_report(by_rule(a_result(), name), name=name))
    whole, rule = parse_written(capsys)
    assert whole.dimensions["target"] == published
    assert (rule.dimensions["target"], rule.dimensions["rule"]) == (published, published)


# -- a run -----------------------------------------------------------------------------------------


def test_a_run_publishes_sums_over_all_targets(capsys: Capture) -> None:
    line = of_run(
        capsys,
        a_report(
            a_target_report(*some_results(3, TERMINATED), used_after=85),
            a_target_report(a_result(TERMINATED), a_result(Outcome.ESCAPED), used_after=97),
            a_target_report(used_after=None),
            UNREACHED,
        ),
    )
    assert line.dimensions == {"service": "session-reaper"}
    assert line.metrics == {
        "RunDuration": 1250,
        "SuccessfulRuns": 1,
        "FailedTargets": 1,
        "Terminated": 4,
        "SlotsUsed": 100,
    }
    assert line.units == {
        "RunDuration": "Milliseconds",
        "SuccessfulRuns": "Count",
        "FailedTargets": "Count",
        "Terminated": "Count",
        "SlotsUsed": "Percent",
    }


def test_a_run_that_reached_no_target_is_not_successful_and_publishes_no_slots(
    capsys: Capture,
) -> None:
    line = of_run(capsys, a_report(UNREACHED, UNREACHED))
    assert line.metrics["SuccessfulRuns"] == 0
    assert line.metrics["FailedTargets"] == 2
    assert "SlotsUsed" not in line.metrics


@pytest.mark.parametrize("status", [TargetStatus.OK, TargetStatus.BREAKER])
def test_a_run_that_reached_a_target_is_successful(capsys: Capture, status: TargetStatus) -> None:
    report = a_report(UNREACHED, a_target_report(status=status))
    assert of_run(capsys, report).metrics["SuccessfulRuns"] == 1


def test_a_run_in_mode_off_is_successful(capsys: Capture) -> None:
    assert of_run(capsys, a_report(mode=Mode.OFF)).metrics["SuccessfulRuns"] == 1


def test_metrics_name_no_session(capsys: Capture) -> None:
    names = dict.fromkeys(("role", "database", "application", "client", "query"), "CANARY")
    target = a_target_report(
        SessionResult(decision=a_decision(a_session(**names)), outcome=TERMINATED)
    )
    emit_target_metrics(target)
    emit_run_metrics(a_report(target), 1)
    assert "CANARY" not in capsys.readouterr().out


# -- whose they are --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["session-reaper-blue", "", None])
def test_metrics_and_log_have_the_name_of_the_stack(name: str | None) -> None:
    """By another process: Powertools reads its variables at import."""
    code = """
from session_reaper.observability import emit_run_metrics, logger
from session_reaper.policy.enums import Mode
from session_reaper.report.model import Report
emit_run_metrics(Report(run_id="4f6c", mode=Mode.OFF, targets=()), 1.0)
logger.info("run")
"""
    given = {} if name is None else {"POWERTOOLS_SERVICE_NAME": name}
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), **given}
    answer = subprocess.run(  # noqa: S603 -- our own interpreter
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    services = [json.loads(line)["service"] for line in answer.stdout.splitlines()]
    assert services == [name or "session-reaper"] * 2


def test_a_tripped_breaker_is_counted_for_its_target_and_the_run(capsys: Capture) -> None:
    tripped = a_target_report(status=TargetStatus.BREAKER)
    emit_target_metrics(tripped)
    emit_run_metrics(a_report(tripped, a_target_report(status=TargetStatus.BREAKER)), 0.1)
    of_target, of_run = parse_written(capsys)
    assert of_target.metrics["BreakerTripped"] == 1
    assert of_run.metrics["BreakerTripped"] == 2
    emit_run_metrics(a_report(a_target_report()), 0.1)
    assert "BreakerTripped" not in parse_written(capsys)[0].metrics


def test_an_invalid_configuration_is_counted_for_the_stack(capsys: Capture) -> None:
    emit_count("ConfigurationErrors")
    (line,) = parse_written(capsys)
    assert line.metrics == {"ConfigurationErrors": 1}
    assert line.units == {"ConfigurationErrors": "Count"}
    assert set(line.dimensions) == {"service"}
