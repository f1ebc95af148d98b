"""The built-in protections, against the application names that tools really have."""

from __future__ import annotations

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Verdict
from session_reaper.policy.builtin import (
    TOOLS,
    find_protection_by_name,
    find_protection_by_role,
)
from session_reaper.policy.patterns import matches_any
from session_reaper.sessions.session import Names, State

from tests.builders import a_policy, a_rule, a_session, some_slots

# Whole names as pg_stat_activity shows them, measured on a server or composed as the tool's source
# does it.
NAMES = [
    ("pg_dump", "pg_dump"),
    ("pg_dumpall", "pg_dump"),
    ("pg_restore", "pg_restore"),
    ("pg_basebackup", "pg_basebackup"),
    ("pg_receivewal", "pg_receivewal"),
    ("pg_recvlogical", "pg_recvlogical"),
    ("pg_createsubscriber", "pg_createsubscriber"),
    ("postgres_fdw", "postgres_fdw"),
    ("pgAdmin 4 - DB:orders", "pgAdmin"),
    ("pgBackRest [backup]", "pgBackRest"),
    ("pgBackRest [stanza-create]", "pgBackRest"),
    ("pgxbackup [backup]", "pgxbackup"),
    ("barman", "Barman"),
    ("barman_receive_wal", "Barman"),
    ("barman_streaming_backup", "Barman"),
    ("barman_cloud_backup", "Barman"),
    ("pg_probackup", "pg_probackup"),
    ("pg_repack", "pg_repack"),
    ("pgcopydb", "pgcopydb"),  # up to 0.10
    ("pgcopydb[4711] snapshot holder", "pgcopydb"),
    ("pgloader", "pgloader"),
    ("pgloader-source", "pgloader"),
    ("pgactive:7309462814709211347:send", "pgactive"),
    ("pgactive:7309462814709211347:init dump", "pgactive"),
    ("Debezium Streaming", "Debezium"),
    ("Debezium Slot Info", "Debezium"),
    ("Debezium General", "Debezium"),
    ("peerdb", "PeerDB"),
    ("peerdb_orders_mirror", "PeerDB"),
    ("Flyway by Redgate", "Flyway"),
    ("flyway", "Flyway"),
    ("pgroll", "pgroll"),
    ("pgroll-state", "pgroll"),
    ("pg-online-schema-change", "pg-osc"),
    ("/usr/local/bundle/bin/pg-online-schema-change", "pg-osc"),
    ("/home/deploy/.rbenv/versions/3...ms/bin/pg-online-schema-change", "pg-osc"),
    ("liquibase", "Liquibase"),
    ("Liquibase", "Liquibase"),
    ("wal-g", "WAL-G"),
    ("greenmask", "greenmask"),
    ("fivetran", "Fivetran"),
    ("Airbyte Debezium Streaming", "Airbyte"),
    ("airbyte", "Airbyte"),
    ("AWS DMS 3.5", "AWS DMS"),
]

# Names that people, applications and drivers have; a tool that connects with one is not recognised.
NOT_BUILT_IN = [
    "",
    "psql",
    "api",
    "pgAdmin 4 - CONN:4711042",
    "pgAdmin 4 - LLM - llm_4711042",
    "PostgreSQL JDBC Driver",  # pgjdbc, so Liquibase and Airbyte too
    "bin/rails",  # ruby-pg
    "postgres.js",
    "nightly-backup",
    "my_postgres_fdw",
    "pgrollout",
    "PG_DUMP",
]


@pytest.mark.parametrize(("application", "tool"), NAMES)
def test_a_tool_is_recognised_by_its_real_name(application: str, tool: str) -> None:
    assert len(application.encode()) < 64, "no session can have this name"
    protection = find_protection_by_name(Names("app", "orders", application))
    assert protection is not None
    assert protection.by == f"built in: {tool}"


@pytest.mark.parametrize("application", NOT_BUILT_IN)
def test_other_names_are_not_protected(application: str) -> None:
    assert find_protection_by_name(Names("app", "orders", application)) is None


@pytest.mark.parametrize("application", [application for application, _ in NAMES])
def test_no_rule_matches_a_tool(application: str) -> None:
    policy = a_policy(a_rule(state=list(State), connected_for="1s"))
    for state in State:
        session = a_session(state=state, application=application)
        (decision,) = decide([session], some_slots(), policy).decisions
        assert (decision.verdict, decision.rule) == (Verdict.LEAVE, None)
        assert decision.reason == f"protected: application {application} (built in)"


@pytest.mark.parametrize(
    ("session", "detail"),
    [
        ({"own_role": True, "replication": True}, "our own role"),
        ({"replication": True}, "a replication role"),
        ({"role": "rdsproxyadmin"}, "role rdsproxyadmin (built in)"),
    ],
)
def test_a_protection_by_role_says_why(session: dict[str, object], detail: str) -> None:
    protection = find_protection_by_role(a_session(**session))
    assert protection is not None
    assert (protection.detail, protection.can_be_lifted) == (detail, True)


UNREADABLE = "a name that is not valid UTF-8, so no pattern can be compared with it"


@pytest.mark.parametrize(
    ("session", "by", "detail"),
    [
        ({"superuser": True}, "superuser", "a superuser"),
        ({"own_role": True, "application": "session-reaper"}, "our own role", "our own role"),
        ({"role": "\ufffd"}, "built in: name not valid UTF-8", UNREADABLE),
        ({"database": "a\ufffd"}, "built in: name not valid UTF-8", UNREADABLE),
        ({"database": "_aiven"}, "built in: database _aiven", "database _aiven (built in)"),
    ],
    ids=str,
)
def test_a_session_that_is_always_protected_says_why(
    session: dict[str, object], by: str, detail: str
) -> None:
    (decision,) = decide([a_session(**session)], some_slots(), a_policy()).decisions
    assert (decision.verdict, decision.reason) == (Verdict.LEAVE, f"protected: {detail}")
    assert decision.protection is not None
    assert (decision.protection.by, decision.protection.can_be_lifted) == (by, False)


def test_every_pattern_has_an_example() -> None:
    examples = [application for application, _ in NAMES]
    unused = {
        pattern
        for tool in TOOLS
        for pattern in tool.applications
        if not any(matches_any((pattern,), example) for example in examples)
    }
    assert unused <= {"pgbackrest*", "debezium*", "awsdms*"}


def test_a_tool_has_one_entry() -> None:
    names = [tool.name for tool in TOOLS]
    assert len(set(names)) == len(names)
