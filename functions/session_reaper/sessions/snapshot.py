"""A snapshot of one server, its scope, and the verification after the signals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from session_reaper.grants import UNKNOWN_MEMBERSHIP, Membership
from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.session import Session, Slots, State


class SnapshotScope(NamedTuple):
    """The parts of a snapshot that the rules need; the rest stays on the server.

    `idle_floors`: the sessions that have been in a state for at least so many seconds. To read
    `waits` or `locks`, the server stops its lock manager for a moment. `query_ends`: the ends of
    queries that are too long, for their comment tags.
    """

    idle_floors: Mapping[State, float]
    waits: bool
    locks: bool
    query_ends: bool = False


NO_SESSIONS = SnapshotScope(idle_floors={}, waits=False, locks=False)
ALL_SESSIONS = SnapshotScope(idle_floors=dict.fromkeys(State, 0.0), waits=True, locks=True)


HOLDERS_FROM = 0.7
"""The share of the used slots from which a snapshot names the groups that hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A group of sessions that hold slots: the same application, role, client network and state.

    `client`: a /24 or, for IPv6, a /64 network; None for a Unix socket. `role`: None if it was
    dropped, or for logins in progress. `state` may be one that no rule can name. `oldest_seconds`:
    the longest time in the state; None if the run has ended some of the sessions, and the age of
    the others is unknown. `superuser`, `replication`: attributes of the role. `own_role`: it is the
    reaper's.
    """

    application: str
    role: str | None
    client: str | None
    state: str
    count: int
    oldest_seconds: float | None
    superuser: bool = False
    replication: bool = False
    own_role: bool = False

    @property
    def is_logging_in(self) -> bool:
        """Whether the sessions have not logged in yet, so that no rule can match them."""
        return self.state == "starting"

    @property
    def is_untracked(self) -> bool:
        """Whether the server does not know the sessions' state, so that no rule can match them."""
        return self.state == "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Distinguishes a running server from other servers, and from itself before a restart.

    `started` is the postmaster's start, `checkpointer` a pid. Moments are microseconds since 1970
    by the server's clock. When a backend crashes, every session ends and the checkpointer restarts,
    but not the postmaster. Addresses do not identify a server: a server may have several, and
    several servers may share one.
    """

    started: int
    checkpointer: int | None
    checkpointer_started: int | None

    def is_same(self, other: "ServerIdentity", *, hidden: bool) -> bool:
        """Return whether both are the same server.

        `hidden`: the server hides its processes from us, so only `started` is compared.
        """
        return self.started == other.started if hidden else self == other

    def is_later_than(self, moment: int) -> bool:
        """Return whether the server started after a moment."""
        return max(self.started, self.checkpointer_started or 0) > moment


class Verification(NamedTuple):
    """The signalled sessions that remain on a server, and the slots used at the same moment.

    `remaining`: the pids of sessions that exist, or still run their cancelled query. `can_see`: no
    session is hidden from us; `used` counts hidden ones, too.
    """

    server: ServerIdentity
    remaining: frozenset[int]
    can_see: bool
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of one server at one moment.

    `can_see`: our role sees the sessions of other roles; `hidden` is the number of those that it
    does not see. `can_signal`: it may signal all roles except superusers. `untracked`: client
    backends whose state is `disabled`. `reader`: the server is a replica. `behind_pooler`: the
    server shows the sessions of a pooler. `taken_at`: microseconds since 1970 by the server's
    clock. `holders`: the largest groups, if many slots are used. `lock_waiters`: the number of
    processes that wait for a lock; `prepared_waiters`: sessions that wait for a prepared
    transaction, if the scope has waits, at most a few hundred. `states`, and
    `oldest_idle_in_transaction` (seconds, with aborted ones), cover all client backends except our
    own; `sessions` only those in the scope.
    """

    role: str
    slots: Slots
    can_see: bool
    can_signal: bool
    untracked: int
    reader: bool
    behind_pooler: bool
    # Older recordings lack the values that have a default.
    hidden: int = 0
    server: ServerIdentity | None = None
    taken_at: int = 0
    membership: Membership = UNKNOWN_MEMBERSHIP
    states: Mapping[State, int] = field(default_factory=dict)
    oldest_idle_in_transaction: float = 0.0
    lock_waiters: int = 0
    prepared_waiters: tuple[Waiter, ...] = ()
    holders: tuple[Holder, ...] = ()
    sessions: tuple[Session, ...]
