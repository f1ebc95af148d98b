"""Sessions that no rule matches, on real servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pg8000.native
import pytest

from infra.local.postgres import bundled_builds
from tests.integration.stage import ACTIVE, IDLE, LEAK, REAPER, Victim, policy, rule, until
from tests.integration.wire import Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
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
        "pg_restore",
        "pgBackRest [backup]",
        "barman_streaming_backup",
        "pgcopydb[4711] snapshot holder",
        "pgAdmin 4 - DB:orders",
        "Flyway by Redgate",
        "pgroll",
        "Debezium General",
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


def programs_for(stage: Stage) -> Build:
    """Return the oldest build that is not older than the server, which its pg_dump would refuse."""
    builds = bundled_builds()
    return builds[min(major for major in builds if major >= stage.server.major)]


def client_program(stage: Stage, role: str, **environment: str) -> dict[str, str]:
    """The environment of a libpq program that connects as the role."""
    return {
        "PGHOST": str(stage.server.socket_dir),
        "PGPORT": str(stage.server.port),
        "PGUSER": role,
        "PGDATABASE": "postgres",
        "LD_LIBRARY_PATH": str(programs_for(stage).lib or ""),
        **environment,
    }


@contextmanager
def run_until_stopped(
    stage: Stage, command: Sequence[str], environment: Mapping[str, str], condition: str
) -> Iterator[None]:
    """Run a program, and stop it while a session meets the condition; it succeeds in the end."""
    with subprocess.Popen(command, env=environment, start_new_session=True) as program:  # noqa: S603

        def is_caught() -> bool:
            os.killpg(program.pid, signal.SIGSTOP)
            query = f"SELECT pid FROM pg_stat_activity WHERE {condition}"  # noqa: S608 -- the test's
            for _ in range(10):  # the server may still be filling the buffers
                if stage.root.run(query):
                    return True
                time.sleep(0.01)
            os.killpg(program.pid, signal.SIGCONT)
            return False

        try:
            until(is_caught, f"{command[0]} is stopped where {condition}")
            yield
            os.killpg(program.pid, signal.SIGCONT)
            assert program.wait(60) == 0
        finally:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)


def dumper(stage: Stage, rows: int) -> None:
    """A role that may dump a table of so many rows."""
    stage.role("dumper", "IN ROLE pg_read_all_data" if stage.server.major > 13 else "")
    stage.root.run("CREATE TABLE big (note text)")
    stage.root.run(
        "INSERT INTO big SELECT repeat('x', 100) FROM generate_series(1, CAST(:rows AS integer))",
        rows=rows,
    )
    stage.cleanup(stage.root.run, "DROP TABLE big")
    stage.root.run("GRANT SELECT ON big TO dumper")


def test_a_parallel_dump_is_left_alone(stage: Stage, tmp_path: Path) -> None:
    dumper(stage, 300_000)
    command = [str(programs_for(stage).bin / "pg_dump"), "-j2", "-Fd", "-f", str(tmp_path / "dump")]
    leader = f"usename = 'dumper' AND application_name = 'pg_dump' AND state = '{LEAK}'"
    with run_until_stopped(stage, command, client_program(stage, "dumper"), leader):
        run = stage.reap(EVERYBODY)
    assert run.outcomes() == {}


COPYING = f"state = '{ACTIVE}' AND query LIKE 'COPY public.big%'"


def test_a_parallel_dump_under_another_name_is_left_alone(stage: Stage, tmp_path: Path) -> None:
    dumper(stage, 300_000)  # more than the buffers between server and client hold
    command = [str(programs_for(stage).bin / "pg_dump"), "-j2", "-Fd", "-f", str(tmp_path / "dump")]
    environment = client_program(stage, "dumper", PGAPPNAME="nightly-backup")
    leak = stage.session(LEAK, "dumper", application_name="nightly-backup")
    # Idle in transaction: the leak, the leader, and a worker that has no table to copy. The last
    # two hold the snapshot of the dump.
    all_are_there = (
        "(3, 2) = (SELECT count(*), count(backend_xmin) FROM pg_stat_activity"
        " WHERE application_name = 'nightly-backup' AND state = 'idle in transaction')"
    )
    with run_until_stopped(stage, command, environment, f"{COPYING} AND {all_are_there}"):
        run = stage.reap(rule(), mode="observe")
        assert run.outcomes() == {leak.pid: "would_terminate"}
        assert stage.reap(EVERYBODY).outcomes() == {leak.pid: "terminated"}


@pytest.mark.thorough
def test_a_parallel_dump_that_reads_large_objects_is_left_alone(
    stage: Stage, tmp_path: Path
) -> None:
    stage.role("dumper")
    with stage.connect("dumper") as connection:
        connection.run("SELECT count(lo_from_bytea(0, 'x')) FROM generate_series(1, 1500)")
    command = [str(programs_for(stage).bin / "pg_dump"), "-j2", "-Fd", "-f", str(tmp_path / "dump")]
    environment = client_program(stage, "dumper", PGAPPNAME="nightly-backup")
    # Most of the time, its worker is idle in transaction between two fastpath calls.
    reads = f"query ~* 'FETCH .* IN (blob|lo)oid|lo_open' AND state = '{LEAK}'"
    all_are_there = (
        "3 = (SELECT count(backend_xmin) FROM pg_stat_activity"
        " WHERE application_name = 'nightly-backup')"
    )
    with run_until_stopped(stage, command, environment, f"{reads} AND {all_are_there}"):
        assert stage.reap(EVERYBODY).outcomes() == {}


@pytest.mark.every_major
def test_a_parallel_dump_whose_worker_begins_before_the_second_snapshot_is_left_alone(
    stage: Stage,
) -> None:
    stage.root.run("CREATE TABLE big (note text); GRANT SELECT ON big TO public")
    stage.cleanup(stage.root.run, "DROP TABLE big")
    leader = stage.session(LEAK, application_name="nightly-backup")
    leader.connection.run("COMMIT")
    leader.connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    ((exported,),) = leader.connection.run("SELECT pg_export_snapshot()")
    leak = stage.session(LEAK, application_name="nightly-backup")
    snapshots = 0

    def before(now: Moment) -> None:
        nonlocal snapshots
        snapshots += now is Moment.SNAPSHOT
        if now is Moment.SNAPSHOT and snapshots == 2:
            worker = stage.session(LEAK, application_name="nightly-backup", query="SELECT 1")
            worker.connection.run("COMMIT")
            worker.connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            worker.connection.run(f"SET TRANSACTION SNAPSHOT '{exported}'")
            worker.start("COPY (SELECT pg_sleep(60), note FROM big, pg_sleep(60)) TO STDOUT")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap({**rule(), "confirm_after": "50ms"})
    assert run.outcomes() == {leak.pid: "terminated", leader.pid: "escaped"}
    assert run.session(leader)["reason"].endswith("protected: a parallel dump (built in)")
    assert leader.is_there


@pytest.mark.parametrize("leaks", [[], [rule("leak", idle_for="1h")]], ids=["none", "1h"])
@pytest.mark.parametrize("action", [{}, {"action": "cancel"}], ids=["terminate", "cancel"])
def test_a_worker_of_a_dump_whose_leader_no_rule_matches_is_left_alone(
    stage: Stage, leaks: Sequence[Mapping[str, object]], action: Mapping[str, object]
) -> None:
    leader = stage.session(IDLE, application_name="nightly-backup")
    leader.connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    ((exported,),) = leader.connection.run("SELECT pg_export_snapshot()")
    worker = stage.session(IDLE, application_name="nightly-backup")
    worker.connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    worker.connection.run(f"SET TRANSACTION SNAPSHOT '{exported}'")
    worker.start("COPY (SELECT pg_sleep(60)) TO STDOUT")
    runaway = rule("runaway", state=[ACTIVE], query_for="1ms")
    run = stage.reap(*leaks, {**runaway, **action})
    assert run.outcomes() == {}
    (group,) = run.target()["protected"]
    assert (group["rule"], group["by"], group["count"]) == ("runaway", "built in: pg_dump", 1)
    assert worker.state == ACTIVE


def test_a_serial_dump_under_another_name_whose_output_is_not_read_is_left_alone(
    stage: Stage, tmp_path: Path
) -> None:
    dumper(stage, 600_000)
    command = [
        str(programs_for(stage).bin / "pg_dump"),
        "-Fc",
        "-Z0",
        "-f",
        str(tmp_path / "archive"),
    ]
    environment = client_program(stage, "dumper", PGAPPNAME="nightly-backup")
    wedged = rule("wedged", state=ACTIVE, waiting_for_client=True, query_for="1ms")
    with run_until_stopped(
        stage, command, environment, f"{COPYING} AND wait_event = 'ClientWrite'"
    ):
        assert stage.reap(rule(), wedged).outcomes() == {}


def test_a_backup_and_a_restore_are_left_alone(stage: Stage, tmp_path: Path) -> None:
    dumper(stage, 300_000)
    environment = client_program(stage, "dumper")
    archive = str(tmp_path / "archive")
    dump = [str(programs_for(stage).bin / "pg_dump"), "-Fc", "-Z0", "-t", "big", "-f", archive]
    with run_until_stopped(stage, dump, environment, f"application_name = 'pg_dump' AND {COPYING}"):
        assert stage.reap(EVERYBODY).outcomes() == {}
    stage.root.run("TRUNCATE big; ALTER TABLE big OWNER TO dumper")
    restore = [str(programs_for(stage).bin / "pg_restore"), "-a", "-d", "postgres", archive]
    with run_until_stopped(
        stage, restore, environment, f"application_name = 'pg_restore' AND {COPYING}"
    ):
        assert stage.reap(EVERYBODY).outcomes() == {}
    every = [
        str(programs_for(stage).bin / "pg_dumpall"),
        "--no-role-passwords",
        "-f",
        str(tmp_path / "all"),
    ]
    idle = f"application_name = 'pg_dumpall' AND state = '{IDLE}'"  # while its pg_dump works
    with run_until_stopped(stage, every, environment, idle):
        assert stage.reap(EVERYBODY).outcomes() == {}


@pytest.mark.postgres_fdw
def test_the_remote_half_of_a_foreign_transaction_is_left_alone(stage: Stage) -> None:
    remote = stage.database("remote")
    stage.role("app")
    root, server = stage.root, f"host '{stage.server.socket_dir}', port '{stage.server.port}'"
    root.run("CREATE EXTENSION postgres_fdw")
    stage.cleanup(root.run, "DROP EXTENSION postgres_fdw CASCADE")
    root.run(
        f"CREATE SERVER remote FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({server}, dbname '{remote}')"
    )
    root.run(
        "CREATE USER MAPPING FOR app SERVER remote OPTIONS (user 'app', password_required 'false')"
    )
    root.run(
        "CREATE FOREIGN TABLE databases (datname name) SERVER remote"
        " OPTIONS (schema_name 'pg_catalog', table_name 'pg_database')"
    )
    root.run("GRANT SELECT ON databases TO app")
    job = stage.session(LEAK, application_name="deploy", query="SELECT datname FROM databases")
    query = "SELECT application_name, state, usename FROM pg_stat_activity WHERE datname = 'remote'"
    assert root.run(query) == [["postgres_fdw", LEAK, "app"]]
    run = stage.reap(EVERYBODY, protect={"applications": ["deploy"]})
    assert run.outcomes() == {}
    assert root.run(query) == [["postgres_fdw", LEAK, "app"]]
    job.connection.run("SELECT datname FROM databases; COMMIT")


@pytest.mark.postgres_fdw
def test_dblink_has_the_name_of_its_connection_string(stage: Stage) -> None:
    """It has no name of its own, so the policy has to protect the name that the job gives it."""
    remote = stage.database("remote")
    root = stage.root
    root.run("CREATE EXTENSION dblink")
    stage.cleanup(root.run, "DROP EXTENSION dblink CASCADE")
    where = f"host={stage.server.socket_dir} port={stage.server.port} dbname={remote} user=app"
    stage.role("app")
    for name, parameters in (("unnamed", ""), ("named", "application_name=dblink")):
        root.run(f"SELECT dblink_connect('{name}', '{where} {parameters}')")
        root.run(f"SELECT dblink_exec('{name}', 'BEGIN')")
    query = "SELECT application_name FROM pg_stat_activity WHERE datname = 'remote' ORDER BY 1"
    assert root.run(query) == [[""], ["dblink"]]
    run = stage.reap(EVERYBODY, protect={"applications": ["dblink"]})
    assert list(run.outcomes().values()) == ["terminated"]
    assert root.run(query) == [["dblink"]]
    root.run("SELECT dblink_disconnect('named')")


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
