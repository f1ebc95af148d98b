"""Recognises a parallel dump by its shared snapshot, whatever its application name."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from session_reaper.sessions.session import Session, State


def find_parallel_dumps(sessions: Iterable[Session]) -> frozenset[int]:
    """Return the pids of the sessions that belong to a parallel dump.

    The leader of `pg_dump --jobs` exports its snapshot and is idle in transaction from then on, as
    is a worker that has no table left to copy. The workers connect after the leader began its
    transaction, and import its snapshot, so all have the same xmin. None of them writes, so none
    has an xid. At least one worker must be at work.

    Other sessions can meet all these conditions by chance, which only protects them.
    """
    groups: dict[object, list[Session]] = defaultdict(list)
    for each in sessions:
        if each.xmin_age is not None and each.xid_age is None:
            origin = (each.role, each.database, each.application, each.client)
            groups[origin, each.xmin_age].append(each)
    found = (_find_members(group) for group in groups.values() if len(group) > 1)
    return frozenset(chain.from_iterable(found))


def _find_members(group: Sequence[Session]) -> Iterator[int]:
    """Yield the pids of a dump's leader and workers among sessions with the same snapshot."""
    connected = [session.connected_seconds for session in group if _is_working(session)]
    newest = min(connected, default=math.inf)
    began = {
        session.identity.pid: session.transaction_seconds
        for session in group
        if session.state is State.IDLE_IN_TRANSACTION
        and session.transaction_seconds is not None
        and newest < session.transaction_seconds
    }
    if not began:
        return
    # Each of these may be the leader, and the workers connected after it began.
    first = max(began.values())
    for session in group:
        if session.identity.pid in began or session.connected_seconds < first:
            yield session.identity.pid


_WORK = re.compile(r"\s*(copy|lock\s+table)\b", re.IGNORECASE)
# Large objects are read by fastpath calls, which leave the query before them: the cursor's up to
# 16, and from 17 on that by which libpq finds the functions.
_READS_LARGE_OBJECTS = re.compile(
    r"fetch \d+ in (bloboid|looid)\b|select proname, oid from pg_catalog\.pg_proc\b", re.IGNORECASE
)
_FROM_CLIENT = re.compile(r"\bfrom\s+stdin\b", re.IGNORECASE)
_LONGEST_PAUSE = 10.0  # seconds between two tables; a client that stopped must not stay protected


def _is_working(session: Session) -> bool:
    """Return whether the session copies tables or large objects to its client, or has just done so.

    The server cuts long texts, so TO STDOUT may be missing after a long list of columns.
    """
    if session.state is State.FASTPATH:
        return True
    is_pausing = (
        session.state is State.IDLE_IN_TRANSACTION and session.idle_seconds < _LONGEST_PAUSE
    )
    if is_pausing and _READS_LARGE_OBJECTS.match(session.query):
        return True
    return (
        (session.state is State.ACTIVE or is_pausing)
        and _WORK.match(session.query) is not None
        and _FROM_CLIENT.search(session.query) is None
    )
