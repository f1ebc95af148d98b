"""A snapshot of one server, its scope, and the verification after the signals."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from session_reaper.errors import UNKNOWN_MEMBERSHIP, Membership
from session_reaper.sessions.session import Session, Slots, State


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotScope:
    """The parts of a snapshot that the rules need; the rest stays on the server."""

    idle_floors: Mapping[State, float]  # the sessions in a state for at least so many seconds
    # Both stop the server's lock manager for a moment.
    waits: bool  # the waiters of each root blocker
    locks: bool  # the number of locks that each session holds


NO_SESSIONS = SnapshotScope(idle_floors={}, waits=False, locks=False)
ALL_SESSIONS = SnapshotScope(idle_floors=dict.fromkeys(State, 0.0), waits=True, locks=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Distinguishes a running server from other servers, and from itself before a restart.

    Moments are microseconds since 1970 by the server's clock. Addresses do not identify a server:
    a server may have several, and several servers may share one.
    """

    started: int  # of the postmaster
    # The crash of a backend ends every session and restarts the checkpointer, not the postmaster.
    checkpointer: int | None  # pid; None if the server shows no such process
    checkpointer_started: int | None

    def is_same(self, other: "ServerIdentity", *, hidden: bool) -> bool:
        """Return whether both are the same server.

        `hidden`: the server hides its processes from us, so only `started` is compared.
        """
        return self.started == other.started if hidden else self == other

    def is_later_than(self, moment: int) -> bool:
        """Return whether the server started after a moment."""
        return max(self.started, self.checkpointer_started or 0) > moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The signalled sessions that remain on a server, and the slots used at the same moment."""

    server: ServerIdentity
    remaining: frozenset[int]  # pids of sessions that exist, or still run their cancelled query
    used: int | None  # client backends other than our own; None if sessions are hidden from us


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of one server at one moment."""

    role: str  # our role
    slots: Slots
    can_see: bool  # other roles' sessions
    can_signal: bool  # sessions of every role except superusers
    untracked: int  # client backends whose state is `disabled`
    reader: bool  # in recovery: a replica
    behind_pooler: bool  # we are connected to a pooler, whose server shows the pooler's sessions
    # Recordings of older releases lack the following three.
    server: ServerIdentity | None = None
    taken_at: int = 0  # microseconds since 1970, by the server's clock
    membership: Membership = UNKNOWN_MEMBERSHIP
    # Of all client backends except our own connection; older recordings lack them too.
    states: Mapping[State, int] = field(default_factory=dict)
    oldest_idle_in_transaction: float = 0.0  # seconds, including aborted ones; 0 if there is none
    sessions: tuple[Session, ...]  # those that a rule could match, in no order
