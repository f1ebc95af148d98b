"""The summary of a run in every form in which it is published."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import gmtime, strftime
from typing import Final

from session_reaper.report.model import Severity
from session_reaper.report.text import printable
from session_reaper.summary.digest import Digest
from session_reaper.summary.email import render_email
from session_reaper.summary.slack import render_notification, render_webhook_payload

MAX_SUBJECT: Final = 99  # characters: SNS takes less than 100
_MAX_MESSAGE: Final = 250_000  # bytes of the JSON message: SNS takes 262,144 with the attributes
_MAX_NAMES: Final = 20_000  # bytes of the names to filter by


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A summary as it is published."""

    subject: str
    email: str
    notification: str  # JSON for Amazon Q Developer
    webhook: str  # JSON for an incoming webhook
    severity: str  # subscribers can filter by this and the next two
    status: str
    targets: tuple[str, ...]


def summarize(digest: Digest, now: float) -> Summary:
    """Render a digest in every form; `now` is in seconds since 1970."""
    critical = "CRITICAL: " if digest.severity is Severity.CRITICAL else ""
    subject = printable(critical + digest.summary, MAX_SUBJECT)
    notification = render_notification(digest, subject, strftime("%Y-%m-%d", gmtime(now)))
    webhook = render_webhook_payload(digest, subject)
    shown = (printable(target.report.name, 100) for target in digest.shown)
    names = tuple(_fit_names(shown, _MAX_NAMES))
    taken = sum(map(_count_json_bytes, (notification, webhook, *names)))
    return Summary(
        subject=subject,
        email=render_email(digest, _MAX_MESSAGE - taken),
        notification=notification,
        webhook=webhook,
        severity=digest.severity.value,
        status=digest.report.status.value,
        targets=names,
    )


def _fit_names(names: Iterable[str], most: int) -> Iterator[str]:
    for name in names:
        most -= _count_json_bytes(name)
        if most < 0:
            return
        yield name


def _count_json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) + len(", ")
