"""Ends a run: compares it with earlier summaries, publishes, logs, and saves what was reported.

Each call to AWS has a deadline of its own, so none takes the time of the next. Their order keeps
every termination from being lost; docs/decisions.md explains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import time
from typing import Any, Final

from session_reaper.aws.dynamodb import (
    STATE_SECONDS,
    UNREADABLE,
    load_known_issues,
    save_state_update,
)
from session_reaper.aws.sns import PUBLISH_SECONDS, publish
from session_reaper.deadline import Deadline
from session_reaper.errors import PublishError
from session_reaper.observability import OutcomeLog, emit_target_metrics, log_remaining, logger
from session_reaper.report.document import to_document, truncate_document
from session_reaper.report.known_issues import (
    compare_with_known,
    mark_undelivered,
    with_stable_keys,
)
from session_reaper.report.model import Report
from session_reaper.runs.fleet import publish_to_hub
from session_reaper.runs.plan import RunPlan
from session_reaper.runs.rendering import Rendered, render
from session_reaper.settings import Notify, Settings
from session_reaper.summary.digest import digest_report
from session_reaper.summary.message import Summary

# CloudWatch cuts lines of more than 1 MB, which would make the JSON invalid.
_LOG_BYTES: Final = 1_000_000

# Each is a share of the time that is left when its step begins.
_LOAD_SHARE: Final = 0.2
_TAGS_SHARE: Final = 0.15
_PUBLISH_SHARE: Final = 0.8
_OUTCOMES_SHARE: Final = 0.5
_DOCUMENT_SHARE: Final = 0.15  # to describe sessions; encoding them takes longer


def notify(
    report: Report, logs: Sequence[OutcomeLog], plan: RunPlan, *, function_arn: str, end: Deadline
) -> tuple[Report, dict[str, Any]]:
    """Publish the summary, log the run, and save what was reported.

    Returns the report and its document as they were published. Raises PublishError at the end if a
    topic did not take the summary, and InternalError if a bug made it a minimal one.
    """
    request, settings = plan.request, plan.settings
    # Manual runs with options are always reported and do not update the notification state.
    table = settings.memory_table if request.is_usual and report.targets else None
    rendered = Rendered()
    try:
        within = end.capped_at_share(_LOAD_SHARE, STATE_SECONDS)
        known = load_known_issues(table, within) if table else ()
        if known is None:
            report = replace(report, state_problem=UNREADABLE)
        now = time()
        report, update = compare_with_known(
            with_stable_keys(report, function_arn),
            known or (),
            now,
            settings.remind_after,
            covers_all=not request.targets,
        )
        tags = end.capped_at_share(_TAGS_SHARE)
        rendered = render(
            report,
            partial(digest_report, report, settings.location, tags),
            now,
            is_due=report.should_notify or settings.notify is Notify.ALWAYS,
            bug="a bug in the summary",
        )
        failures = _publish(report, rendered.summary, settings, end)
    finally:
        # Even after a bug above, the log must contain what the run did.
        document = _log_run(report, rendered, logs, settings, end)
    if table:
        if settings.topic_arn in failures:
            update = mark_undelivered(report, known or (), now)
        save_state_update(table, update, end)
    publish_to_hub(
        report,
        settings,
        end,
        verdict=rendered.verdict,
        is_usual=request.is_usual and not request.targets,
        function_arn=function_arn,
    )
    for failure in failures.values():
        raise failure
    if rendered.bug is not None:
        raise rendered.bug
    return report, document


def _publish(
    report: Report, summary: Summary | None, settings: Settings, end: Deadline
) -> Mapping[str, PublishError]:
    """Publish the summary, if there is one; return the error of each topic that failed."""
    if summary is None:
        return {}
    topics = [settings.topic_arn]
    if report.is_critical and settings.critical_topic_arn:
        topics.append(settings.critical_topic_arn)
    return publish(summary, topics, end.capped_at_share(_PUBLISH_SHARE, PUBLISH_SECONDS))


def _log_run(
    report: Report,
    rendered: Rendered,
    logs: Sequence[OutcomeLog],
    settings: Settings,
    end: Deadline,
) -> dict[str, Any]:
    """Log the outcomes that are not logged yet, and the run; return the report's document."""
    log_remaining(logs, end.capped_at_share(_OUTCOMES_SHARE))
    if settings.target_metrics:
        for target in report.targets:
            emit_target_metrics(target)
    document = to_document(
        report,
        end.capped_at_share(_DOCUMENT_SHARE),
        verdict=rendered.verdict,
        steps=rendered.digest.steps_as_text if rendered.digest else (),
    )
    logger.info("run", extra=truncate_document(document, _LOG_BYTES))
    return document
