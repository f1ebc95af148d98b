"""The log and the metrics of a run, written by Powertools."""

import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision, Verdict
from session_reaper.errors import DeadlineError
from session_reaper.log_levels import make_own_logger
from session_reaper.report.document import describe_session
from session_reaper.report.model import (
    Outcome,
    Report,
    RunStatus,
    SessionResult,
    TargetReport,
    TargetStatus,
)
from session_reaper.sessions.session import State

NAMESPACE: Final = "SessionReaper"
# POWERTOOLS_SERVICE_NAME is the name of the stack, so the metrics of two stacks stay apart.
SERVICE: Final = EphemeralMetrics(namespace=NAMESPACE).service or "session-reaper"

make_own_logger(SERVICE)  # Powertools uses the logger with this name
logger: Final = Logger(service=SERVICE)

_UNTOUCHED: Final = (Outcome.SPARED, Outcome.WOULD_TERMINATE)
# A pid takes 8 bytes of JSON at most, so a line is far below CloudWatch's limit of 1 MB.
_PIDS_PER_LINE: Final = 10_000


def start_log(run_id: str, event: object) -> None:
    """Add the run's id, and that of EventBridge's event if any, to every line of the run."""
    event_id = event.get("id") if isinstance(event, dict) and "source" in event else None
    logger.structure_logs(run_id=run_id)  # without the keys of an earlier run
    logger.set_correlation_id(event_id if isinstance(event_id, str) else run_id)


def log_bug(message: str, bug: Exception, **extra: str) -> None:
    """Log a bug with its traceback, but without its text, which may contain a secret."""
    trace = traceback.format_tb(bug.__traceback__)
    logger.error(message, extra={**extra, "error": type(bug).__name__, "trace": trace})


def log_decision(target: TargetReport, decision: Decision) -> None:
    """Log the decision on a session, before the session is signalled."""
    _log_session("decision", target, decision, verdict=decision.verdict.name.lower())


def log_spared(target: TargetReport, decisions: Iterable[Decision], deadline: Deadline) -> None:
    """Log the decisions to spare sessions: one line each until the deadline, the rest together."""
    rest: dict[str, list[int]] = defaultdict(list)
    for decision in decisions:
        if deadline.remaining():
            log_decision(target, decision)
        else:
            rest[_get_rule_name(decision)].append(decision.pid)
    verdict = Verdict.SPARE.name.lower()
    for rule, pids in rest.items():
        _log_together("decisions", target.name, {"verdict": verdict, "rule": rule}, pids)


def log_other_name(target: TargetReport, logged_as: str) -> None:
    """Log that the lines of a target's sessions in this run have another name.

    Its first secret connected only after sessions had been signalled.
    """
    extra = {"target": target.name, "logged_as": logged_as}
    logger.info("logged under another name", extra=extra)


class OutcomeLog:
    """Logs the outcome of each session of one target once.

    The outcome of a signalled session is logged as soon as it is known. All others are logged at
    the end of the run, so that they do not delay signals.

    Safe to use from several threads: the job writes while it works, and the run completes the log
    when the time is over.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._logged: dict[int, SessionResult] = {}  # by pid
        self._report: TargetReport | None = None  # once the log is complete

    def write(self, target: TargetReport, result: SessionResult) -> None:
        """Log a final outcome.

        Raises DeadlineError once the run has completed the log: later results are not reported, so
        the job should end.
        """
        with self._lock:
            if self._report is not None:
                raise DeadlineError
            self._log(target, result)

    def complete(self, target: TargetReport, deadline: Deadline) -> TargetReport:
        """Close the log, and log the outcomes of signalled sessions until the deadline.

        Returns the report with the outcomes as they were logged. `log_remaining` logs the rest.
        """
        with self._lock:
            if self._logged:
                final = (self._logged.get(each.decision.pid, each) for each in target.results)
                target = replace(target, results=tuple(final))
            self._report = target
            for result in target.results:
                if deadline.remaining() == 0:
                    break
                self._log(target, result)
            return target

    def remaining(self) -> Iterator[tuple[TargetReport, SessionResult]]:
        """Yield each outcome that is not logged yet, with its target, once the log is complete."""
        report = self._report
        if report is not None:
            for result in report.results:
                if result.decision.pid not in self._logged:
                    yield report, result

    def _log(self, target: TargetReport, result: SessionResult) -> None:
        pid = result.decision.pid
        if pid not in self._logged and result.outcome not in _UNTOUCHED:
            self._logged[pid] = result
            _log_session("outcome", target, result.decision, outcome=result.outcome)


def log_remaining(logs: Iterable[OutcomeLog], deadline: Deadline) -> None:
    """Log each outcome that is not logged yet: one line each until the deadline, the rest together.

    Signalled sessions come first. The lines for the rest contain the pids of their sessions.
    """
    remaining = [each for log in logs for each in log.remaining()]
    remaining.sort(key=lambda each: each[1].outcome in _UNTOUCHED)
    # By the id of the report, too: two targets may have the same name.
    rest: dict[tuple[int, str, str, str], list[int]] = defaultdict(list)
    for target, result in remaining:
        if deadline.remaining():
            _log_session("outcome", target, result.decision, outcome=result.outcome)
        else:
            key = (id(target), target.name, result.outcome, _get_rule_name(result.decision))
            rest[key].append(result.decision.pid)
    for (_, name, outcome, rule), pids in rest.items():
        _log_together("outcomes", name, {"outcome": outcome, "rule": rule}, pids)


def _log_session(message: str, target: TargetReport, decision: Decision, **keys: str) -> None:
    session = describe_session(decision, target.policy)
    logger.info(message, extra={"target": target.name, **keys, "session": session})


def _log_together(message: str, target: str, keys: dict[str, str], pids: Sequence[int]) -> None:
    for start in range(0, len(pids), _PIDS_PER_LINE):
        batch = pids[start : start + _PIDS_PER_LINE]
        extra = {"target": target, **keys, "count": len(batch), "pids": batch}
        logger.info(message, extra=extra)


def _get_rule_name(decision: Decision) -> str:
    return decision.rule.name if decision.rule else ""


# -- metrics: CloudWatch bills each in every hour in which it is published -------------------------


def _to_camel_case(words: str) -> str:
    """Return `would_terminate` as WouldTerminate, in the style of CloudWatch's own metrics."""
    return re.sub(r"[\W_]", "", words.title())


_STATE_METRICS: Final = {
    state: f"Sessions{_to_camel_case(state)}" for state in State if state is not State.FASTPATH
}
_OUTCOME_METRICS: Final = {outcome: _to_camel_case(outcome) for outcome in Outcome}
_metrics: Final = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)


def emit_target_metrics(target: TargetReport) -> None:
    """Write the metrics of one target as lines of CloudWatch's embedded metric format."""
    with _collect_metrics(target=target.name) as metrics:
        metrics.add_metric("FailedTargets", MetricUnit.Count, int(not target.is_reached))
        used = _compute_used_percent(target)
        if used is not None:
            metrics.add_metric("SlotsUsed", MetricUnit.Percent, used)
        if target.oldest_idle_in_transaction is not None:
            oldest = target.oldest_idle_in_transaction
            metrics.add_metric("OldestIdleInTransaction", MetricUnit.Seconds, oldest)
            for state, name in _STATE_METRICS.items():
                metrics.add_metric(name, MetricUnit.Count, target.states.get(state, 0))
        for outcome, name in _OUTCOME_METRICS.items():
            if number := target.counts[outcome]:
                metrics.add_metric(name, MetricUnit.Count, number)
        _add_held_back(metrics, [target])
    rules = [each.decision.rule for each in target.results if each.outcome is Outcome.TERMINATED]
    for name, number in Counter(rule.name for rule in rules if rule).items():
        emit_count("Terminated", number, target=target.name, rule=name)


def emit_run_metrics(report: Report, seconds: float) -> None:
    """Write the metrics of a run, last of all, so that a run that raises has none."""
    with _collect_metrics() as metrics:
        metrics.add_metric("RunDuration", MetricUnit.Milliseconds, 1000 * seconds)
        successful = report.status is not RunStatus.FAILED
        metrics.add_metric("SuccessfulRuns", MetricUnit.Count, int(successful))
        metrics.add_metric("FailedTargets", MetricUnit.Count, report.failed)
        metrics.add_metric("Terminated", MetricUnit.Count, report.counts[Outcome.TERMINATED])
        _add_held_back(metrics, report.targets)
        used = [_compute_used_percent(target) for target in report.targets]
        if known := [each for each in used if each is not None]:
            metrics.add_metric("SlotsUsed", MetricUnit.Percent, max(known))


def emit_count(name: str, number: int = 1, **dimensions: str) -> None:
    """Write one metric."""
    with _collect_metrics(**dimensions) as metrics:
        metrics.add_metric(name, MetricUnit.Count, number)


def _add_held_back(metrics: EphemeralMetrics, targets: Sequence[TargetReport]) -> None:
    """Add how many sessions are protected and how many breakers tripped, if any are."""
    if number := sum(len(target.protected) for target in targets):
        metrics.add_metric("Protected", MetricUnit.Count, number)
    if number := sum(target.status is TargetStatus.BREAKER for target in targets):
        metrics.add_metric("BreakerTripped", MetricUnit.Count, number)


@contextmanager
def _collect_metrics(**dimensions: str) -> Iterator[EphemeralMetrics]:
    """Write the metrics that the block adds as one line; only the run's own thread does so."""
    for name, value in dimensions.items():
        # CloudWatch drops values that are blank, too long, or not printable ASCII.
        _metrics.add_dimension(name, re.sub(r"[^ -~]|^ *$", "?", value[:250]))
    try:
        yield _metrics
        _metrics.flush_metrics()
    finally:
        _metrics.clear_metrics()


def _compute_used_percent(target: TargetReport) -> float | None:
    """Return the used percentage of the slots for ordinary roles, None if it is not known."""
    known = target.slots is not None and target.used_after is not None and target.slots.usable > 0
    return 100 * target.share_used if known else None
