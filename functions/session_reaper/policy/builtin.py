"""The protections that apply under every policy."""

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, NamedTuple

from session_reaper.policy.patterns import Globs, matches_any
from session_reaper.policy.protections import ProtectedBy, Protection
from session_reaper.sessions.session import OWN_APPLICATION_NAME, Names, Session
from session_reaper.sessions.snapshot import Holder


class Tool(NamedTuple):
    """A tool for backup, migration, replication or foreign data, and its application names."""

    name: str
    applications: Globs


# Each name is the one that the tool's own source sets; the comment says where. A role is set by the
# server. An application name is set by the client, so it protects only clients that set it.
TOOLS: Final = (
    # postgres/postgres: src/bin/pg_dump, src/bin/pg_basebackup (fallback_application_name =
    # progname). The leader of a parallel dump is idle in transaction all the time.
    Tool("pg_dump", ("pg_dump*",)),  # also pg_dumpall
    Tool("pg_restore", ("pg_restore*",)),
    Tool("pg_basebackup", ("pg_basebackup*",)),
    Tool("pg_receivewal", ("pg_receivewal*",)),
    Tool("pg_recvlogical", ("pg_recvlogical*",)),
    # On the subscriber only; on the publisher it has the name of its connection string.
    Tool("pg_createsubscriber", ("pg_createsubscriber*",)),
    # postgres/postgres: contrib/postgres_fdw/connection.c. The remote half of a transaction is idle
    # in transaction while the local server works.
    Tool("postgres_fdw", ("postgres_fdw",)),
    # pgadmin-org/pgadmin4: web/pgadmin/utils/driver/psycopg3/{connection,server_manager}.py. It
    # exports the name of the latest connection as PGAPPNAME, which the pg_dump that it starts
    # inherits. CONN: is the query tool, where people leave transactions open.
    Tool("pgAdmin", ("pgAdmin 4 - DB:*",)),
    # pgbackrest/pgbackrest: src/db/helper.c, "pgBackRest [backup]"
    Tool("pgBackRest", ("pgBackRest*", "pgbackrest*")),
    # pgexperts/pgxbackup: src/db/helper.c, src/version.h, "pgxbackup [backup]"
    Tool("pgxbackup", ("pgxbackup*",)),
    # EnterpriseDB/barman: barman/postgres.py, barman/config.py, barman/clients/cloud_backup.py
    Tool("Barman", ("barman*",)),
    # postgrespro/pg_probackup: src/utils/pgut.c; only its replication connections have a name
    Tool("pg_probackup", ("pg_probackup*",)),
    # reorg/pg_repack: bin/pgut/pgut.c
    Tool("pg_repack", ("pg_repack*",)),
    # dimitri/pgcopydb: src/bin/pgcopydb/pgsql.c, "pgcopydb[4711] copy worker"
    Tool("pgcopydb", ("pgcopydb*",)),
    # dimitri/pgloader: src/pgsql/connection.lisp
    Tool("pgloader", ("pgloader*",)),
    # aws/pgactive: src/pgactive.c, src/pgactive_remotecalls.c, "pgactive:7301…:send"
    Tool("pgactive", ("pgactive*",)),
    # debezium/debezium: debezium-connector-postgres/…/connection/PostgresConnection.java
    Tool("Debezium", ("Debezium*", "debezium*")),
    # PeerDB-io/peerdb: flow/connectors/postgres/postgres.go (GetPGConnectionString),
    # "peerdb_mirror". One session exports the snapshot of an initial load, and is idle in
    # transaction for all of it.
    Tool("PeerDB", ("peerdb*",)),
    # flyway/flyway: flyway-core/…/database/base/BaseDatabaseType.java, "Flyway by Redgate". Its
    # lock session is idle in transaction for the whole migration.
    Tool("Flyway", ("Flyway*", "flyway*")),
    # xataio/pgroll: pkg/roll/roll.go, pkg/state/state.go
    Tool("pgroll", ("pgroll", "pgroll-*")),
    # shayonj/pg-osc sets no name; ruby-pg (ged/ruby-pg: lib/pg/connection.rb) sets the program's
    # path.
    Tool("pg-osc", ("*pg-online-schema-change",)),
    # MaterializeInc/materialize#5188: a server's log, in which Fivetran writes to it.
    Tool("Fivetran", ("fivetran*",)),
    # airbytehq/airbyte: source-postgres/…/cdc/PostgresReplicationConnection.java. Its other
    # sessions have pgjdbc's default name, and are idle in transaction during a sync
    # (airbytehq/airbyte#10452).
    Tool("Airbyte", ("Airbyte*", "airbyte*")),
    # These set no name of their own. The patterns are for those who name them after the tool.
    Tool("Liquibase", ("Liquibase*", "liquibase*")),
    Tool("WAL-G", ("wal-g*",)),
    Tool("greenmask", ("greenmask*",)),
    Tool("AWS DMS", ("AWS DMS*", "awsdms*")),  # closed source: its names could not be verified
)

PROVIDER_ROLES: Final = ("rds*", "aiven*", "_aiven*", "metrics_user_*")
"""To PostgreSQL, rdsproxyadmin and rdswriteforwarduser are ordinary roles."""
PROVIDER_DATABASES: Final = ("rdsadmin", "_aiven")


def find_protection(session: Session | Holder) -> Protection | None:
    """Return the built-in protection by a property of this session other than its names."""
    if session.own_role and session.application == OWN_APPLICATION_NAME:
        return Protection(kind=ProtectedBy.OWN_ROLE, detail="our own role")
    if session.superuser:
        return Protection(kind=ProtectedBy.SUPERUSER, detail="a superuser")
    return None


def find_protection_by_name(names: Names) -> Protection | None:
    """Return the built-in protection by the application, the database or an undecodable name."""
    if "\ufffd" in (names.role or "") + names.database:
        detail = "a name that is not valid UTF-8, so no pattern can be compared with it"
        return Protection(kind=ProtectedBy.BUILT_IN, detail=detail, tool="name not valid UTF-8")
    tool = _find_tool(names.application)
    if tool is not None:
        detail = f"application {names.application} (built in)"
        return Protection(kind=ProtectedBy.BUILT_IN, detail=detail, tool=tool)
    if matches_any(PROVIDER_DATABASES, names.database):
        tool = f"database {names.database}"
        return Protection(kind=ProtectedBy.BUILT_IN, detail=f"{tool} (built in)", tool=tool)
    return None


@lru_cache(maxsize=10_000)  # sessions share their applications
def _find_tool(application: str) -> str | None:
    """Return the name of the first tool that sets such an application name."""
    globs = ((glob, tool.name) for tool in TOOLS for glob in tool.applications)
    return next((name for glob, name in globs if fnmatchcase(application, glob)), None)


def find_protection_by_role(session: Session | Holder) -> Protection | None:
    """Return the protection by the role; a rule that names the role literally lifts it."""
    if session.own_role:
        kind, detail = ProtectedBy.OWN_ROLE, "our own role"
    elif session.replication:
        kind, detail = ProtectedBy.REPLICATION_ROLE, "a replication role"
    elif is_provider_role(session.role):
        kind, detail = ProtectedBy.PROVIDER_ROLE, f"role {session.role} (built in)"
    else:
        return None
    return Protection(kind=kind, detail=detail, can_be_lifted=True)


def is_provider_role(role: str | None) -> bool:
    """Return whether RDS, Aurora or Aiven uses the role for its own sessions."""
    return role is not None and matches_any(PROVIDER_ROLES, role)
