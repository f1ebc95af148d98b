"""Renders the summary of a report, or a minimal one if a bug keeps it from being written."""

from collections.abc import Callable
from typing import NamedTuple

from session_reaper.errors import InternalError
from session_reaper.observability import log_bug
from session_reaper.report.model import Report
from session_reaper.summary.digest import Digest
from session_reaper.summary.message import Summary, summarize
from session_reaper.summary.minimal import summarize_minimally


class Rendered(NamedTuple):
    """The digest of a report and, if it is due, its summary; after a bug, a minimal one."""

    digest: Digest | None = None
    summary: Summary | None = None
    bug: InternalError | None = None

    @property
    def verdict(self) -> str:
        """The verdict in words, "" if a bug kept it from being found."""
        return str(self.digest.verdict) if self.digest else ""


def render(
    report: Report, make_digest: Callable[[], Digest], now: float, *, is_due: bool, bug: str
) -> Rendered:
    """Digest a report and, if it is due, write the summary.

    `bug`: the message under which a bug in this is logged; it is in the result, too.
    """
    digest: Digest | None = None
    try:
        digest = make_digest()
        return Rendered(digest=digest, summary=summarize(digest, now) if is_due else None)
    except Exception as error:  # noqa: BLE001 -- a bug must not hide what happened
        log_bug(bug, error)
        found = InternalError(error)
        minimal = summarize_minimally(report, found.kind) if is_due else None
        return Rendered(digest=digest, summary=minimal, bug=found)
