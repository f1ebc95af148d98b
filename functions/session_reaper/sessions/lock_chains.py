"""Lock waits and the root blocker of each chain."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A session that waits for a blocker, directly or through other waiters."""

    pid: int
    role: str
    application: str
    seconds: float  # waited so far, at most the time that the blocker has been in its state


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A process that waits for a lock: a link of a chain, and a waiter if it is a session."""

    waiter: Waiter
    is_session: bool
    blocked_by: tuple[int, ...]  # pids; 0 is a prepared transaction


def map_waiters_by_root(waits: Iterable[Wait]) -> Mapping[int, tuple[Waiter, ...]]:
    """Map the pid of each root blocker, which itself waits for no lock, to its waiters.

    A session that waits is never a root, because ending it frees no other session. A deadlock has no
    root; the server resolves it. The waiting processes of one parallel query count as one waiter.
    """
    by_pid: dict[int, Wait] = {}
    for wait in waits:
        known = by_pid.get(wait.waiter.pid, wait)
        longest = max(known.waiter, wait.waiter, key=lambda waiter: waiter.seconds)
        both = tuple(dict.fromkeys(known.blocked_by + wait.blocked_by))
        by_pid[wait.waiter.pid] = replace(wait, waiter=longest, blocked_by=both)
    waiting_for: dict[int, list[int]] = defaultdict(list)
    for pid, wait in by_pid.items():
        for blocker in wait.blocked_by:
            waiting_for[blocker].append(pid)
    by_root = {}
    for root in waiting_for.keys() - by_pid.keys():
        waits_on_root = [by_pid[pid] for pid in _collect_waiters(root, waiting_for)]
        waiters = [wait.waiter for wait in waits_on_root if wait.is_session]
        if waiters:
            by_root[root] = tuple(sorted(waiters, key=_longest_first))
    return by_root


def _collect_waiters(root: int, waiting_for: Mapping[int, Iterable[int]]) -> set[int]:
    """Return the pids that wait for a root, directly or through other waiters."""
    seen: set[int] = set()
    new = {root}
    while new:
        new = {pid for each in new for pid in waiting_for.get(each, ())} - seen
        seen |= new
    return seen


def _longest_first(waiter: Waiter) -> tuple[float, int]:
    return (-waiter.seconds, waiter.pid)
