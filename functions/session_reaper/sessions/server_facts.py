"""The facts about one server that advice rests on, and what a check finds."""

from dataclasses import dataclass

from session_reaper.errors import Membership
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import Provider

RESERVED_CONNECTIONS_SINCE = 16  # the major version


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the connection is secured."""

    version: str
    cipher: str
    certificate_until: str  # UTC, as 2027-01-31T00:00:00Z; "" if that cannot be read
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """A server-side timeout as somebody has set it; of no role and no database: the server's own."""

    role: str | None
    database: str | None
    name: str
    value: str | None  # None: a setting of our own role hides it

    @property
    def is_off(self) -> bool:
        """Whether it is known to be 0, in whatever unit somebody wrote it."""
        return self.value is not None and not self.value.strip(" 0.dhimnsu")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSessions:
    """How many sessions one application holds without using them."""

    application: str
    role: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTransaction:
    """A prepared transaction: it holds its locks and vacuum until somebody ends it by its name."""

    database: str
    seconds: float  # since it was prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSlot:
    """A replication slot that holds vacuum back."""

    name: str
    active: bool
    held: int  # transactions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What one server is, and what our role may do there."""

    version: str
    major: int
    provider: Provider
    tls: Tls | None
    role: str
    superuser: bool
    inherits: bool  # rolinherit
    connection_limit: int | None
    granted_reserved: bool  # pg_use_reserved_connections
    reserved_slots: int  # kept for roles like this one, or for those that are granted to use them
    soon: str  # the server's clock, 30 days from now, in the form of certificate_until
    databases: tuple[str, ...]  # that take connections
    timeouts: tuple[Timeout, ...]
    idle: tuple[IdleSessions, ...]  # of more than one
    prepared: tuple[PreparedTransaction, ...]  # oldest first
    replication_slots: tuple[ReplicationSlot, ...]  # that hold most first

    def in_effect(self, name: str, role: str | None, database: str) -> Timeout | None:
        """The setting that a role (None: one without its own) meets in a database, if it is known."""
        by_place = {(t.role, t.database): t for t in self.timeouts if t.name == name}
        places = ((role, database), (role, None), (None, database), (None, None))
        return next((by_place[place] for place in places if place in by_place), None)

    @property
    def membership(self) -> Membership:
        """How the role uses what it is granted."""
        return Membership(server_version=10_000 * self.major, inherits=self.inherits)

    @property
    def has_reserved_slot(self) -> bool:
        """Whether the role gets in when every ordinary slot is taken."""
        since = self.major >= RESERVED_CONNECTIONS_SINCE and not self.superuser
        return self.reserved_slots > 0 and (self.granted_reserved or not since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a check found: the server, and what can be seen of its sessions and slots."""

    server: ServerFacts
    snapshot: Snapshot
