"""The protections that apply under every policy."""

from collections.abc import Iterator
from typing import Final

from session_reaper.policy.patterns import matches_any
from session_reaper.policy.protections import ProtectedBy, Protection
from session_reaper.sessions.session import OWN_APPLICATION_NAME, Names, Session

# A role is set by the server. An application name is set by the client, so it protects only clients
# that set it.
PROVIDER_ROLES: Final = ("rds*", "aiven*", "_aiven*", "metrics_user_*")
"""To PostgreSQL, rdsproxyadmin and rdswriteforwarduser are ordinary roles."""
PROVIDER_DATABASES: Final = ("rdsadmin", "_aiven")
TOOLS: Final = (
    # Includes pg_dumpall. The leader of a parallel dump is idle in transaction all the time.
    "pg_dump*",
    "pg_restore*",
    "pg_basebackup*",
    "pg_receivewal*",
    "pg_recvlogical*",
    "pg_upgrade*",
    "pg_repack*",
    "pg_squeeze*",
    "pgcopydb*",
    "pgBackRest*",
    "pgbackrest*",
    "barman*",
    "wal-g*",
    "greenmask*",
    "Debezium*",
    "debezium*",
    "AWS DMS*",
    "awsdms*",
    "liquibase*",
    "flyway*",
)
"""Globs over the application names of backup, migration and replication tools."""


def find_protection(session: Session) -> Protection | None:
    """Return the built-in protection by a property of this session other than its names."""
    if session.own_role and session.application == OWN_APPLICATION_NAME:
        return Protection(kind=ProtectedBy.OWN_ROLE, detail="our own role")
    if session.superuser:
        return Protection(kind=ProtectedBy.SUPERUSER, detail="a superuser")
    return None


def find_protection_by_name(names: Names) -> Protection | None:
    """Return the built-in protection that rests on the application, the database or a broken name."""
    if "\ufffd" in (names.role or "") + names.database:
        detail = "a name that is not valid UTF-8, so no pattern can be compared with it"
        return Protection(kind=ProtectedBy.BUILT_IN, detail=detail, tool="name not valid UTF-8")
    for glob in TOOLS:
        if matches_any((glob,), names.application):
            return Protection(
                kind=ProtectedBy.BUILT_IN,
                detail=f"application {names.application} (built in)",
                tool=glob.rstrip("*"),
            )
    if matches_any(PROVIDER_DATABASES, names.database):
        return Protection(
            kind=ProtectedBy.BUILT_IN,
            detail=f"database {names.database} (built in)",
            tool=f"database {names.database}",
        )
    return None


def find_protection_by_role(session: Session) -> Protection | None:
    """Return the protection that rests on the role; a rule that names the role literally lifts it."""
    return next(_protections_by_role(session), None)


def _protections_by_role(session: Session) -> Iterator[Protection]:
    if session.own_role:
        yield Protection(kind=ProtectedBy.OWN_ROLE, detail="our own role", can_be_lifted=True)
    if session.replication:
        yield Protection(
            kind=ProtectedBy.REPLICATION_ROLE, detail="a replication role", can_be_lifted=True
        )
    if is_provider_role(session.role):
        yield Protection(
            kind=ProtectedBy.PROVIDER_ROLE,
            detail=f"role {session.role} (built in)",
            can_be_lifted=True,
        )


def is_provider_role(role: str | None) -> bool:
    """Return whether RDS, Aurora or Aiven uses the role for its own sessions."""
    return role is not None and matches_any(PROVIDER_ROLES, role)
