"""Publishes why a scheduled run could not begin; silence would look like a quiet run."""

import re
from hashlib import sha256
from time import time
from typing import Final

from session_reaper.aws.dynamodb import STATE_SECONDS, load_known_issues, save_state_update
from session_reaper.aws.sns import PUBLISH_SECONDS, publish
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.observability import emit_count, logger
from session_reaper.policy.enums import Mode
from session_reaper.report.known_issues import KnownIssue, StateUpdate, report_again
from session_reaper.report.model import IssueKey, IssueKind, Report
from session_reaper.report.text import printable
from session_reaper.runs.fleet import publish_to_hub
from session_reaper.settings import ErrorSettings, read_error_settings
from session_reaper.summary.digest import Digest, digest_report
from session_reaper.summary.message import Summary, summarize
from session_reaper.targets.target import TargetKey

_STACK: Final = TargetKey("configuration")
_LOAD_SHARE: Final = 0.2  # of the time left
_PUBLISH_SHARE: Final = 0.4  # of the time left, for each topic

# The error that this process has published, for stacks without a table.
_published: list[KnownIssue] = []


def forget_configuration_error() -> None:
    """Let the same error count as new, because the configuration was valid meanwhile."""
    _published.clear()


def report_configuration_error(
    error: ConfigurationError, run_id: str, end: Deadline, function_arn: str | None
) -> None:
    """Publish an error, unless it was published less than REMIND_AFTER ago. Raises no PublishError.

    An invalid TOPIC_ARN, or one that takes no message, is replaced by CRITICAL_TOPIC_ARN.
    """
    emit_count("ConfigurationErrors")
    settings = read_error_settings()
    report = Report(
        run_id=run_id, mode=Mode.OFF, targets=(), configuration_error=printable(str(error))
    )
    digest = digest_report(report, settings.location)
    _publish_once(error, digest, settings, end)
    # Outside of Lambda there may be no ARN; a topic's has the same account and region.
    arn = function_arn or next(iter(settings.topic_arns), settings.fleet_topic_arn) or ""
    publish_to_hub(
        report, settings, end, verdict=str(digest.verdict), is_usual=True, function_arn=arn
    )


def _publish_once(
    error: ConfigurationError, digest: Digest, settings: ErrorSettings, end: Deadline
) -> None:
    now = time()
    key = IssueKey(IssueKind.CONFIGURATION, (_hash_error(error),))
    table = settings.memory_table
    within = end.capped_at_share(_LOAD_SHARE, STATE_SECONDS)
    loaded = load_known_issues(table, within) if table else None
    found = _published if loaded is None else loaded
    known = [issue for issue in found if issue.target == _STACK]
    earlier = next((issue for issue in known if issue.key == key), None)
    is_due = earlier is None or not 0 <= now - earlier.reported_at < settings.remind_after
    is_published = is_due and _publish(summarize(digest, now), settings, end)
    logger.error("invalid configuration", extra={"error": str(error), "published": is_published})
    if not is_published:
        return
    issue = report_again(_STACK, key, earlier, now)
    _published[:] = [issue]
    if table:
        # Another error ends, so that it counts as new if it returns.
        ended = tuple(each for each in known if each.key != key)
        save_state_update(table, StateUpdate(reported=(issue,), ended=ended), end)


def _hash_error(error: ConfigurationError) -> str:
    """Return the same text for the same error, however long a call was waited for."""
    text = re.sub(r"\b\d+\.\d+ s\b", "", str(error))
    return sha256(text.encode()).hexdigest()[:16]


def _publish(summary: Summary, settings: ErrorSettings, end: Deadline) -> bool:
    """Publish to the first topic that takes the summary; return whether one did."""
    for topic_arn in settings.topic_arns:
        within = end.capped_at_share(_PUBLISH_SHARE, PUBLISH_SECONDS)
        failures = publish(summary, [topic_arn], within)
        if not failures:
            return True
        logger.error("cannot publish", extra={"error": str(failures[topic_arn])})
    return False
