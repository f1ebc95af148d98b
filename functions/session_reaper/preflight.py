"""What a check finds on one server, and what is to be mended before it is needed."""

from dataclasses import dataclass

from session_reaper.providers import Provider
from session_reaper.sessions import Look

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What one server is, and what our role may do there."""

    version: str
    major: int
    provider: Provider
    tls: Tls | None
    role: str
    superuser: bool
    connection_limit: int | None
    granted_reserved: bool  # pg_use_reserved_connections
    reserved_slots: int  # kept for roles like this one, or for those that are granted to use them
    soon: str  # the server's clock, 30 days from now, in the form of certificate_until
    databases: tuple[str, ...]  # that take connections
    timeouts: tuple[Timeout, ...]

    @property
    def has_reserved_slot(self) -> bool:
        """Whether the role gets in when every ordinary slot is taken."""
        since = self.major >= RESERVED_CONNECTIONS_SINCE and not self.superuser
        return self.reserved_slots > 0 and (self.granted_reserved or not since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a check found: the server, and what can be seen of its sessions and slots."""

    server: Preflight
    look: Look
