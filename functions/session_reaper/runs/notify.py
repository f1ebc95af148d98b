"""The end of a run: compare with what is told already, publish, log, remember.

Each call to AWS has a deadline of its own, so that none takes the time of the next one. docs/decisions.md
says how their order keeps every kill from being lost.
"""

from dataclasses import dataclass, replace
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from session_reaper.aws.dynamodb import (
    MEMORY_SECONDS,
    UNREADABLE,
    load_known_issues,
    save_state_update,
)
from session_reaper.aws.sns import PUBLISH_SECONDS, publish
from session_reaper.deadline import Deadline
from session_reaper.observability import emit_target_metrics, logger
from session_reaper.report.document import to_document, truncate_document
from session_reaper.report.known_issues import compare_with_known, remember_undelivered
from session_reaper.report.model import Report
from session_reaper.runs.request import RunRequest
from session_reaper.runs.run import OutcomeLogs
from session_reaper.settings import Notify, Settings
from session_reaper.summary.message import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from session_reaper.errors import PublishError

# CloudWatch takes a line of 1 MB: a longer one would not be JSON.
_LOG_BYTES: Final = 1_000_000

_POLICY_SECONDS: Final = 10.0
_MARGIN_SECONDS: Final = 0.5
# Shares of a function's time, where it has little.
_POLICY_SHARE: Final = 0.3
_NOTIFY_SHARE: Final = 0.3
_LATE_SECONDS: Final = 0.25  # in which a worker whose time is over may still report
_LATE_SHARE: Final = 0.1
_MARGIN_SHARE: Final = 1 / 12
# Shares of the time that is left when the work on the targets is done.
_RECALL_SHARE: Final = 0.2
_PUBLISH_SHARE: Final = 0.8  # of the rest: what remains then is for the log and for remembering
_OUTCOMES_SHARE: Final = 0.5  # of the rest: logging outcomes
_DOCUMENT_SHARE: Final = 0.15  # of the rest: describing sessions; to encode them takes longer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTime:
    """When the parts of a run end, whatever the other side does."""

    policy: Deadline  # reading the policy
    targets: Deadline  # the work on the targets
    outcomes: Deadline  # logging what was signalled, as far as it goes before the summary
    end: Deadline  # everything; Lambda ends the run a little later


def share_time(seconds: float, clock: "Callable[[], float]" = monotonic) -> RunTime:
    """Divide the seconds that Lambda gives a run."""
    late_seconds = min(_LATE_SECONDS, _LATE_SHARE * seconds)
    notify_seconds = min(MEMORY_SECONDS + PUBLISH_SECONDS, _NOTIFY_SHARE * seconds + late_seconds)
    return RunTime(
        policy=Deadline(min(_POLICY_SECONDS, _POLICY_SHARE * seconds), clock),
        targets=Deadline(seconds - notify_seconds, clock),
        outcomes=Deadline(seconds - notify_seconds + 2 * late_seconds, clock),
        end=Deadline(seconds - min(_MARGIN_SECONDS, _MARGIN_SHARE * seconds), clock),
    )


def notify(  # noqa: PLR0913 -- the report, its logs, and all that decides who is told
    report: Report,
    logs: OutcomeLogs,
    request: RunRequest,
    settings: Settings,
    *,
    function_arn: str,
    end: Deadline,
) -> tuple[Report, dict[str, Any]]:
    """Publish what is news, log the run, and remember what was told; return both as they were told.

    Raises PublishError after all this if a topic did not take the summary.
    """
    failures: Mapping[str, PublishError] = {}
    try:
        # What was asked for specially is told in any case, and says nothing of what is usual.
        table = settings.memory_table if request.is_usual and report.targets else None
        known = (
            load_known_issues(table, _share_of(end, _RECALL_SHARE, MEMORY_SECONDS)) if table else ()
        )
        if known is None:
            report = replace(report, memory_problem=UNREADABLE)
        now = time()
        report, learned = compare_with_known(
            report,
            known or (),
            now,
            settings.remind_after,
            whole=not request.targets,
            function_arn=function_arn,
        )
        if report.should_notify or settings.notify is Notify.ALWAYS:
            topics = [settings.topic_arn]
            if report.is_critical and settings.critical_topic_arn:
                topics.append(settings.critical_topic_arn)
            summary = summarize(report, settings.place, now)
            failures = publish(summary, topics, _share_of(end, _PUBLISH_SHARE, PUBLISH_SECONDS))
    finally:
        # No bug in what is told may keep what was done out of the log.
        logs.log_remaining(end.capped_at(_OUTCOMES_SHARE * end.remaining()))
        if settings.target_metrics:
            for target in report.targets:
                emit_target_metrics(target)
        document = to_document(report, end.capped_at(_DOCUMENT_SHARE * end.remaining()))
        logger.info("run", extra=truncate_document(document, _LOG_BYTES))
    if table:
        untold = settings.topic_arn in failures
        save_state_update(table, remember_undelivered(report, now) if untold else learned, end)
    for failure in failures.values():
        raise failure
    return report, document


def _share_of(end: Deadline, share: float, at_most: float) -> Deadline:
    """Return the deadline of a step that may take a share of the time that is left."""
    return end.capped_at(min(at_most, share * end.remaining()))
