"""The client sessions and slots of one server, as a snapshot contains them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

from session_reaper.sessions.comment_tags import read_tags
from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.redaction import redact


class State(StrEnum):
    """The values of `pg_stat_activity.state` that a rule may name.

    Sessions in other states are protected: NULL (a background process), `disabled`
    (`track_activities` is off, so the state is unknown) and `starting` (PostgreSQL 18: not logged
    in yet).
    """

    ACTIVE = "active"
    IDLE = "idle"
    IDLE_IN_TRANSACTION = "idle in transaction"
    IDLE_IN_TRANSACTION_ABORTED = "idle in transaction (aborted)"
    FASTPATH = "fastpath function call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The values of a session that must not have changed when it is signalled.

    Moments are the server's text, with microseconds, and are sent back unparsed.
    """

    pid: int
    backend_start: str
    xact_start: str | None
    state_change: str | None
    query_start: str | None
    state: State

    def continues(self, earlier: "Identity") -> bool:
        """Return whether this is a later state of the same transaction or the same idle time."""
        return (self.pid, self.backend_start, self.xact_start) == (
            earlier.pid,
            earlier.backend_start,
            earlier.xact_start,
        ) and (self.xact_start is not None or self == earlier)


OWN_APPLICATION_NAME: Final = "session-reaper"
"""The application name of our own connections."""


class Names(NamedTuple):
    """The names of a session that patterns are matched against."""

    role: str | None
    database: str
    application: str


class WaitGuard(NamedTuple):
    """The conditions on a session's wait when it is signalled; None: any.

    A session that begins to wait keeps its identity, so the wait is checked too.
    """

    wait_event_type: str | None = None
    wait_event: str | None = None
    other_than: str | None = None  # a wait event that it must not be in
    waits_for_lock: bool | None = False  # any process of its parallel group
    none_of: tuple[str, ...] = ()  # patterns of LIKE over `type:event` that its wait must not match


@dataclass(frozen=True, kw_only=True)  # no slots: a cached_property needs __dict__
class Session:
    """One client backend other than our own.

    Ages are seconds by the server's clock, at least 0, and None where there is nothing to measure:
    `query_seconds` of a session that is not active. `xid_age` and `xmin_age` are transactions, or
    None without an xid or a snapshot. `client` is None on a Unix socket, `query_id` where the
    server computes none. `waiting_for_client`: active with the wait event ClientRead, but not in a
    COPY. `wait_event_type` and `wait_event` are those of the session's own process;
    `waits_for_lock` includes its parallel workers. Recordings of older releases lack these three.
    `locks` (None) and `waiters` (empty) are missing if the scope of the snapshot left them out.
    """

    identity: Identity
    role: str | None  # None if it was dropped
    database: str
    application: str
    client: str | None
    query: str = field(repr=False)  # with literals: redact it before showing it
    query_end: str = field(default="", repr=False)  # of a cut query; never shown, only for tags
    query_id: str | None = None
    idle_seconds: float  # since state_change
    transaction_seconds: float | None
    connected_seconds: float
    query_seconds: float | None
    waiting_for_client: bool
    wait_event_type: str | None = None
    wait_event: str | None = None
    waits_for_lock: bool = False
    xid_age: int | None
    xmin_age: int | None
    locks: int | None
    waiters: tuple[Waiter, ...]
    superuser: bool
    replication: bool
    own_role: bool
    signalable: bool

    @property
    def state(self) -> State:
        """The state at the time of the snapshot."""
        return self.identity.state

    @cached_property  # up to 1.5 ms each; log and report use it several times
    def redacted_query(self) -> str:
        """The query without literals and comments."""
        return redact(self.query)

    def seconds_waited(self, waiter: Waiter) -> float:
        """Return for how long a waiter can have waited for this session.

        Not for longer than the session has been in its state: in a queue, the lock passes from one
        healthy transaction to the next.
        """
        return min(waiter.seconds, self.idle_seconds)

    def tags(self, keys: Iterable[str]) -> dict[str, str]:
        """Return those of the query's comment tags that have one of the keys, in this order."""
        return {key: self._tags[key] for key in keys if key in self._tags}

    @cached_property
    def _tags(self) -> dict[str, str]:
        return read_tags(self.query, self.query_end)

    @property
    def role_label(self) -> str:
        """The role as people read it."""
        return "(role dropped)" if self.role is None else self.role

    @property
    def names(self) -> Names:
        """The names that patterns are matched against."""
        return Names(self.role, self.database, self.application)

    @property
    def pinned(self) -> int:
        """The number of transactions by which the session holds vacuum back."""
        return max(self.xid_age or 0, self.xmin_age or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Connection slots.

    `reserved`: for superusers, by reserved_connections, and by the provider. `used`: client
    backends, except the reaper's and logins in progress.
    """

    max: int
    reserved: int
    used: int

    @property
    def usable(self) -> int:
        """The slots that ordinary roles can use."""
        return self.max - self.reserved

    def __str__(self) -> str:
        return f"slots {self.used}/{self.usable}"
