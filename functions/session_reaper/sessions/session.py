"""The client sessions and slots of one server, as a snapshot contains them."""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.redaction import redact


class State(StrEnum):
    """The states of `pg_stat_activity.state` that a rule may name.

    Sessions in other states are protected: NULL (a background process), `disabled`
    (`track_activities` is off) and `starting` (PostgreSQL 18, not authenticated yet).
    """

    ACTIVE = "active"
    IDLE = "idle"
    IDLE_IN_TRANSACTION = "idle in transaction"
    IDLE_IN_TRANSACTION_ABORTED = "idle in transaction (aborted)"
    FASTPATH = "fastpath function call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The values that must be unchanged when a session is signalled.

    The timestamps are the server's own text, to the microsecond, and are sent back unchanged.
    """

    pid: int
    backend_start: str
    xact_start: str | None
    state_change: str | None
    query_start: str | None
    state: State

    def continues(self, earlier: "Identity") -> bool:
        """Return whether this is the same transaction, or the same pause between two, as `earlier`."""
        return (self.pid, self.backend_start, self.xact_start) == (
            earlier.pid,
            earlier.backend_start,
            earlier.xact_start,
        ) and (self.xact_start is not None or self == earlier)


OWN_APPLICATION_NAME: Final = "session-reaper"
"""The application name of our own connections."""


class Names(NamedTuple):
    """The names of a session that patterns are compared with."""

    role: str | None
    database: str
    application: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitGuard:
    """What must hold of a session's wait when it is signalled; None: anything.

    A session that begins to wait keeps its identity, so the wait is checked beside it.
    """

    wait_event_type: str | None = None
    wait_event: str | None = None
    other_than: str | None = None  # a wait event that it must not be in
    waits_for_lock: bool | None = False  # any process of its parallel group


class Held:
    """Keeps a claim on the memory that it takes for as long as it is there."""

    __slots__ = ("_claim",)  # no field: it is no part of the value

    def hold(self, claim: object) -> None:
        """Keep a claim."""
        object.__setattr__(self, "_claim", claim)


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class Session(Held):
    """One client backend other than our own; ages are seconds by the server's clock, at least 0."""

    identity: Identity
    role: str | None  # None if it was dropped
    database: str
    application: str  # "" if the client set none
    client: str | None  # None on a Unix socket
    query: str = field(repr=False)  # with its literals; redact it before it leaves the function
    query_id: str | None = None  # None before PostgreSQL 14, or if the server computes none
    idle_seconds: float  # since state_change
    transaction_seconds: float | None  # since xact_start
    connected_seconds: float  # since backend_start
    query_seconds: float | None  # since query_start; None unless active
    waiting_for_client: bool  # active, wait event ClientRead, and not the rows of a COPY
    # Recordings of older releases lack the following three fields.
    wait_event_type: str | None = None  # of its own process; None if it waits for nothing
    wait_event: str | None = None
    waits_for_lock: bool = False  # itself or one of its parallel workers
    xid_age: int | None  # transactions since it got its xid; None without an xid
    xmin_age: int | None  # transactions since its snapshot; None without a snapshot
    locks: int | None  # granted on objects; None if not in the scope
    waiters: tuple[Waiter, ...]  # longest first; empty if not in the scope
    superuser: bool
    replication: bool
    own_role: bool
    signalable: bool  # by our role

    @property
    def state(self) -> State:
        """Return the state at the time of the snapshot."""
        return self.identity.state

    @cached_property  # up to 1.5 ms each, and needed for two lines of the log and the report
    def redacted_query(self) -> str:
        """The query as it may be shown."""
        return redact(self.query)

    @property
    def role_label(self) -> str:
        """Return the role, or what stands for one that was dropped."""
        return "(role dropped)" if self.role is None else self.role

    @property
    def names(self) -> Names:
        """Return the names that patterns are compared with."""
        return Names(self.role, self.database, self.application)

    @property
    def pinned(self) -> int:
        """Return by how many transactions the session holds vacuum back."""
        return max(self.xid_age or 0, self.xmin_age or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Connection slots. `used` counts client backends other than our own connection."""

    max: int
    reserved: int  # for superusers, by reserved_connections, or by the provider
    used: int

    @property
    def usable(self) -> int:
        """Return the number of slots that ordinary roles can use."""
        return self.max - self.reserved

    def __str__(self) -> str:
        return f"slots {self.used}/{self.usable}"
