"""The one summary of a run, in each form that somebody reads."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import gmtime, strftime

from session_reaper.report.headline import write_summary_line
from session_reaper.report.model import Report
from session_reaper.report.text import printable
from session_reaper.settings import FunctionLocation
from session_reaper.summary.email import render_email
from session_reaper.summary.slack import render_notification, render_webhook_payload

MAX_SUBJECT = 99  # characters: SNS takes less than 100
MAX_MESSAGE = 250_000  # bytes of the JSON message: SNS takes 262,144 with everything around it
_MOST_NAMES = 20_000  # bytes of names to filter by


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is published."""

    subject: str
    email: str
    notification: str  # Amazon Q's JSON
    webhook: str  # an incoming webhook's JSON
    severity: str  # what subscribers can filter by: this, and the next two
    status: str
    targets: tuple[str, ...]


def summarize(report: Report, place: FunctionLocation | None, now: float) -> Summary:
    """The report as people read it; `now` is in seconds since 1970."""
    critical = "CRITICAL: " if report.is_critical else ""
    subject = printable(critical + write_summary_line(report), MAX_SUBJECT)
    chat = render_notification(report, subject, place, strftime("%Y-%m-%d", gmtime(now)))
    webhook = render_webhook_payload(report, subject, place)
    shown, _ = report.split_new_and_known()
    names = tuple(_fit_names((printable(target.name, 100) for target in shown), _MOST_NAMES))
    room = (
        MAX_MESSAGE
        - count_json_bytes(chat)
        - count_json_bytes(webhook)
        - sum(map(count_json_bytes, names))
    )
    return Summary(
        subject=subject,
        email=render_email(report, place, room),
        notification=chat,
        webhook=webhook,
        severity=report.severity,
        status=report.status.value,
        targets=names,
    )


def _fit_names(names: Iterable[str], most: int) -> Iterator[str]:
    for name in names:
        most -= count_json_bytes(name)
        if most < 0:
            return
        yield name


def count_json_bytes(text: str) -> int:
    """Bytes of a text within JSON."""
    return len(json.dumps(text, ensure_ascii=False).encode())
