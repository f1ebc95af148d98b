"""A snapshot of one server, its scope, and the verification after the signals."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from session_reaper.errors import UNKNOWN_MEMBERSHIP, Membership
from session_reaper.sessions.session import Session, Slots, State


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotScope:
    """What a snapshot must contain; everything else stays on the server."""

    idle_floors: Mapping[State, float]  # the states, and how many seconds at least in each
    waits: bool  # the lock waits; reading them briefly blocks the server's lock manager
    locks: bool  # the number of locks of each session; as above


NO_SESSIONS = SnapshotScope(idle_floors={}, waits=False, locks=False)
ALL_SESSIONS = SnapshotScope(idle_floors=dict.fromkeys(State, 0.0), waits=True, locks=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Identifies one running server until it restarts.

    Times are microseconds since 1970 by the server's clock. An address does not identify a server:
    one server can have several, and several servers can share one.
    """

    started: int  # the postmaster
    # A crash of a backend ends every session and restarts this process under the same postmaster.
    checkpointer: int | None  # pid; None if the server does not show it
    checkpointer_started: int | None

    def is_same(self, other: "ServerIdentity", *, hidden: bool) -> bool:
        """Return whether both are one server; if `hidden`, only the postmasters can be compared."""
        return self.started == other.started if hidden else self == other

    def is_later_than(self, moment: int) -> bool:
        """Return whether the server started after this moment, so the earlier one is gone."""
        return max(self.started, self.checkpointer_started or 0) > moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The signalled sessions that remain on one server, and the slots used at that time."""

    server: ServerIdentity
    remaining: frozenset[int]  # pids that still exist or still run the cancelled query
    used: int | None  # client backends other than our own; None if sessions are hidden from us


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of one server at one time."""

    role: str  # ours
    slots: Slots
    can_see: bool  # other roles' sessions
    can_signal: bool  # sessions of every role except superusers
    untracked: int  # client backends whose state is `disabled`
    reader: bool  # in recovery, that is, a replica
    behind_pooler: bool  # the connection goes to a pooler, which shows its own sessions
    # Recordings of older releases lack the following fields.
    server: ServerIdentity | None = None
    taken_at: int = 0  # microseconds since 1970, by the server's clock
    membership: Membership = UNKNOWN_MEMBERSHIP
    # These count all client backends except our own connection.
    states: Mapping[State, int] = field(default_factory=dict)
    oldest_idle_in_transaction: float = 0.0  # seconds, aborted ones included; 0 if there is none
    sessions: tuple[Session, ...]  # those within the scope, in no order
