"""The summary of a run whose full summary a bug keeps from being written.

It uses as little of the other code as possible, because any of it may have the bug.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

from session_reaper.report.headline import OUTCOME_PHRASES
from session_reaper.report.model import Report, Severity, TargetReport, TargetStatus
from session_reaper.summary.message import MAX_SUBJECT, Summary

_NAME_LENGTH: Final = 80
_MOST_LINES: Final = 500  # of targets, in the email
_MOST_IN_SLACK: Final = 2_900  # characters: a section of a webhook's message takes 3,000


def summarize_minimally(report: Report, bug: str) -> Summary:
    """Count what happened on each target; `bug` is the type of the exception."""
    is_critical = any(target.is_critical for target in report.targets)
    severity = Severity.CRITICAL if is_critical else Severity.WARNING
    subject = f"{'CRITICAL: ' if is_critical else ''}session-reaper has a bug: {_count(report)}"
    text = "\n".join(_write_lines(report, bug))
    short = text[:_MOST_IN_SLACK].rpartition("\n")[0]
    content = {"textType": "client-markdown", "title": subject, "description": short}
    notification = {"version": "1.0", "source": "custom", "content": content}
    section = {"type": "section", "text": {"type": "mrkdwn", "text": short}}
    return Summary(
        subject=subject[:MAX_SUBJECT],
        email=text,
        notification=json.dumps(notification),
        webhook=json.dumps({"text": subject, "blocks": [section]}),
        severity=severity.value,
        status=report.status.value,
    )


def _write_lines(report: Report, bug: str) -> Iterator[str]:
    yield (
        f"ACTION NEEDED: A bug in session-reaper ({bug}) keeps the summary from being written. The log"
        " has the outcome of each session, and the traceback: please report it."
    )
    yield f"All targets: {_count(report)}."
    targets = sorted(report.targets, key=lambda target: target.status is TargetStatus.OK)
    for target in targets[:_MOST_LINES]:
        # Only characters that no reader takes for markup, a link or a line break.
        name = re.sub(r"[^\w ./-]", "?", target.name[:_NAME_LENGTH])
        yield f"{name}: {target.status}, {_count(target)}"
    if len(targets) > _MOST_LINES:
        yield f"and {len(targets) - _MOST_LINES} more targets"
    yield f"Run {report.run_id}, mode {report.mode}."
    yield ""


def _count(report: Report | TargetReport) -> str:
    counts = [(report.counts[outcome], phrase) for outcome, phrase in OUTCOME_PHRASES.items()]
    return ", ".join(f"{number} {phrase}" for number, phrase in counts if number) or "no sessions"
