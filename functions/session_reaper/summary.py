"""The one summary of a run, in each form that somebody reads."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import gmtime, strftime

from session_reaper.email_text import email
from session_reaper.report import Report, clean
from session_reaper.settings import Place
from session_reaper.slack import notification, webhook_payload

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


def summarize(report: Report, place: Place | None, now: float) -> Summary:
    """The report as people read it; `now` is in seconds since 1970."""
    critical = "CRITICAL: " if report.is_critical else ""
    subject = clean(critical + report.summary, MAX_SUBJECT)
    chat = notification(report, subject, place, strftime("%Y-%m-%d", gmtime(now)))
    webhook = webhook_payload(report, subject, place)
    shown, _ = report.told_apart()
    names = tuple(_fitting((clean(target.name, 100) for target in shown), _MOST_NAMES))
    room = MAX_MESSAGE - size(chat) - size(webhook) - sum(map(size, names))
    return Summary(
        subject=subject,
        email=email(report, place, room),
        notification=chat,
        webhook=webhook,
        severity=report.severity,
        status=report.status.value,
        targets=names,
    )


def _fitting(names: Iterable[str], most: int) -> Iterator[str]:
    for name in names:
        most -= size(name)
        if most < 0:
            return
        yield name


def size(text: str) -> int:
    """Bytes of a text within JSON."""
    return len(json.dumps(text, ensure_ascii=False).encode())
