"""Lock waits: the waiters, and the root blocker of each chain."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

PREPARED: Final = 0
"""Stands for all prepared transactions among the pids of blockers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A session that waits for a lock, directly or behind other waiters, for `seconds`."""

    pid: int
    role: str
    application: str
    seconds: float


class Wait(NamedTuple):
    """A process that waits for a lock. Any process links a chain; only sessions count as waiters.

    `blocked_by`: pids, or PREPARED.
    """

    waiter: Waiter
    is_session: bool
    blocked_by: tuple[int, ...]


def map_waiters_by_root(waits: Iterable[Wait]) -> Mapping[int, tuple[Waiter, ...]]:
    """Map the pid of each root blocker to its waiters, longest wait first.

    A session that waits itself is not a root, because terminating it frees no waiter. A deadlock
    has no root, and the server resolves it. The processes of a parallel query count as one session.
    """
    by_pid: dict[int, Wait] = {}
    for wait in waits:
        known = by_pid.get(wait.waiter.pid, wait)
        longest = max(known.waiter, wait.waiter, key=lambda waiter: waiter.seconds)
        blockers = tuple(dict.fromkeys(known.blocked_by + wait.blocked_by))
        by_pid[wait.waiter.pid] = wait._replace(waiter=longest, blocked_by=blockers)
    waiting_for: dict[int, list[int]] = defaultdict(list)  # by the pid of the direct blocker
    for pid, wait in by_pid.items():
        for blocker in wait.blocked_by:
            waiting_for[blocker].append(pid)
    waiters_by_root = {}
    found: dict[tuple[int, ...], tuple[Waiter, ...]] = {}  # by the pids that wait directly
    for root in waiting_for.keys() - by_pid.keys():
        direct = tuple(waiting_for[root])
        if direct not in found:
            chain = [by_pid[pid] for pid in _collect_waiters(root, waiting_for)]
            waiters = [wait.waiter for wait in chain if wait.is_session]
            found[direct] = tuple(sorted(waiters, key=lambda waiter: (-waiter.seconds, waiter.pid)))
        if found[direct]:
            waiters_by_root[root] = found[direct]
    return waiters_by_root


def _collect_waiters(root: int, waiting_for: Mapping[int, Iterable[int]]) -> set[int]:
    """Return the pids that wait for a root, directly or through other waiters."""
    seen: set[int] = set()
    new = {root}
    while new:
        new = {pid for each in new for pid in waiting_for.get(each, ())} - seen
        seen |= new
    return seen
