"""What was seen on one server."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from session_reaper.errors import UNKNOWN_MEMBERSHIP, Membership


class State(StrEnum):
    """The states of `pg_stat_activity.state` that a rule may name.

    The others are protected: NULL (a background process), `disabled` (`track_activities` is off:
    what it does is unknown) and `starting` (PostgreSQL 18, not signed in yet).
    """

    ACTIVE = "active"
    IDLE = "idle"
    IDLE_IN_TRANSACTION = "idle in transaction"
    IDLE_IN_TRANSACTION_ABORTED = "idle in transaction (aborted)"
    FASTPATH = "fastpath function call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What must all still hold when a session is signalled.

    The moments are the server's own text, to the microsecond, and go back to it unread.
    """

    pid: int
    backend_start: str
    xact_start: str | None
    state_change: str | None
    query_start: str | None
    state: State

    def continues(self, earlier: "Identity") -> bool:
        """Whether this is the same transaction, or the same idling between two, looked at later."""
        return (self.pid, self.backend_start, self.xact_start) == (
            earlier.pid,
            earlier.backend_start,
            earlier.xact_start,
        ) and (self.xact_start is not None or self == earlier)


class Names(NamedTuple):
    """What sessions share, and patterns are held against."""

    role: str
    database: str
    application: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One client backend other than our own. Ages are seconds by the server's clock, never < 0."""

    identity: Identity
    role: str
    database: str
    application: str  # "" where the client gave none
    client: str | None  # None on a Unix socket
    query: str = field(repr=False)  # raw: holds literals, must not leave without redaction
    query_id: str | None = None  # 64 bits; None before 14, or if the server computes none
    idle_seconds: float  # since state_change
    transaction_seconds: float | None  # since xact_start
    connected_seconds: float  # since backend_start
    query_seconds: float | None  # since query_start; None unless active
    waiting_for_client: bool  # active, its wait event is ClientRead, and no COPY reads from there
    xid_age: int | None  # transactions since it took its xid; None if it has none
    xmin_age: int | None  # transactions since its snapshot; None if it has none
    locks: int | None  # granted on objects; None if nobody asked
    waiters: tuple[Waiter, ...]  # longest first; empty if nobody asked
    superuser: bool
    replication: bool
    own_role: bool
    signalable: bool  # by our role

    @property
    def state(self) -> State:
        """The state it was in when we looked."""
        return self.identity.state

    @property
    def names(self) -> Names:
        """Its names."""
        return Names(self.role, self.database, self.application)

    @property
    def pinned(self) -> int:
        """By how many transactions it holds vacuum back."""
        return max(self.xid_age or 0, self.xmin_age or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Connection slots. `used` counts client backends other than our own connection."""

    max: int
    reserved: int  # every kind: superuser, reserved_connections, the provider's
    used: int

    @property
    def usable(self) -> int:
        """What ordinary roles can use."""
        return self.max - self.reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a look has to bring; the rest stays on the server."""

    idle_floors: Mapping[State, float]  # sessions in these states, for at least so many seconds
    waits: bool  # who waits on whom: costs the server a moment of its lock manager
    locks: bool  # how many each holds: as above


NOTHING = Scope(idle_floors={}, waits=False, locks=False)  # but the slots and our rights
EVERYTHING = Scope(idle_floors=dict.fromkeys(State, 0.0), waits=True, locks=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Tells one running server from another, and from itself before a restart.

    Moments are microseconds since 1970 by the server's clock. An address would not do: one server
    has several, and behind one of them stand several servers.
    """

    started: int  # the postmaster
    # A crash of one backend restarts this process, and ends every session, under the same postmaster.
    checkpointer: int | None  # pid; None if the server shows no such process
    checkpointer_started: int | None

    def is_same(self, other: "ServerIdentity", *, hidden: bool) -> bool:
        """Return whether both are one server; with `hidden` its processes cannot be compared."""
        return self.started == other.started if hidden else self == other

    def is_later_than(self, moment: int) -> bool:
        """Return whether it began to run after a moment: then it cannot have been there before."""
        return max(self.started, self.checkpointer_started or 0) > moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What is left of the signalled sessions, and the slots used at that moment, on one server."""

    server: ServerIdentity
    remaining: frozenset[int]  # pids: still there, or still at the query that was cancelled
    used: int | None  # client backends other than our own; None if sessions are hidden from us


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at one server."""

    role: str  # ours
    slots: Slots
    can_see: bool  # other roles' sessions
    can_signal: bool  # sessions of every role that is no superuser
    untracked: int  # client backends whose state is `disabled`
    reader: bool  # in recovery: a replica
    behind_pooler: bool  # we talk to a pooler: what it shows are its own sessions
    # A recording of an older release has none of these.
    server: ServerIdentity | None = None
    taken_at: int = 0  # microseconds since 1970, by the server's clock
    membership: Membership = UNKNOWN_MEMBERSHIP
    # Of all client backends but our own connection.
    states: Mapping[State, int] = field(default_factory=dict)
    oldest_idle_in_transaction: float = 0.0  # seconds, aborted or not; 0 if none is
    sessions: tuple[Session, ...]  # those that a rule could match, in no order


def waiters_by_root(waits: Iterable[Wait]) -> Mapping[int, tuple[Waiter, ...]]:
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
            by_pid[pid].waiter for pid in _all_behind(root, behind) if by_pid[pid].is_session
        ]
        if waiters:
            found[root] = tuple(sorted(waiters, key=_longest_first))
    return found


def _all_behind(root: int, behind: Mapping[int, Iterable[int]]) -> set[int]:
    """Return the pids that wait for a root, directly or behind others."""
    seen: set[int] = set()
    new = {root}
    while new:
        new = {pid for each in new for pid in behind.get(each, ())} - seen
        seen |= new
    return seen


def _longest_first(waiter: Waiter) -> tuple[float, int]:
    return (-waiter.seconds, waiter.pid)
