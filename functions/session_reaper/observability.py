"""The one Logger and the metrics, by Powertools."""

from typing import Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from session_reaper.decide import Decision
from session_reaper.report import (
    UNREACHED,
    Outcome,
    TargetReport,
    describe,
)

SERVICE: Final = "session-reaper"
NAMESPACE: Final = "SessionReaper"

logger: Final = Logger(service=SERVICE)


def log_decision(target: str, decision: Decision) -> None:
    """One line for a session that is not left alone, before anything is done to it."""
    verdict = decision.verdict.name.lower()
    extra = {"target": target, "verdict": verdict, "session": describe(decision)}
    logger.info("decision", extra=extra)


def emit_metrics(target: TargetReport) -> None:
    """What CloudWatch should know of one target, as a line of its embedded metric format."""
    metrics = EphemeralMetrics(namespace=NAMESPACE, service="")  # no second dimension
    # CloudWatch drops what is not ASCII or too long.
    name = target.name[:250].encode("ascii", "replace").decode()
    metrics.add_dimension("target", name)
    metrics.add_metric("FailedTargets", MetricUnit.Count, int(target.status in UNREACHED))
    metrics.add_metric("Terminated", MetricUnit.Count, target.count(Outcome.TERMINATED))
    if target.slots is not None and target.used_after is not None and target.slots.usable > 0:
        used = 100 * target.used_after / target.slots.usable
        metrics.add_metric("SlotsUsed", MetricUnit.Percent, used)
    metrics.flush_metrics()
