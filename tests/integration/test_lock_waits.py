"""Sessions that wait for a lock, also those of which only a parallel worker waits, are left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from session_reaper.policy.enums import Action
from session_reaper.policy.patterns import read_wait_event, read_wait_event_type

from tests.integration.stage import ACTIVE, IDLE, LEAK, rule, until
from tests.integration.wire import Moment, Proxy

if TYPE_CHECKING:
    from tests.integration.stage import Stage, Victim

pytestmark = pytest.mark.every_major

RUNAWAY = rule("runaway", state=[ACTIVE], query_for="1ms", role=["app"])
VICTIMS = rule("victims", state=[ACTIVE], query_for="1ms", role=["app"], wait_event_type="Lock")
SIGNALS = [Action.TERMINATE, Action.CANCEL]

LOCK = "PERFORM n FROM locked"
# The statement begins to wait for the lock once a row is in `gate`. Nothing in its identity
# changes.
GATE = "LOOP EXIT WHEN EXISTS (SELECT FROM gate); PERFORM pg_sleep(0.005); END LOOP"


@pytest.fixture
def holder(stage: Stage) -> Victim:
    """A session that holds the lock on a table and is left alone."""
    for table in ("locked", "gate"):
        stage.root.run(f"CREATE TABLE {table} (n int)")
        stage.cleanup(stage.root.run, f"DROP TABLE {table} CASCADE")
        stage.root.run(f"GRANT ALL ON {table} TO PUBLIC")
    return stage.session(LEAK, role="holder", query="LOCK TABLE locked")


def open_gate(stage: Stage, victim: Victim) -> None:
    stage.root.run("INSERT INTO gate VALUES (1)")
    until(lambda: is_waiting(stage, victim), "it waits for the lock")


def is_waiting(stage: Stage, victim: Victim) -> bool:
    return bool(
        stage.root.run(
            "SELECT pid FROM pg_stat_get_activity(NULL)"
            " WHERE coalesce(leader_pid, pid) = :pid AND wait_event_type = 'Lock'",
            pid=victim.pid,
        )
    )


def a_parallel_query(stage: Stage, *statements: str) -> Victim:
    """A query whose workers run these statements, while its session waits for the workers."""
    body = "; ".join([*statements, "RETURN 1"])
    stage.root.run(
        "CREATE OR REPLACE FUNCTION work(n int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE"
        f" AS $$ BEGIN {body}; END $$"
    )
    stage.root.run("CREATE TABLE big AS SELECT generate_series(1, 1000) AS n")
    stage.root.run("GRANT ALL ON big TO PUBLIC")
    stage.cleanup(stage.root.run, "DROP TABLE big; DROP FUNCTION work(int)")
    victim = stage.session(IDLE)
    for name, value in (
        ("parallel_leader_participation", "off"),
        ("max_parallel_workers_per_gather", "2"),
        ("min_parallel_table_scan_size", "0"),
        ("parallel_setup_cost", "0"),
        ("parallel_tuple_cost", "0"),
    ):
        victim.connection.run(f"SET {name} = {value}")
    victim.start("SELECT count(work(n)) FROM big")
    until(lambda: victim.read_column("wait_event_type") == "IPC", "it waits for its workers")
    return victim


def test_a_session_that_waits_for_a_lock_is_left_alone(stage: Stage, holder: Victim) -> None:
    victim, running = (
        stage.session(ACTIVE, query=f"DO $$ BEGIN {LOCK}; END $$"),
        stage.session(ACTIVE),
    )
    until(lambda: is_waiting(stage, victim), "it waits for the lock")
    assert stage.reap(RUNAWAY).outcomes() == {running.pid: "terminated"}
    assert stage.reap(RUNAWAY | {"action": "cancel"}).outcomes() == {}
    assert (victim.state, holder.is_there) == (ACTIVE, True)
    run = stage.reap(RUNAWAY, VICTIMS)
    assert run.outcomes() == {victim.pid: "terminated"}
    assert "waits for Lock: relation" in run.session(victim)["reason"]


def test_a_parallel_query_whose_workers_wait_for_a_lock_is_left_alone(
    stage: Stage, holder: Victim
) -> None:
    victim = a_parallel_query(stage, LOCK)
    until(lambda: is_waiting(stage, victim), "its workers wait for the lock")
    assert victim.read_column("wait_event_type") == "IPC"
    assert stage.reap(RUNAWAY).outcomes() == {}
    assert (victim.state, holder.is_there) == (ACTIVE, True)
    run = stage.reap(VICTIMS)
    assert run.outcomes() == {victim.pid: "terminated"}
    assert "a parallel worker for a lock" in run.session(victim)["reason"]


@pytest.mark.parametrize("action", SIGNALS)
@pytest.mark.parametrize("parallel", [False, True])
def test_a_session_that_begins_to_wait_after_the_snapshot_escapes(
    stage: Stage, holder: Victim, action: Action, *, parallel: bool
) -> None:
    if parallel:
        victim = a_parallel_query(stage, GATE, LOCK)
    else:
        victim = stage.session(ACTIVE, query=f"DO $$ BEGIN {GATE}; {LOCK}; END $$")
    moment = Moment.PREPARE_TERMINATE if action is Action.TERMINATE else Moment.PREPARE_CANCEL

    def before(now: Moment) -> None:
        if now is moment:
            open_gate(stage, victim)

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(RUNAWAY | {"action": action.value})
    assert run.outcomes() == {victim.pid: "escaped"}
    assert run.session(victim)["reason"].endswith("; left alone: it waits for a lock now")
    assert run.document["status"] == "ok"
    assert (victim.state, holder.is_there) == (ACTIVE, True)


def test_a_session_that_waits_for_a_lock_at_the_second_snapshot_escapes(
    stage: Stage, holder: Victim
) -> None:
    victim = stage.session(ACTIVE, query=f"DO $$ BEGIN {GATE}; {LOCK}; END $$")
    snapshots = 0

    def before(now: Moment) -> None:
        nonlocal snapshots
        snapshots += now is Moment.SNAPSHOT
        if now is Moment.SNAPSHOT and snapshots == 2:
            open_gate(stage, victim)

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(RUNAWAY | {"confirm_after": "50ms"})
    assert run.outcomes() == {victim.pid: "escaped"}
    assert "rule runaway has no wait_event_type" in run.session(victim)["reason"]
    assert holder.is_there


def test_a_session_that_waits_for_a_lock_after_its_cancel_is_not_terminated(
    stage: Stage, holder: Victim
) -> None:
    victim = stage.session(
        ACTIVE,
        query="DO $$ BEGIN PERFORM pg_sleep(60);"
        f" EXCEPTION WHEN query_canceled THEN {LOCK}; END $$",
    )
    run = stage.reap(RUNAWAY | {"action": "cancel", "escalate_after": "500ms"})
    assert run.outcomes() == {victim.pid: "escaped"}
    assert run.session(victim)["reason"].endswith(
        "still running 500ms after its cancel; left alone: it waits for a lock now"
    )
    assert (victim.state, holder.is_there) == (ACTIVE, True)


def test_a_query_that_ends_while_its_session_is_left_to_wait_is_cancelled(
    stage: Stage, holder: Victim
) -> None:
    victim = stage.session(
        ACTIVE,
        query="DO $$ BEGIN PERFORM pg_sleep(60);"
        f" EXCEPTION WHEN query_canceled THEN {LOCK}; END $$",
    )
    moments: list[Moment] = []

    def before(now: Moment) -> None:
        if now is Moment.VERIFY and moments[-1] is Moment.TERMINATE:
            holder.connection.run("COMMIT")
            until(lambda: victim.state != ACTIVE, "its query ends")
        moments.append(now)

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(RUNAWAY | {"action": "cancel", "escalate_after": "500ms"})
    assert Moment.TERMINATE in moments
    assert run.outcomes() == {victim.pid: "cancelled"}
    assert victim.is_there


def test_a_victim_that_does_not_wait_for_the_lock_any_more_escapes(
    stage: Stage, holder: Victim
) -> None:
    victim = stage.session(ACTIVE, query=f"DO $$ BEGIN {LOCK}; PERFORM pg_sleep(60); END $$")
    until(lambda: is_waiting(stage, victim), "it waits for the lock")

    def before(now: Moment) -> None:
        if now is Moment.PREPARE_TERMINATE:
            holder.connection.run("COMMIT")
            until(lambda: not is_waiting(stage, victim), "it has the lock")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(VICTIMS)
    assert run.outcomes() == {victim.pid: "escaped"}
    assert run.session(victim)["reason"].endswith("; left alone: what it waits for has changed")
    assert victim.state == ACTIVE


def test_a_session_that_begins_to_wait_as_a_keep_rule_says_escapes(stage: Stage) -> None:
    stage.root.run("CREATE TABLE gate (n int); GRANT ALL ON gate TO PUBLIC")
    stage.cleanup(stage.root.run, "DROP TABLE gate")
    works = "LOOP EXIT WHEN EXISTS (SELECT FROM gate); END LOOP"
    victim = stage.session(ACTIVE, query=f"DO $$ BEGIN {works}; PERFORM pg_sleep(60); END $$")
    keep = rule("keep-sleeping", state=[ACTIVE], wait_event="PgS*", action="keep")

    def before(now: Moment) -> None:
        if now is Moment.PREPARE_TERMINATE:
            stage.root.run("INSERT INTO gate VALUES (1)")
            until(lambda: victim.read_column("wait_event") == "PgSleep", "it sleeps")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(keep, RUNAWAY)
    assert run.outcomes() == {victim.pid: "escaped"}
    assert run.session(victim)["reason"].endswith("; left alone: what it waits for has changed")
    assert victim.state == ACTIVE


@pytest.mark.majors(17, 18)
def test_every_wait_event_type_of_the_server_can_be_named(stage: Stage) -> None:
    for kind, event in stage.root.run("SELECT type, name FROM pg_wait_events"):
        assert read_wait_event_type(kind, "") == kind
        assert read_wait_event(event, "") == event


def test_a_client_that_does_not_read_its_result_can_be_named(stage: Stage) -> None:
    victim = stage.session(IDLE)
    query = b"SELECT repeat('x', 1000000) FROM generate_series(1, 1000)\0"
    stream = victim.connection._sock  # noqa: SLF001 -- the driver itself would read
    stream.write(b"Q" + (len(query) + 4).to_bytes(4, "big") + query)
    stream.flush()
    until(lambda: victim.read_column("wait_event") == "ClientWrite", "its result is not read")
    unread = rule(
        state=[ACTIVE], query_for="1ms", wait_event_type=["Client"], wait_event=["ClientWrite"]
    )
    run = stage.reap(unread)
    assert run.outcomes() == {victim.pid: "terminated"}
    assert "waits for Client: ClientWrite" in run.session(victim)["reason"]
