"""Lock waits: the sessions that wait, and the root blocker of each chain."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A session that waits until another one ends, directly or behind others who do."""

    pid: int
    role: str
    application: str
    seconds: float  # in this wait; for a blocker no longer than it has been in its state


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A process that waits for a lock. Only sessions count as waiters; all are links of a chain."""

    waiter: Waiter
    is_session: bool
    blocked_by: tuple[int, ...]  # pids; 0 is a prepared transaction


def map_waiters_by_root(waits: Iterable[Wait]) -> Mapping[int, tuple[Waiter, ...]]:
    """Who waits on whom in the end: by the pid of a backend that waits on nobody itself.

    A session that waits is never a root: to end it frees nobody. A circle has no root; the server
    resolves it itself. Of a parallel query each process may wait: they are one session.
    """
    by_pid: dict[int, Wait] = {}
    for wait in waits:
        known = by_pid.get(wait.waiter.pid, wait)
        longest = max(known.waiter, wait.waiter, key=lambda waiter: waiter.seconds)
        both = tuple(dict.fromkeys(known.blocked_by + wait.blocked_by))
        by_pid[wait.waiter.pid] = replace(wait, waiter=longest, blocked_by=both)
    behind: dict[int, list[int]] = defaultdict(list)  # those who wait for a pid directly
    for pid, wait in by_pid.items():
        for ahead in wait.blocked_by:
            behind[ahead].append(pid)
    found = {}
    for root in behind.keys() - by_pid.keys():
        waiters = [
            by_pid[pid].waiter for pid in _collect_waiters(root, behind) if by_pid[pid].is_session
        ]
        if waiters:
            found[root] = tuple(sorted(waiters, key=_longest_first))
    return found


def _collect_waiters(root: int, behind: Mapping[int, Iterable[int]]) -> set[int]:
    """Return the pids that wait for a root, directly or behind others."""
    seen: set[int] = set()
    new = {root}
    while new:
        new = {pid for each in new for pid in behind.get(each, ())} - seen
        seen |= new
    return seen


def _longest_first(waiter: Waiter) -> tuple[float, int]:
    return (-waiter.seconds, waiter.pid)
