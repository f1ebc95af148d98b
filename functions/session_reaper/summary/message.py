"""The summary of a run in every form in which it is published."""

import json
from collections.abc import Iterable, Iterator
from time import gmtime, strftime
from typing import Final, NamedTuple

from session_reaper.report.model import Outcome, Severity
from session_reaper.report.text import printable
from session_reaper.summary.digest import Digest
from session_reaper.summary.email import render_email
from session_reaper.summary.groups import TargetDigest
from session_reaper.summary.holders import find_remaining_holders
from session_reaper.summary.slack import render_notification, render_webhook_payload

MAX_SUBJECT: Final = 99  # characters: SNS takes less than 100
_MAX_MESSAGE: Final = 250_000  # bytes of the JSON message: SNS takes 262,144 with the attributes
_MAX_NAMES: Final = 20_000  # bytes of the names to filter by


class Summary(NamedTuple):
    """A summary as it is published."""

    subject: str
    email: str
    notification: str  # JSON for Amazon Q Developer
    webhook: str  # JSON for an incoming webhook
    severity: str  # subscribers can filter by this and everything below
    status: str
    targets: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()  # of the sessions that the summary is about
    roles: tuple[str, ...] = ()


def summarize(digest: Digest, now: float) -> Summary:
    """Render a digest in every form; `now` is in seconds since 1970."""
    critical = "CRITICAL: " if digest.report.severity is Severity.CRITICAL else ""
    subject = printable(critical + digest.summary, MAX_SUBJECT)
    notification = render_notification(digest, subject, strftime("%Y-%m-%d", gmtime(now)))
    webhook = render_webhook_payload(digest, subject)
    targets = tuple(_fit_names((t.report.name for t in digest.shown), _MAX_NAMES))
    names = [*_list_names(digest.shown)]
    applications = tuple(_fit_names((application for application, _ in names), _MAX_NAMES // 2))
    roles = tuple(_fit_names((role for _, role in names), _MAX_NAMES // 2))
    attributes = (*targets, *applications, *roles)
    taken = sum(map(_count_json_bytes, (notification, webhook, *attributes)))
    return Summary(
        subject=subject,
        email=render_email(digest, _MAX_MESSAGE - taken),
        notification=notification,
        webhook=webhook,
        severity=digest.report.severity.value,
        status=digest.report.status.value,
        targets=targets,
        applications=applications,
        roles=roles,
    )


def _list_names(targets: Iterable[TargetDigest]) -> Iterator[tuple[str, str]]:
    """List application and role of a summary's sessions, empty where there is none."""
    for target in targets:
        report = target.report
        for result in report.results:
            if result.outcome is not Outcome.ESCAPED:
                session = result.decision.session
                yield session.application, session.role or ""
        for holder in find_remaining_holders(report):
            yield holder.application, holder.role or ""
        for group in report.protected_to_report:
            yield group.application, group.role or ""
        for blocker in report.blockers:
            if blocker.decision is not None:
                session = blocker.decision.session
                yield session.application, session.role or ""
            yield from ((waiter.application, waiter.role) for waiter in blocker.waiters)


def _fit_names(names: Iterable[str], most: int) -> Iterator[str]:
    """Yield each name once, as long as they fit into so many bytes."""
    for name in dict.fromkeys(printable(name, 100) for name in names if name):
        most -= _count_json_bytes(name)
        if most < 0:
            return
        yield name


def _count_json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) + len(", ")
