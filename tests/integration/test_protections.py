"""Whom no rule reaches, on real sessions."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pg8000.native
import pytest

from tests.integration.stage import ACTIVE, IDLE, LEAK, REAPER, Victim, policy, rule, until

if TYPE_CHECKING:
    from pathlib import Path

    from infra.local.postgres import Build
    from tests.integration.stage import Stage

pytestmark = pytest.mark.every_major

EVERYBODY = rule("everybody", state=[LEAK, IDLE, ACTIVE, "fastpath function call"])


def assert_only_the_leak_dies(stage: Stage, *protected: object) -> None:
    leak = stage.session(LEAK)
    run = stage.reap(EVERYBODY)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert not leak.is_there
    assert all(victim.is_there for victim in protected)  # type: ignore[attr-defined]
    assert run.document["status"] == "ok"


def test_superusers_are_never_touched(stage: Stage) -> None:
    stage.role("boss", "SUPERUSER")
    sessions = [stage.session(state, "boss") for state in (LEAK, IDLE, ACTIVE)]
    assert_only_the_leak_dies(stage, *sessions)


def test_a_superuser_after_set_session_authorization_is_never_touched(stage: Stage) -> None:
    stage.role("boss", "SUPERUSER")
    stage.role("app")
    disguised = stage.session(LEAK, "boss", query="SET SESSION AUTHORIZATION app")
    assert_only_the_leak_dies(stage, disguised)


def test_replication_roles_are_never_touched(stage: Stage) -> None:
    stage.role("copier", "REPLICATION")
    assert_only_the_leak_dies(stage, stage.session(LEAK, "copier"), stage.session(IDLE, "copier"))


@pytest.mark.parametrize("kind", ["database", "true"])
def test_walsenders_are_never_touched(stage: Stage, kind: str) -> None:
    stage.role("copier", "REPLICATION")
    stage.root.run("ALTER ROLE copier NOREPLICATION")  # the session outlives the attribute
    stage.root.run("ALTER ROLE copier REPLICATION")
    connection = stage.connect("copier", replication=kind, tcp=kind == "database")
    stage.cleanup(connection.close)
    connection.run("IDENTIFY_SYSTEM")
    ((pid,),) = stage.root.run("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender'")
    stage.root.run("ALTER ROLE copier NOREPLICATION")
    run = stage.reap(EVERYBODY)
    assert pid not in run.outcomes()
    assert run.target()["slots"]["used_before"] == 1  # a walsender takes no slot
    connection.run("IDENTIFY_SYSTEM")


def test_our_own_role_is_never_touched(stage: Stage) -> None:
    assert_only_the_leak_dies(stage, stage.session(LEAK, REAPER), stage.session(IDLE, REAPER))


def test_roles_of_the_provider_are_never_touched(stage: Stage) -> None:
    roles = ("rdsproxyadmin", "rdswriteforwarduser", "rdsadmin", "aiven_extras", "_aiven")
    sessions = [stage.session(state, role) for role in roles for state in (LEAK, IDLE)]
    assert_only_the_leak_dies(stage, *sessions)


def test_backups_and_migrations_are_never_touched(stage: Stage) -> None:
    names = (
        "pg_dump",
        "pg_dumpall",
        "pg_restore",
        "pgBackRest [backup]",
        "barman_backup",
        "pgcopydb[1]",
        "pg_basebackup",
    )
    sessions = [stage.session(LEAK, application_name=name) for name in names]
    assert_only_the_leak_dies(stage, *sessions)


def test_a_session_with_state_disabled_is_never_touched(stage: Stage) -> None:
    stage.role("quiet")
    stage.root.run("ALTER ROLE quiet SET track_activities = off")
    hidden = stage.session("disabled", "quiet")
    hidden.connection.run("BEGIN")
    leak = stage.session(LEAK)
    run = stage.reap(EVERYBODY)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert hidden.is_there
    assert "track-activities" in {advice["code"] for advice in run.target()["advice"]}


def test_processes_of_the_server_are_never_touched(stage: Stage) -> None:
    query = (
        "SELECT pid FROM pg_stat_activity WHERE backend_type NOT IN"
        " ('client backend', 'parallel worker', 'autovacuum worker') ORDER BY pid"
    )
    before = stage.root.run(query)
    assert_only_the_leak_dies(stage)
    assert stage.root.run(query) == before


def test_a_session_that_is_still_authenticating_is_left_alone(stage: Stage) -> None:
    """PostgreSQL 18 shows it as `starting`, earlier versions not at all."""
    stage.role("app")
    with socket.create_connection((stage.server.host, stage.server.port)) as raw:
        parameters = b"user\0app\0database\0postgres\0\0"
        raw.sendall(struct.pack("!ii", len(parameters) + 8, 196608) + parameters)
        raw.settimeout(5)
        assert raw.recv(1) == b"R"  # it wants a password
        assert_only_the_leak_dies(stage)
        raw.setblocking(False)  # noqa: FBT003 -- the socket's own signature
        with suppress(BlockingIOError):
            assert raw.recv(65536) != b"", "the server has closed it"


def test_what_the_policy_protects_is_left_alone(stage: Stage) -> None:
    stage.database("billing")
    protected = [
        stage.session(LEAK, "deploy"),
        stage.session(LEAK, application_name="nightly-7"),
        stage.session(LEAK, database="billing"),
        stage.session(LEAK, tcp=True),
    ]
    leak = stage.session(LEAK)
    protect = {
        "roles": ["deploy"],
        "applications": ["nightly-*"],
        "databases": ["billing"],
        "clients": ["127.0.0.0/8"],
    }
    run = stage.reap(EVERYBODY, protect=protect)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert stage.survivors(protected) == protected


def test_a_list_that_matches_no_session_selects_none(stage: Stage) -> None:
    leak = stage.session(LEAK)
    assert stage.reap(rule(role=["etl"])).outcomes() == {}
    assert stage.reap(rule(client=["10.0.0.0/8"])).outcomes() == {}
    assert leak.is_there


@pytest.mark.pg_dump
def test_a_parallel_dump_is_left_alone(stage: Stage, build: Build, tmp_path: Path) -> None:
    program = build.bin / "pg_dump"
    stage.role("dumper", "IN ROLE pg_read_all_data" if build.major > 13 else "")
    stage.root.run("CREATE TABLE big AS SELECT generate_series(1, 1000) AS n")
    stage.cleanup(stage.root.run, "DROP TABLE big")
    stage.root.run("GRANT SELECT ON big TO dumper")
    environment = {
        "PGHOST": str(stage.server.socket_dir),
        "PGPORT": str(stage.server.port),
        "PGUSER": "dumper",
        "PGDATABASE": "postgres",
        "LD_LIBRARY_PATH": str(build.lib or ""),
    }
    command = [str(program), "-j", "2", "-Fd", "-f", str(tmp_path / "dump")]
    with subprocess.Popen(command, env=environment, start_new_session=True) as dump:  # noqa: S603
        frozen = "SELECT pid FROM pg_stat_activity WHERE usename = 'dumper' AND state = :state"

        def caught_idle_in_transaction() -> bool:
            os.killpg(dump.pid, signal.SIGSTOP)
            if stage.root.run(frozen, state=LEAK):
                return True
            os.killpg(dump.pid, signal.SIGCONT)
            return False

        until(caught_idle_in_transaction, "the dump is idle in transaction")
        run = stage.reap(EVERYBODY)
        os.killpg(dump.pid, signal.SIGCONT)
        assert dump.wait(30) == 0
    assert run.outcomes() == {}


def test_an_event_cannot_lift_a_built_in_protection(stage: Stage) -> None:
    admin = stage.session(LEAK, "rdsproxyadmin")
    run = stage.run({"policy": policy(rule(role=["rdsproxyadmin"])), "mode": "enforce"})
    assert run.outcomes() == {}
    assert admin.is_there


def test_a_literal_role_in_the_stack_s_policy_lifts_its_protections(
    stage: Stage, tmp_path: Path
) -> None:
    stage.role("avnadmin", "REPLICATION")
    named = [stage.session(LEAK, "avnadmin"), stage.session(LEAK, REAPER)]
    others = [
        stage.session(LEAK, REAPER, application_name="session-reaper"),
        stage.session(LEAK, "rdsproxyadmin"),
        stage.session(LEAK, "avnadmin", application_name="pg_dump"),
    ]
    written = tmp_path / "policy.json"
    rules = rule(role=["avnadmin", "rds*", REAPER])
    written.write_text(json.dumps(policy(rules)))
    stage.monkeypatch.setenv("POLICY", str(written))
    run = stage.run()
    assert run.outcomes() == dict.fromkeys((victim.pid for victim in named), "terminated")
    assert stage.survivors(others) == others


def a_session_of_a_dropped_role(stage: Stage) -> Victim:
    stage.root.run("CREATE ROLE vault_1 LOGIN PASSWORD 'x'")
    connection = pg8000.native.Connection(
        "vault_1",
        password="x",  # noqa: S106 -- of a role that lives for a moment
        database="postgres",
        unix_sock=stage.server.unix_sock,
    )
    victim = Victim(stage.root, connection)
    stage.cleanup(victim.close)
    connection.run("BEGIN")
    stage.root.run("DROP ROLE vault_1")
    return victim


def test_a_session_of_a_dropped_role_is_an_ordinary_one(stage: Stage) -> None:
    victim = a_session_of_a_dropped_role(stage)
    assert stage.reap(rule(role=["*"])).outcomes() == {}
    assert stage.reap(rule(), protect={"roles": ["deploy"]}).outcomes() == {}
    run = stage.reap(rule())
    assert run.outcomes() == {victim.pid: "terminated"}
    assert run.session(victim)["role"] is None
    assert "(role dropped)" in run.said
