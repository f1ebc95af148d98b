"""The facts about one server on which advice is based, and the result of a check."""

from dataclasses import dataclass

from session_reaper.errors import Membership
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import Provider

RESERVED_CONNECTIONS_SINCE = 16  # the major version


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The TLS parameters of a connection."""

    version: str
    cipher: str
    certificate_until: str  # UTC, such as 2027-01-31T00:00:00Z; "" if it cannot be read
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """A timeout set for a role, a database or both; without either, for the whole server."""

    role: str | None
    database: str | None
    name: str
    value: str | None  # None if a setting of our own role hides it

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
    """A prepared transaction, which holds locks and vacuum back until it is committed or rolled back."""

    database: str
    seconds: float  # since it was prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSlot:
    """A replication slot that holds vacuum back."""

    name: str
    active: bool
    held: int  # number of transactions that vacuum is held back


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The properties of one server, and what our role may do there."""

    version: str
    major: int
    provider: Provider
    tls: Tls | None
    role: str
    superuser: bool
    inherits: bool  # rolinherit
    connection_limit: int | None
    granted_reserved: bool  # pg_use_reserved_connections
    reserved_slots: int  # that our role may use, or could after a grant
    soon: str  # 30 days from now by the server's clock, in the form of certificate_until
    databases: tuple[str, ...]  # those that allow connections
    timeouts: tuple[Timeout, ...]
    idle: tuple[IdleSessions, ...]  # applications with more than one idle session
    prepared: tuple[PreparedTransaction, ...]  # oldest first
    replication_slots: tuple[ReplicationSlot, ...]  # largest `held` first

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
