"""The protections that apply under every policy."""

from typing import NamedTuple

from session_reaper.policy.model import Protect
from session_reaper.policy.patterns import Globs, matches_any


class Tool(NamedTuple):
    """A tool for backup, migration, replication or foreign data, and its application names."""

    name: str
    applications: Globs


# Each name is the one that the tool's own source sets; the comment says where. A role is set by the
# server. An application name is set by the client, so it protects only clients that set it.
TOOLS = (
    # postgres/postgres: src/bin/pg_dump, src/bin/pg_basebackup (fallback_application_name = progname).
    # The leader of a parallel dump is idle in transaction all the time.
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
    # flyway/flyway: flyway-core/…/database/base/BaseDatabaseType.java, "Flyway by Redgate". Its lock
    # session is idle in transaction for the whole migration.
    Tool("Flyway", ("Flyway*", "flyway*")),
    # xataio/pgroll: pkg/roll/roll.go, pkg/state/state.go
    Tool("pgroll", ("pgroll", "pgroll-*")),
    # shayonj/pg-osc sets no name; ruby-pg (ged/ruby-pg: lib/pg/connection.rb) sets the program's path.
    Tool("pg-osc", ("*pg-online-schema-change",)),
    # These set no name of their own. The patterns are for those who name them after the tool.
    Tool("Liquibase", ("Liquibase*", "liquibase*")),
    Tool("WAL-G", ("wal-g*",)),
    Tool("greenmask", ("greenmask*",)),
    Tool("AWS DMS", ("AWS DMS*", "awsdms*")),  # closed source: its names could not be verified
)

BUILTIN_PROTECTIONS = Protect(
    # To PostgreSQL, rdsproxyadmin and rdswriteforwarduser are ordinary roles.
    roles=("rds*", "aiven*", "_aiven*", "metrics_user_*"),
    databases=("rdsadmin", "_aiven"),
    applications=tuple(glob for tool in TOOLS for glob in tool.applications),
)


def find_tool(application: str) -> str | None:
    """Return the name of the tool that connects with this application name, or None."""
    for tool in TOOLS:
        if matches_any(tool.applications, application):
            return tool.name
    return None
