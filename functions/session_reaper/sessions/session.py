"""Client sessions of one server, as a snapshot shows them."""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.redaction import redact


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


class Held:
    """Keeps a claim on the memory that it takes for as long as it is there."""

    __slots__ = ("_claim",)  # no field: it is no part of the value

    def hold(self, claim: object) -> None:
        """Keep a claim."""
        object.__setattr__(self, "_claim", claim)


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class Session(Held):
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

    @cached_property  # up to 1.5 ms each, and needed for two lines of the log and the report
    def redacted_query(self) -> str:
        """The query as it may be shown."""
        return redact(self.query)

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

    def __str__(self) -> str:
        return f"slots {self.used}/{self.usable}"
