"""The protections that hold whatever the policy says."""

from session_reaper.policy.model import Protect

# Strong: a role is given by the server. Weak: an application names itself, and only the careful do.
BUILTIN_PROTECTIONS = Protect(
    # RDS and Aurora: rdsproxyadmin and rdswriteforwarduser are ordinary roles to PostgreSQL.
    roles=("rds*", "aiven*", "_aiven*", "metrics_user_*"),
    databases=("rdsadmin", "_aiven"),
    applications=(
        "pg_dump*",  # and pg_dumpall; its leader is idle in transaction for the whole of a parallel dump
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
