"""The one Logger and the metrics, by Powertools."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import batched
from threading import Lock
from typing import Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision, Verdict
from session_reaper.errors import DeadlineError
from session_reaper.log_levels import make_own_logger
from session_reaper.report.document import describe_session
from session_reaper.report.model import Outcome, Report, RunStatus, SessionResult, TargetReport
from session_reaper.sessions.session import State

NAMESPACE: Final = "SessionReaper"
# Powertools reads POWERTOOLS_SERVICE_NAME, which is the stack's name: two stacks do not mix.
SERVICE: Final = EphemeralMetrics(namespace=NAMESPACE).service or "session-reaper"

make_own_logger(SERVICE)  # by this name Powertools asks for it
logger: Final = Logger(service=SERVICE)


_UNTOUCHED: Final = (Outcome.SPARED, Outcome.WOULD_TERMINATE)
# A pid is 8 bytes of JSON at most: a line of them is far shorter than CloudWatch takes.
_PIDS_PER_LINE: Final = 10_000


def log_decision(target: TargetReport, decision: Decision) -> None:
    """One line for a session that is not left alone, before anything is done to it."""
    verdict = decision.verdict.name.lower()
    session = describe_session(decision, target.queries)
    extra = {"target": target.name, "verdict": verdict, "session": session}
    logger.info("decision", extra=extra)


def log_spared(target: TargetReport, decisions: Iterable[Decision], deadline: Deadline) -> None:
    """Log the decisions to spare sessions: one line each until the deadline, the rest together."""
    rest: dict[str, list[int]] = defaultdict(list)
    for decision in decisions:
        if deadline.remaining():
            log_decision(target, decision)
        else:
            rest[_rule_of(decision)].append(decision.pid)
    verdict = Verdict.SPARE.name.lower()
    for rule, pids in rest.items():
        _log_together("decisions", target.name, {"verdict": verdict, "rule": rule}, pids)


class OutcomeLog:
    """Logs the outcome of each session of one target once.

    What was signalled is logged as soon as its outcome is known. A session that was not touched has
    its line at the end of the run, for none of them may take time from the others' signals.

    Safe to use from several threads: the target's own writes while it works, and the run completes
    the log when the time is over.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._logged: dict[int, SessionResult] = {}  # by pid
        self._report: TargetReport | None = None  # once the log is complete

    def write(self, target: TargetReport, fate: SessionResult) -> None:
        """Log an outcome that will not change any more.

        Raises DeadlineError once the run has completed the log: whatever the target's thread finds
        now comes too late for the report, and its work would slow down the end of the run.
        """
        with self._lock:
            if self._report is not None:
                raise DeadlineError
            if fate.outcome not in _UNTOUCHED:
                self._log(target, fate)

    def complete(self, target: TargetReport, deadline: Deadline) -> TargetReport:
        """Accept no outcome any more, and log those of signalled sessions until the deadline.

        Returns the report with the outcomes as they are logged. Whatever has no line yet is left
        to `log_remaining`.
        """
        with self._lock:
            fates = tuple(self._logged.get(fate.decision.pid, fate) for fate in target.results)
            self._report = replace(target, results=fates)
            for fate in fates:
                if deadline.remaining() == 0:
                    break
                if fate.outcome not in _UNTOUCHED:
                    self._log(self._report, fate)
            return self._report

    def remaining(self) -> Iterator[tuple[TargetReport, SessionResult]]:
        """Yield the outcomes that have no line yet, and their target, once the log is complete."""
        report = self._report
        if report is not None:
            for fate in report.results:
                if fate.decision.pid not in self._logged:
                    yield report, fate

    def _log(self, target: TargetReport, fate: SessionResult) -> None:
        pid = fate.decision.pid
        if pid in self._logged:
            return
        self._logged[pid] = fate
        _log_outcome(target, fate)


def log_remaining(logs: Iterable[OutcomeLog], deadline: Deadline) -> None:
    """Log every outcome that has no line yet: one line each until the deadline, the rest together.

    Sessions that were signalled come first. The lines for the rest are few, however many sessions
    there are, and name each of them by its pid.
    """
    remaining = [each for log in logs for each in log.remaining()]
    remaining.sort(key=lambda each: each[1].outcome in _UNTOUCHED)
    rest: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    names: dict[int, str] = {}  # by the report's id: two targets may have the same name
    for target, fate in remaining:
        if deadline.remaining():
            _log_outcome(target, fate)
        else:
            names[id(target)] = target.name
            rest[id(target), fate.outcome, _rule_of(fate.decision)].append(fate.decision.pid)
    for (target_id, outcome, rule), pids in rest.items():
        _log_together("outcomes", names[target_id], {"outcome": outcome, "rule": rule}, pids)


def _log_outcome(target: TargetReport, fate: SessionResult) -> None:
    session = describe_session(fate.decision, target.queries)
    extra = {"target": target.name, "outcome": fate.outcome, "session": session}
    logger.info("outcome", extra=extra)


def _log_together(message: str, target: str, what: dict[str, str], pids: Iterable[int]) -> None:
    for some in batched(pids, _PIDS_PER_LINE, strict=False):
        extra = {"target": target, **what, "count": len(some), "pids": list(some)}
        logger.info(message, extra=extra)


def _rule_of(decision: Decision) -> str:
    return decision.rule.name if decision.rule else ""


# -- metrics: each costs money in every hour in which it is published ------------------------------


def emit_target_metrics(target: TargetReport) -> None:
    """What CloudWatch should know of one target, as lines of its embedded metric format."""
    metrics = _metrics(target=target.name)
    metrics.add_metric("FailedTargets", MetricUnit.Count, int(not target.is_reached))
    used = _slots_used(target)
    if used is not None:
        metrics.add_metric("SlotsUsed", MetricUnit.Percent, used)
    if target.oldest_idle_in_transaction is not None:
        oldest = target.oldest_idle_in_transaction
        metrics.add_metric("OldestIdleInTransaction", MetricUnit.Seconds, oldest)
        for state in State:
            if state is not State.FASTPATH:
                number = target.states.get(state, 0)
                metrics.add_metric(f"Sessions{_camel(state)}", MetricUnit.Count, number)
    for outcome in Outcome:
        if number := target.count(outcome):
            metrics.add_metric(_camel(outcome), MetricUnit.Count, number)
    metrics.flush_metrics()
    rules = [fate.decision.rule for fate in target.results if fate.outcome is Outcome.TERMINATED]
    for name, number in Counter(rule.name for rule in rules if rule).items():
        metrics = _metrics(target=target.name, rule=name)
        metrics.add_metric("Terminated", MetricUnit.Count, number)
        metrics.flush_metrics()


def emit_run_metrics(report: Report, seconds: float) -> None:
    """What CloudWatch should know of a whole run, after all else: of one that raises, nothing."""
    metrics = _metrics()
    metrics.add_metric("RunDuration", MetricUnit.Milliseconds, 1000 * seconds)
    successful = report.status is not RunStatus.FAILED
    metrics.add_metric("SuccessfulRuns", MetricUnit.Count, int(successful))
    metrics.add_metric("FailedTargets", MetricUnit.Count, report.failed)
    metrics.add_metric("Terminated", MetricUnit.Count, report.count(Outcome.TERMINATED))
    used = [each for target in report.targets if (each := _slots_used(target)) is not None]
    if used:
        metrics.add_metric("SlotsUsed", MetricUnit.Percent, max(used))
    metrics.flush_metrics()


def _metrics(**dimensions: str) -> EphemeralMetrics:
    metrics = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
    for name, value in dimensions.items():
        # CloudWatch drops what is blank, too long, or not of ASCII's printable characters.
        metrics.add_dimension(name, re.sub(r"[^ -~]|^ *$", "?", value[:250]))
    return metrics


def _slots_used(target: TargetReport) -> float | None:
    """Percent of what ordinary roles can use, in the end; None if nobody could count."""
    known = target.slots is not None and target.used_after is not None and target.slots.usable > 0
    return 100 * target.share_used if known else None


def _camel(words: str) -> str:
    """`would_terminate` as CloudWatch's own metrics would be called: WouldTerminate."""
    return re.sub(r"[\W_]", "", words.title())
