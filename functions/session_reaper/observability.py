"""The one Logger and the metrics, by Powertools."""

import re
from collections import Counter
from dataclasses import replace
from threading import Lock
from typing import Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from session_reaper.decision.model import Decision
from session_reaper.log_levels import make_own_logger
from session_reaper.report.document import describe_session
from session_reaper.report.model import Outcome, Report, RunStatus, SessionResult, TargetReport
from session_reaper.sessions.session import State

NAMESPACE: Final = "SessionReaper"
# Powertools reads POWERTOOLS_SERVICE_NAME, which is the stack's name: two stacks do not mix.
SERVICE: Final = EphemeralMetrics(namespace=NAMESPACE).service or "session-reaper"

make_own_logger(SERVICE)  # by this name Powertools asks for it
logger: Final = Logger(service=SERVICE)


def log_decision(target: TargetReport, decision: Decision) -> None:
    """One line for a session that is not left alone, before anything is done to it."""
    verdict = decision.verdict.name.lower()
    session = describe_session(decision, target.queries)
    extra = {"target": target.name, "verdict": verdict, "session": session}
    logger.info("decision", extra=extra)


class OutcomeLog:
    """Logs the outcome of each session of one target once, as soon as it is known.

    Safe to use from several threads: the target's own writes while it works, and the run completes
    the log when the time is over.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._logged: dict[int, SessionResult] = {}  # by pid
        self._is_complete = False

    def write(self, target: TargetReport, fate: SessionResult) -> None:
        """Log an outcome that will not change any more."""
        with self._lock:
            if not self._is_complete:
                self._log(target, fate)

    def complete(self, target: TargetReport) -> TargetReport:
        """Log every outcome of the report that was not logged yet; ignore what comes later.

        Returns the report with the outcomes as they were logged.
        """
        with self._lock:
            self._is_complete = True
            for fate in target.results:
                self._log(target, fate)
            fates = tuple(self._logged[fate.decision.pid] for fate in target.results)
        return replace(target, results=fates)

    def _log(self, target: TargetReport, fate: SessionResult) -> None:
        pid = fate.decision.pid
        if pid in self._logged:
            return
        self._logged[pid] = fate
        session = describe_session(fate.decision, target.queries)
        extra = {"target": target.name, "outcome": fate.outcome, "session": session}
        logger.info("outcome", extra=extra)


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
