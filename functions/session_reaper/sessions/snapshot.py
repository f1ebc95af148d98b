"""A snapshot of one server, its scope, and the verification after the signals."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from session_reaper.errors import UNKNOWN_MEMBERSHIP, Membership
from session_reaper.sessions.session import Session, Slots, State


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotScope:
    """What a look has to bring; the rest stays on the server."""

    idle_floors: Mapping[State, float]  # sessions in these states, for at least so many seconds
    waits: bool  # who waits on whom: costs the server a moment of its lock manager
    locks: bool  # how many each holds: as above


NO_SESSIONS = SnapshotScope(
    idle_floors={}, waits=False, locks=False
)  # but the slots and our rights
ALL_SESSIONS = SnapshotScope(idle_floors=dict.fromkeys(State, 0.0), waits=True, locks=True)


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
class Snapshot:
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
