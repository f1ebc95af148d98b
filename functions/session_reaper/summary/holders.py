"""The groups of sessions that hold the slots of a full or nearly full server."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from session_reaper.policy.durations import format_duration
from session_reaper.policy.protections import Protection
from session_reaper.report.model import Outcome, TargetReport
from session_reaper.report.text import printable
from session_reaper.sessions.session import Session
from session_reaper.sessions.snapshot import Holder
from session_reaper.summary.groups import mask_client
from session_reaper.summary.prose import Name, Prose, name_role


def find_remaining_holders(report: TargetReport) -> Sequence[Holder]:
    """Return the groups that hold slots after the run, largest first; none if there is room."""
    if not report.is_crowded:
        return ()
    ended: dict[_GroupKey, list[Session]] = defaultdict(list)
    for result in report.results:
        if result.outcome is Outcome.TERMINATED:
            session = result.decision.session
            ended[_get_group(session)].append(session)
    remaining = (_leave_out(holder, ended[_get_key(holder)], report) for holder in report.holders)
    return sorted((h for h in remaining if h.count > 0), key=lambda holder: -holder.count)


def _leave_out(holder: Holder, ended: Sequence[Session], report: TargetReport) -> Holder:
    """Return a group without the sessions that ended, which were usually its oldest ones."""
    if not ended:
        return holder
    gone = {session.identity for session in ended}
    ages = {
        session.identity: session.idle_seconds
        for session in _list_known_sessions(report)
        if session.identity not in gone and _get_group(session) == _get_key(holder)
    }
    count = holder.count - len(ended)
    oldest = max(ages.values(), default=0.0) if len(ages) >= count else None
    return replace(holder, count=count, oldest_seconds=oldest)


def _list_known_sessions(report: TargetReport) -> Iterator[Session]:
    """List the sessions whose state the report knows; an escaped one has left its state."""
    for result in report.results:
        if result.outcome is not Outcome.ESCAPED:
            yield result.decision.session
    for decision in report.protected:
        yield decision.session


def find_protection_of_all(holder: Holder, report: TargetReport) -> Protection | None:
    """Return the most frequent protection of a group whose sessions all match a rule, if any."""
    found = Counter(
        decision.protection
        for decision in report.protected
        if _get_group(decision.session) == _get_key(holder)
    )
    return found.most_common(1)[0][0] if found.total() >= holder.count else None


_GroupKey = tuple[str, str | None, str | None, str]


def _get_key(holder: Holder) -> _GroupKey:
    return (holder.application, holder.role, holder.client, holder.state)


def _get_group(session: Session) -> _GroupKey:
    """Return the key of the group that a session belongs to."""
    client = session.client and mask_client(session.client)
    return (session.application, session.role, client, session.state.value)


def describe_holder(holder: Holder) -> Prose:
    """Write how many sessions of which application hold slots, in which state, and for how long."""
    client = "local" if holder.client is None else holder.client
    application = f"{holder.application or '(no name)'}@{client}"
    seconds = holder.oldest_seconds
    return (
        f"{holder.count} {holder.state}: ",
        Name(printable(application, 90)),
        " (",
        *(("not logged in yet",) if holder.is_logging_in else name_role(holder.role)),
        ")" if seconds is None else f"), oldest {format_duration(seconds)}",
    )
