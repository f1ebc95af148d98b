"""The guard's checks on a session's wait, which can change while its identity does not."""

from collections.abc import Iterable, Iterator
from typing import Final

from session_reaper.policy.model import Match
from session_reaper.policy.patterns import matches_any, to_like, widen_classes
from session_reaper.sessions.session import Session, WaitGuard

CLIENT_READ: Final = "ClientRead"
"""The wait event of `waiting_for_client`."""
LOCK: Final = "Lock"
"""The wait event type of the sessions that wait for a lock."""


def guard_wait(session: Session, match: Match, keeping: Iterable[Match]) -> WaitGuard:
    """Return the conditions under which the session's wait still meets the rule that condemns it.

    `match` are the conditions of this rule; `keeping` those of earlier `keep` rules that only the
    wait does not meet.
    """
    keeping = tuple(keeping)
    is_own_type = session.wait_event_type is not None and matches_any(
        match.wait_event_type, session.wait_event_type
    )
    waits = tuple(sorted({wait for kept in keeping for wait in _list_waits(kept, session)}))
    # These globs match more than the rules do. If one matches the wait of now, no other wait is
    # safe.
    is_bound = session.wait_event is not None and matches_any(
        waits, f"{session.wait_event_type}:{session.wait_event}"
    )
    other_than = None
    if match.waiting_for_client is False and session.wait_event != CLIENT_READ:
        other_than = CLIENT_READ
    waits_for_lock = None if is_own_type else bool(match.wait_event_type)
    if not session.waits_for_lock and any(matches_any(k.wait_event_type, LOCK) for k in keeping):
        waits_for_lock = False
    wait_event = session.wait_event if is_bound or match.wait_event else None
    return WaitGuard(
        wait_event_type=session.wait_event_type if is_bound or is_own_type else None,
        wait_event=CLIENT_READ if match.waiting_for_client else wait_event,
        other_than=other_than,
        waits_for_lock=waits_for_lock,
        none_of=() if is_bound else tuple(map(to_like, waits)),
    )


def _list_waits(match: Match, session: Session) -> Iterator[str]:
    """Write globs of `type:event` for at least the waits that a `keep` rule's conditions allow."""
    events = match.wait_event or ("*",)
    if match.waiting_for_client:
        if session.wait_event == CLIENT_READ:  # for the rows of a COPY
            return
        events = (CLIENT_READ,)
    kinds = match.wait_event_type or ("*",)
    if session.waits_for_lock and matches_any(kinds, LOCK):  # whatever its own wait is
        kinds = ("*",)
    for event in events:
        for kind in kinds:
            yield widen_classes(f"{kind}:{event}")
