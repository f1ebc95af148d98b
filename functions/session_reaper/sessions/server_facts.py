"""The facts about one server on which advice is based, and the result of a check."""

from dataclasses import dataclass

from session_reaper.errors import Membership
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import Provider

RESERVED_CONNECTIONS_SINCE = 16
"""The first major version with reserved_connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The TLS parameters of a connection.

    `certificate_until` is UTC, such as 2027-01-31T00:00:00Z, or "" if it cannot be read.
    """

    version: str
    cipher: str
    certificate_until: str
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """A timeout set for a role, a database or both; without either, for the whole server.

    `value` is None if a setting of our own role hides it.
    """

    role: str | None
    database: str | None
    name: str
    value: str | None

    @property
    def is_off(self) -> bool:
        """Return whether the value is known to be 0, in any unit."""
        return self.value is not None and not self.value.strip(" 0.dhimnsu")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSessions:
    """The number of idle sessions of one application and role."""

    application: str
    role: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTransaction:
    """A transaction prepared some seconds ago, which keeps its locks and holds vacuum back."""

    database: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSlot:
    """A replication slot that holds vacuum back by `held` transactions."""

    name: str
    active: bool
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The properties of one server, and what our role may do there.

    `granted_reserved` is membership in pg_use_reserved_connections. `reserved_slots` are those that
    our role may use, or could after that grant. `soon` is 30 days from now by the server's clock, in
    the form of `certificate_until`. `databases` are those that allow connections. `idle` has the
    applications with more than one idle session, `prepared` the oldest first, `replication_slots`
    the largest `held` first.
    """

    version: str
    major: int
    provider: Provider
    tls: Tls | None
    role: str
    superuser: bool
    inherits: bool
    connection_limit: int | None
    granted_reserved: bool
    reserved_slots: int
    soon: str
    databases: tuple[str, ...]
    timeouts: tuple[Timeout, ...]
    idle: tuple[IdleSessions, ...]
    prepared: tuple[PreparedTransaction, ...]
    replication_slots: tuple[ReplicationSlot, ...]

    def in_effect(self, name: str, role: str | None, database: str) -> Timeout | None:
        """Return the setting that applies to a role in a database, if it is known.

        `role` is None for a role without a setting of its own.
        """
        by_place = {(t.role, t.database): t for t in self.timeouts if t.name == name}
        places = ((role, database), (role, None), (None, database), (None, None))
        return next((by_place[place] for place in places if place in by_place), None)

    @property
    def membership(self) -> Membership:
        """Return how the role uses the roles that it is granted."""
        return Membership(server_version=10_000 * self.major, inherits=self.inherits)

    @property
    def has_reserved_slot(self) -> bool:
        """Return whether the role can connect when every ordinary slot is used."""
        since = self.major >= RESERVED_CONNECTIONS_SINCE and not self.superuser
        return self.reserved_slots > 0 and (self.granted_reserved or not since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of a check: the server's facts and a snapshot."""

    server: ServerFacts
    snapshot: Snapshot
