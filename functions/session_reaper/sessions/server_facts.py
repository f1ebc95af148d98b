"""The facts about one server that advice is based on, and the result of a check."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from session_reaper.grants import Membership
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import Provider

RESERVED_CONNECTIONS_SINCE = 16
OLDEST_TESTED, NEWEST_TESTED = 13, 18
TESTED_VERSIONS: Final = f"PostgreSQL {OLDEST_TESTED} to {NEWEST_TESTED}"
_TIMEOUT_FORM: Final = re.compile(
    r"\s*\+?(?!0+[1-9])((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)"
    r"\s*(us|ms|s|min|h|d)?\s*"
)
_SECONDS_PER_UNIT: Final = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86_400}


class Tls(NamedTuple):
    """The TLS of a connection.

    `certificate_until`: in UTC, such as 2027-01-31T00:00:00Z; empty if it cannot be read.
    """

    version: str
    cipher: str
    certificate_until: str
    verified: bool


class Timeout(NamedTuple):
    """A timeout as it is set for a role, a database, both, or (neither) the whole server.

    `value`: None if a setting of our own role hides it.
    """

    role: str | None
    database: str | None
    name: str
    value: str | None

    @property
    def seconds(self) -> float | None:
        """The value in seconds; None if it is unknown or has an unusual form, such as hexadecimal.

        PostgreSQL rounds it to milliseconds, so half of one is off.
        """
        found = _TIMEOUT_FORM.fullmatch(self.value or "")
        if found is None:
            return None
        return round(float(found[1]) * _SECONDS_PER_UNIT[found[2] or "ms"] * 1000) / 1000

    @property
    def is_off(self) -> bool:
        """Whether the value is known to be 0, in any unit."""
        return self.seconds == 0

    def exceeds(self, seconds: float) -> bool:
        """Return whether the timeout is known to be off or longer than this."""
        return self.seconds is not None and (self.is_off or self.seconds > seconds)


class IdleSessions(NamedTuple):
    """The number of idle sessions of one application and role."""

    application: str
    role: str
    number: int


class PreparedTransaction(NamedTuple):
    """A transaction that was prepared `seconds` ago, and still holds its locks and vacuum."""

    database: str
    seconds: float


class ReplicationSlot(NamedTuple):
    """A replication slot that holds vacuum back by `held` transactions."""

    name: str
    active: bool
    held: int


@dataclass(frozen=True, kw_only=True)  # no slots: a cached_property needs __dict__
class ServerFacts:
    """One server, and the rights of our role on it.

    `granted_reserved`: our role is a member of pg_use_reserved_connections. `reserved_slots`: those
    that our role could use, with that membership if it needs one. `soon`: 30 days from now by the
    server's clock, in the format of `certificate_until`. `databases`: those that accept
    connections. `idle`: groups of at least two. `prepared`: oldest first. `replication_slots`:
    those that hold back most first.
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

    def find_timeout(self, name: str, role: str | None, database: str) -> Timeout | None:
        """Return the timeout that applies to a role in a database; None if it is unknown.

        `role`: None for a role without a setting of its own.
        """
        by_place = self._timeouts_by_place
        places = ((role, database), (role, None), (None, database), (None, None))
        found = (by_place.get((name, *place)) for place in places)
        return next((timeout for timeout in found if timeout), None)

    @cached_property
    def _timeouts_by_place(self) -> Mapping[tuple[str, str | None, str | None], Timeout]:
        """The timeouts by name, role and database: a server may have thousands."""
        return {(t.name, t.role, t.database): t for t in self.timeouts}

    @property
    def membership(self) -> Membership:
        """The facts that decide whether our role can use the privileges of roles granted to it."""
        return Membership(server_version=10_000 * self.major, inherits=self.inherits)

    @property
    def is_tested(self) -> bool:
        """Whether the tests of this release run on the server's major version."""
        return OLDEST_TESTED <= self.major <= NEWEST_TESTED

    @property
    def has_reserved_slot(self) -> bool:
        """Whether our role can connect when every ordinary slot is used."""
        needs_grant = self.major >= RESERVED_CONNECTIONS_SINCE and not self.superuser
        return self.reserved_slots > 0 and (self.granted_reserved or not needs_grant)


class Check(NamedTuple):
    """The result of a check: the server's facts, and a snapshot without sessions."""

    server: ServerFacts
    snapshot: Snapshot
