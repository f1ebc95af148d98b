"""The protections that apply under every policy."""

from session_reaper.policy.model import Protect

# A role is set by the server. An application name is set by the client, so it protects only clients
# that set it.
BUILTIN_PROTECTIONS = Protect(
    # To PostgreSQL, rdsproxyadmin and rdswriteforwarduser are ordinary roles.
    roles=("rds*", "aiven*", "_aiven*", "metrics_user_*"),
    databases=("rdsadmin", "_aiven"),
    applications=(
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
    ),
)
