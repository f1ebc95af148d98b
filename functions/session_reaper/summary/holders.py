"""The groups of sessions that hold the slots of a full or nearly full server."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from session_reaper.policy.durations import format_duration
from session_reaper.report.model import Outcome, TargetReport
from session_reaper.report.text import printable
from session_reaper.sessions.snapshot import Holder
from session_reaper.summary.groups import mask_client
from session_reaper.summary.prose import Name, Prose


def find_remaining_holders(report: TargetReport) -> Sequence[Holder]:
    """Return the groups that hold slots after the run, largest first; none if there is room."""
    if not report.is_crowded:
        return ()
    ended = Counter(
        (s.application, s.role, s.client and mask_client(s.client), s.state.value)
        for s in (r.decision.session for r in report.results if r.outcome is Outcome.TERMINATED)
    )
    remaining = (
        replace(holder, count=holder.count - ended[_get_key(holder)]) for holder in report.holders
    )
    return sorted((h for h in remaining if h.count > 0), key=lambda holder: -holder.count)


def _get_key(holder: Holder) -> tuple[str, str | None, str | None, str]:
    return (holder.application, holder.role, holder.client, holder.state)


def describe_holder(holder: Holder) -> Prose:
    """Write how many sessions of which application hold slots, in which state, and for how long."""
    client = "local" if holder.client is None else holder.client
    application = f"{holder.application or '(no name)'}@{client}"
    role = "(role dropped)" if holder.role is None else holder.role
    age = format_duration(holder.oldest_seconds)
    return (
        f"{holder.count} {holder.state}: ",
        Name(printable(application, 90)),
        " (role ",
        Name(printable(role, 63)),
        f"), oldest {age}",
    )
