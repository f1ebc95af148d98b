"""Every kind of rule on real servers: pressure, wedged, blockers, harm, cancel, confirmation, limits."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.stage import (
    ABORTED,
    ACTIVE,
    IDLE,
    LEAK,
    PATIENCE,
    policy,
    rule,
    until,
)
from tests.integration.wire import Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Stage, Victim

pytestmark = pytest.mark.every_major


def a_rule(match: dict[str, Any], **keys: object) -> dict[str, object]:
    return {**rule(**match), **keys}


# -- pressure --------------------------------------------------------------------------------------

TIER = a_rule({}, when={"slots_used": "85%"}, until={"slots_used": "70%"})


def a_small_server(own_server: Callable[..., Stage]) -> Stage:
    return own_server({"max_connections": "23", "superuser_reserved_connections": "3"})


def test_under_pressure_no_more_leaks_are_terminated_than_needed_the_longest_idle_first(
    own_server: Callable[..., Stage],
) -> None:
    stage = a_small_server(own_server)  # 20 usable: 85 % are 17, 70 % are 14
    leaks = stage.sessions(10)
    healthy = stage.sessions(7, IDLE)
    run = stage.reap(TIER)  # with the superuser's connection 18 are used
    assert run.outcomes() == {
        leak.pid: "terminated" if index < 4 else "spared" for index, leak in enumerate(leaks)
    }
    assert stage.survivors(leaks) == leaks[4:]
    assert stage.survivors(healthy) == healthy
    slots = run.target()["slots"]
    assert (slots["used_before"], slots["used_after"], slots["usable"]) == (18, 14, 20)
    assert run.session(leaks[0])["reason"].startswith("slots 18/20 (when slots_used: 85%), ")
    assert run.session(leaks[4])["reason"].endswith("; not needed to reach slots_used: 70%")
    said = (
        "rule leak in force at slots 18/20 (when slots_used: 85%):"
        " 4 condemned, enough to reach slots_used: 70%"
    )
    assert run.target()["pressure"] == [said]
    assert said in run.said

    run = stage.reap(TIER)  # the pressure is gone
    assert run.outcomes() == {}
    assert "pressure" not in run.target()
    assert stage.survivors(leaks) == leaks[4:]


def test_without_pressure_a_rule_with_when_terminates_no_session(
    own_server: Callable[..., Stage],
) -> None:
    stage = a_small_server(own_server)
    leaks = stage.sessions(15)  # 16 of 20 are 80 %
    assert stage.reap(TIER).outcomes() == {}
    assert stage.survivors(leaks) == leaks


def test_when_accepts_slots_free(own_server: Callable[..., Stage]) -> None:
    stage = a_small_server(own_server)
    leaks = stage.sessions(14)  # with the superuser's 15 are used, 5 free
    tier = a_rule({}, when={"slots_free": 5}, until={"slots_free": 8})
    run = stage.reap(tier)
    assert list(run.outcomes().values()).count("terminated") == 3
    assert stage.survivors(leaks) == leaks[3:]
    assert stage.reap(tier).outcomes() == {}


@pytest.mark.majors(16, 18)
def test_reserved_slots_do_not_count_as_usable(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": "23", "reserved_connections": "10"})  # 10 usable
    leaks = stage.sessions(8)  # 9 of 10 used
    run = stage.reap(TIER)
    assert list(run.outcomes().values()).count("terminated") == 2
    assert stage.survivors(leaks) == leaks[2:]


def test_a_rule_whose_until_is_reached_signals_no_session(own_server: Callable[..., Stage]) -> None:
    """Not even one that our role may not signal."""
    stage = a_small_server(own_server)
    stage.session(LEAK, role="other")
    stage.role("reaper", "IN ROLE pg_read_all_stats")
    stage.target(username="reaper")
    run = stage.reap(a_rule({}, until={"slots_used": "70%"}))
    assert run.outcomes() == {}
    assert run.emails == []


def test_denied_sessions_do_not_count_for_until(
    own_server: Callable[..., Stage],
) -> None:
    """The role sees all and may signal by membership only, as Aiven's documents have it."""
    stage = a_small_server(own_server)
    denied = stage.sessions(5, role="other")
    leaks = stage.sessions(12, role="app")
    stage.role("reaper", "IN ROLE pg_read_all_stats, app")
    stage.target(username="reaper")
    run = stage.reap(TIER)
    outcomes = run.outcomes()
    assert [outcomes[session.pid] for session in denied] == ["denied"] * 5
    assert [outcomes[leak.pid] for leak in leaks] == ["terminated"] * 4 + ["spared"] * 8
    assert stage.survivors(denied) == denied


# -- wedged ----------------------------------------------------------------------------------------

WEDGED = a_rule(
    {"state": [ACTIVE], "waiting_for_client": True, "query_for": "100ms", "role": ["app"]}
)


def _message(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def a_wedged_session(stage: Stage, **options: Any) -> Victim:  # noqa: ANN401 -- as the driver has them
    """A client that sends Parse, Bind and Execute, and never Sync: active, waiting for it."""
    victim = stage.session(IDLE, **options)
    victim.connection.run("SET statement_timeout = '50ms'")
    victim.connection.run("SET idle_in_transaction_session_timeout = '50ms'")
    stream = victim.connection._sock  # noqa: SLF001 -- the driver itself always sends Sync
    stream.write(
        _message(b"P", b"\0SELECT 1\0", b"\0\0")
        + _message(b"B", b"\0\0", b"\0\0" * 3)
        + _message(b"E", b"\0", b"\0" * 4)
        + _message(b"H")  # Flush
    )
    stream.flush()
    _wait_until_blocked(victim)
    return victim


def _wait_until_blocked(victim: Victim) -> None:
    shown = "state || ' ' || wait_event"
    until(lambda: victim.read_column(shown) == "active ClientRead", "it waits for its client")


def _has_run_for(victim: Victim, seconds: float) -> bool:
    age = victim.read_column("extract(epoch FROM clock_timestamp() - query_start)::float8")
    return age is not None and age > seconds


def test_a_wedged_session_outlives_its_timeouts_and_a_cancel_but_not_a_terminate(
    stage: Stage,
) -> None:
    wedged = a_wedged_session(stage)
    working = stage.session(ACTIVE)
    until(lambda: _has_run_for(wedged, 0.3), "both timeouts are over")
    assert stage.root.run("SELECT pg_cancel_backend(:pid)", pid=wedged.pid) == [[True]]
    until(lambda: _has_run_for(wedged, 0.5), "the cancel has had its time")
    assert wedged.state == ACTIVE

    run = stage.reap(WEDGED)
    assert run.outcomes() == {wedged.pid: "terminated"}
    assert "waits for its client" in run.session(wedged)["reason"]
    assert working.state == ACTIVE


def test_a_copy_that_waits_for_rows_is_not_wedged(stage: Stage) -> None:
    """It looks the same: active, ClientRead, its query hours old."""
    loading = stage.session(IDLE)
    loading.connection.run("CREATE TEMPORARY TABLE loaded (id integer)")
    # The server shows the first bytes of a query only: here the word is behind them.
    text = "SELECT 1 /*" + "x" * 2000 + "*/; COPY loaded FROM STDIN"
    sockets = loading.connection._sock  # noqa: SLF001 -- the driver's own COPY would end it
    sockets.write(_message(b"Q", text.encode() + b"\0"))
    sockets.flush()
    _wait_until_blocked(loading)
    until(lambda: _has_run_for(loading, 0.2), "it does so for long")
    known = stage.server.major >= 14  # before that only its text shows a COPY
    assert (stage.reap(WEDGED).outcomes() == {}) == known
    assert loading.is_there == known


def test_a_copy_is_recognized_by_its_query_text(stage: Stage) -> None:
    loading = stage.session(IDLE)
    loading.connection.run("CREATE TEMPORARY TABLE loaded (id integer)")
    stream = loading.connection._sock  # noqa: SLF001 -- as above
    stream.write(_message(b"Q", b"copy loaded from stdin\0"))
    stream.flush()
    _wait_until_blocked(loading)
    until(lambda: _has_run_for(loading, 0.2), "it does so for long")
    assert stage.reap(WEDGED).outcomes() == {}
    assert loading.is_there


def test_a_wedged_session_that_continues_before_the_signal_escapes(stage: Stage) -> None:
    wedged = a_wedged_session(stage)
    until(lambda: _has_run_for(wedged, 0.2), "it is old enough")

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_TERMINATE:
            stream = wedged.connection._sock  # noqa: SLF001 -- as above
            stream.write(_message(b"S"))
            stream.flush()
            until(lambda: wedged.state == IDLE, "it went on")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        assert stage.reap(WEDGED).outcomes() == {wedged.pid: "escaped"}
    assert wedged.is_there


# -- blockers --------------------------------------------------------------------------------------


@pytest.fixture
def chain(stage: Stage) -> tuple[Victim, Victim, Victim]:
    """The pids of a session idle in a transaction, its waiter, and the waiter's own waiter."""
    _accounts(stage)
    lock = "UPDATE accounts SET sum = sum + 1 WHERE id = {}"
    root = stage.session(LEAK, query=lock.format(1), application_name="leaky")
    waiter = stage.session(LEAK, query=lock.format(2), application_name="patient")
    waiter.start(lock.format(1))
    _wait_until_waiting(waiter)
    last = stage.session(IDLE, application_name="last").start(lock.format(2))
    _wait_until_waiting(last)
    return root, waiter, last


def _accounts(stage: Stage) -> None:
    stage.root.run("CREATE TABLE accounts (id integer PRIMARY KEY, sum integer)")
    stage.cleanup(stage.root.run, "DROP TABLE accounts")
    stage.root.run("INSERT INTO accounts VALUES (1, 0), (2, 0)")
    stage.root.run(f"GRANT ALL ON accounts TO {stage.role('app')}")


def _wait_until_waiting(victim: Victim) -> None:
    until(lambda: victim.read_column("wait_event_type") == "Lock", "it waits for a lock")


def test_the_root_blocker_is_terminated_and_its_waiters_continue(
    stage: Stage, chain: tuple[Victim, Victim, Victim]
) -> None:
    root, waiter, last = chain
    bystander = stage.session(LEAK)
    run = stage.reap(rule(state=[LEAK, ACTIVE], blocks=2, blocks_for="0s"))
    assert run.outcomes() == {root.pid: "terminated"}
    until(lambda: waiter.state == LEAK, "the waiter got its lock")
    assert (
        last.state == ACTIVE
    )  # it waits for the waiter, which is not a root while it waits itself
    assert bystander.is_there
    reason = run.session(root)["reason"]
    assert reason.startswith("2 waiting on it (blocks: 2), waited for ")
    assert "patient as app for " in reason
    assert "last as app for " in reason
    assert "patient as app for " in run.said


def test_a_waiter_that_blocks_another_is_left_alone(
    stage: Stage, chain: tuple[Victim, Victim, Victim]
) -> None:
    root, waiter, last = chain
    run = stage.reap(rule(state=[ACTIVE], blocks=1, idle_for="0s"))
    assert run.outcomes() == {}
    assert stage.survivors([root, waiter, last]) == [root, waiter, last]


def test_a_blocker_is_left_alone_until_others_have_waited_long_enough(
    stage: Stage, chain: tuple[Victim, Victim, Victim]
) -> None:
    root, _, _ = chain
    observe = {"mode": "observe"}
    patient = policy(rule(blocks_for="1h"))
    assert stage.run({**observe, "policy": patient}).outcomes() == {}
    three = policy(rule(blocks=3, idle_for="0s"))
    assert stage.run({**observe, "policy": three}).outcomes() == {}
    soon = policy(rule(blocks=1, blocks_for="100ms"))
    until(lambda: stage.run({**observe, "policy": soon}).outcomes(), "they have waited 100 ms")
    assert stage.reap(rule(blocks=1, blocks_for="100ms")).outcomes() == {root.pid: "terminated"}


def test_blocks_for_counts_from_the_start_of_the_wait(stage: Stage) -> None:
    """A statement that ran for long before it began to wait has not waited for long."""
    _accounts(stage)
    waiter = stage.session(IDLE).start("SELECT pg_sleep(1.5); LOCK TABLE accounts")
    root = stage.session(LEAK, query="LOCK TABLE accounts")
    _wait_until_waiting(waiter)
    root.connection.run("SELECT 1")  # healthy: at work a moment ago
    run = stage.run({"mode": "observe", "policy": policy(rule(blocks_for="1400ms"))})
    assert run.outcomes() == {}


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE accounts SET sum = sum + 1 WHERE id = 1",
        pytest.param("LOCK TABLE accounts", marks=pytest.mark.thorough),
        pytest.param("SELECT pg_advisory_xact_lock(7)", marks=pytest.mark.thorough),
    ],
)
def test_a_session_that_just_got_the_lock_is_not_blamed_for_the_queue(
    stage: Stage, sql: str
) -> None:
    """In a convoy the lock goes from one healthy transaction to the next, and the queue is old."""
    _accounts(stage)
    first = stage.session(LEAK, query=sql)
    queue = stage.sessions(3, LEAK)
    for waiter in queue:
        waiter.start(sql)
        _wait_until_waiting(waiter)
    until(lambda: _age(first, "state_change") > 1.5, "the queue is old")
    first.connection.run("COMMIT")
    until(lambda: any(waiter.state == LEAK for waiter in queue), "one of them has got it")
    run = stage.run({"mode": "observe", "policy": policy(rule(blocks_for="1400ms"))})
    assert run.outcomes() == {}


@pytest.mark.majors(14, 18)
def test_a_waiting_parallel_query_is_one_waiter_and_not_a_root(
    own_server: Callable[..., Stage],
) -> None:
    """Only its workers wait for the lock; the session itself waits for its workers."""
    costs = {"parallel_setup_cost": "0", "parallel_tuple_cost": "0"}
    stage = own_server({"min_parallel_table_scan_size": "0", **costs})
    _accounts(stage)
    stage.root.run("CREATE TABLE large AS SELECT g AS id FROM generate_series(1, 100000) AS g")
    stage.root.run(
        "CREATE FUNCTION takes(i integer) RETURNS integer LANGUAGE plpgsql PARALLEL SAFE AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(9); RETURN i; END $$"
    )
    stage.root.run("GRANT ALL ON large TO app")
    root = stage.session(LEAK, query="SELECT pg_advisory_xact_lock(9)")
    reader = stage.session(LEAK, query="LOCK TABLE accounts")
    reader.connection.run("SET parallel_leader_participation = off")
    reader.start("SELECT count(takes(id)) FROM large WHERE takes(id) > 0")
    workers = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    until(lambda: stage.root.run(workers)[0][0] >= 2, "its workers wait")
    last = stage.session(IDLE).start("SELECT * FROM accounts")
    _wait_until_waiting(last)
    run = stage.reap(rule(state=[LEAK, ACTIVE], blocks=1, blocks_for="0s"))
    assert run.outcomes() == {root.pid: "terminated"}
    assert run.session(root)["reason"].startswith("2 waiting on it (blocks: 1)")
    assert reader.is_there


def test_locks_are_not_read_unless_a_rule_needs_them(
    stage: Stage, chain: tuple[Victim, Victim, Victim]
) -> None:
    root, _, _ = chain
    run = stage.run({"mode": "observe", "policy": policy(rule(role=["app"]))})
    assert "waiting" not in run.session(root)["reason"]


# -- harm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["xid", "xmin", "locks"])
def test_writers_repeatable_readers_and_plain_readers_hold_different_resources(
    stage: Stage, held: str
) -> None:
    stage.root.run("CREATE TABLE things (id integer)")
    stage.cleanup(stage.root.run, "DROP TABLE things")
    stage.root.run(f"GRANT ALL ON things TO {stage.role('app')}")
    nothing = stage.session(LEAK, query="SELECT 1")
    reader = stage.session(LEAK, query="SELECT * FROM things")
    writer = stage.session(LEAK, query="INSERT INTO things VALUES (1)")
    repeatable = stage.session(LEAK, query="SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    repeatable.connection.run("SELECT 1")
    holders = {"xid": [writer], "xmin": [repeatable], "locks": [reader, writer]}[held]
    run = stage.reap(rule(holds=[held], role=["app"]))
    assert run.outcomes() == {holder.pid: "terminated" for holder in holders}
    assert nothing.is_there
    assert f"holds {held} (holds: {held})" in run.session(holders[0])["reason"]


def test_a_session_that_holds_vacuum_back_far_enough_is_condemned(stage: Stage) -> None:
    stage.root.run("CREATE TABLE things (id integer)")
    stage.cleanup(stage.root.run, "DROP TABLE things")
    stage.root.run(f"GRANT ALL ON things TO {stage.role('app')}")
    old = stage.session(LEAK, query="INSERT INTO things VALUES (1)")
    for _ in range(20):
        stage.root.run("SELECT txid_current()")
    young = stage.session(LEAK, query="INSERT INTO things VALUES (1)")
    run = stage.reap(rule(pins_vacuum_by=20))
    assert run.outcomes() == {old.pid: "terminated"}
    assert "transactions (pins_vacuum_by: 20)" in run.session(old)["reason"]
    assert young.is_there


def test_a_predicate_lock_does_not_count_as_a_held_lock(stage: Stage) -> None:
    """It outlives its serializable transaction as long as others of the kind go on."""
    _accounts(stage)
    other, session = stage.session(IDLE), stage.session(IDLE)
    for each, where in ((other, "id = 2"), (session, "id = 1")):
        each.connection.run("BEGIN ISOLATION LEVEL SERIALIZABLE")
        each.connection.run(f"SELECT * FROM accounts WHERE {where}")  # noqa: S608 -- our own
    session.connection.run("UPDATE accounts SET sum = 5 WHERE id = 1")
    for statement in ("COMMIT", "BEGIN", "SELECT 1"):
        session.connection.run(statement)
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND pid = :pid"
    assert stage.root.run(held, pid=session.pid)[0][0] > 0
    run = stage.run({"mode": "observe", "policy": policy(rule(holds="locks", role=["app"]))})
    assert run.outcomes() == {other.pid: "would_terminate"}  # which has its table locked, too


def test_a_vacuum_does_not_hold_back_another(stage: Stage) -> None:
    stage.root.run("CREATE TABLE big AS SELECT g AS id FROM generate_series(1, 100000) AS g")
    stage.cleanup(stage.root.run, "DROP TABLE big")
    stage.root.run(f"ALTER TABLE big OWNER TO {stage.role('app')}")
    vacuuming = stage.session(IDLE)
    vacuuming.connection.run("SET vacuum_cost_delay = 50")
    vacuuming.connection.run("SET vacuum_cost_limit = 10")
    vacuuming.start("/* nightly */ VACUUM (ANALYZE) big")
    until(lambda: vacuuming.read_column("backend_xmin") is not None, "it has a snapshot")
    for _ in range(20):
        stage.root.run("SELECT txid_current()")
    for condition in ({"pins_vacuum_by": 10}, {"holds": "xmin"}):
        harmful = rule(state=[ACTIVE], role=["app"], query_for="1ms", **condition)
        assert stage.run({"mode": "observe", "policy": policy(harmful)}).outcomes() == {}


def test_the_most_harmful_sessions_are_terminated_first(
    stage: Stage, chain: tuple[Victim, Victim, Victim]
) -> None:
    root, _, _ = chain
    harmless = stage.session(LEAK)
    root.connection.run("SELECT 1")  # so that the other idles longer
    run = stage.reap(rule(role=["app"]), limits={"max_terminations": 1, "order": "most_harmful"})
    assert run.outcomes() == {root.pid: "terminated", harmless.pid: "spared"}


def test_the_newest_sessions_are_terminated_first_if_the_policy_says_so(stage: Stage) -> None:
    leaks = stage.sessions(3)
    run = stage.reap(limits={"max_terminations": 1, "order": "newest"})
    assert stage.survivors(leaks) == leaks[:2]
    assert run.outcomes()[leaks[2].pid] == "terminated"


# -- cancel, then terminate ------------------------------------------------------------------------

SLOW: dict[str, Any] = {"state": [ACTIVE], "role": ["app"], "query_for": "1ms"}
STUBBORN = """DO $$ BEGIN LOOP
    BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END;
END LOOP; END $$"""


def test_cancel_ends_the_query_and_keeps_the_session(stage: Stage) -> None:
    running = stage.session(ACTIVE)
    run = stage.reap(a_rule(SLOW, action="cancel", escalate_after="30s"))
    assert run.outcomes() == {running.pid: "cancelled"}
    assert run.document["totals"]["cancelled"] == 1
    assert run.document["totals"]["terminated"] == 0
    assert running.state == IDLE
    assert run.seconds < PATIENCE  # it does not wait for the escalation
    assert run.session(running)["reason"].endswith(", to be cancelled")
    assert "1 session cancelled" in run.email.subject
    assert run.target()["slots"]["used_after"] == 2


def test_cancel_in_a_transaction_keeps_the_transaction(stage: Stage) -> None:
    running = stage.session(LEAK).start("SELECT pg_sleep(60)")
    assert stage.reap(a_rule(SLOW, action="cancel")).outcomes() == {running.pid: "cancelled"}
    assert running.state == ABORTED


def test_a_query_that_outlives_its_cancel_is_terminated_after_escalate_after(stage: Stage) -> None:
    stubborn, running = stage.session(ACTIVE, query=STUBBORN), stage.session(ACTIVE)
    run = stage.reap(a_rule(SLOW, action="cancel", escalate_after="300ms"))
    assert run.outcomes() == {stubborn.pid: "terminated", running.pid: "cancelled"}
    assert run.session(stubborn)["reason"].endswith(
        ", to be cancelled; still running 300ms after its cancel"
    )
    assert not stubborn.is_there
    assert running.state == IDLE
    assert run.seconds > 0.3
    assert run.document["status"] == "ok"


def test_a_query_that_outlives_its_cancel_is_lingering_without_escalate_after(stage: Stage) -> None:
    stubborn = stage.session(ACTIVE, query=STUBBORN)
    run = stage.reap(a_rule(SLOW, action="cancel"))
    assert run.outcomes() == {stubborn.pid: "lingering"}
    assert stubborn.state == ACTIVE


@pytest.mark.thorough
def test_a_query_that_starts_new_transactions_is_not_reported_cancelled_while_it_runs(
    stage: Stage,
) -> None:
    """The guard does not match, which proves nothing: the query still runs."""
    procedure = STUBBORN.replace("END LOOP", "COMMIT; END LOOP").replace("60", "5")
    stubborn = stage.session(ACTIVE, query=procedure)
    run = stage.reap(a_rule(SLOW, action="cancel", escalate_after="1s"))
    assert run.outcomes() == {stubborn.pid: "lingering"}
    assert stubborn.state == ACTIVE


def test_a_query_that_becomes_hidden_is_not_reported_cancelled(stage: Stage) -> None:
    stubborn = stage.session(ACTIVE, query=STUBBORN)
    stage.role("reaper", "IN ROLE pg_read_all_stats, pg_signal_backend")

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_VERIFY:
            stage.root.run("REVOKE pg_read_all_stats FROM reaper")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port, username="reaper")
        run = stage.reap(a_rule(SLOW, action="cancel", escalate_after="200ms"))
    assert run.outcomes() == {stubborn.pid: "lingering"}
    assert run.target()["status"] == "blind"
    assert run.target()["slots"]["used_after"] is None


@pytest.mark.thorough
def test_a_cancelled_query_lingers_if_the_run_has_no_time_to_escalate(stage: Stage) -> None:
    stubborn = stage.session(ACTIVE, query=STUBBORN)
    run = stage.reap(a_rule(SLOW, action="cancel", escalate_after="1m"), seconds=6)
    assert run.outcomes() == {stubborn.pid: "lingering"}
    assert run.session(stubborn)["reason"].endswith("; the run has no time for escalate_after: 1m")
    assert stubborn.state == ACTIVE
    assert run.seconds < 6 + PATIENCE


def test_cancel_does_not_hit_the_next_query_of_the_session(stage: Stage) -> None:
    stage.root.run("SELECT pg_advisory_lock(9)")
    victim = stage.session(LEAK).start("SELECT pg_advisory_lock(9)")

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_CANCEL:
            stage.root.run("SELECT pg_advisory_unlock(9)")
            until(lambda: victim.state == LEAK, "its query has ended")
            assert victim._thread  # noqa: SLF001 -- the statement's own
            victim._thread.join()  # noqa: SLF001 -- so that the connection is free
            victim.start("SELECT pg_sleep(60)")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(a_rule(SLOW | {"wait_event_type": ["Lock"]}, action="cancel"))
        assert run.outcomes() == {victim.pid: "escaped"}
    assert victim.state == ACTIVE


def test_a_session_whose_query_ends_before_the_escalation_is_not_terminated(stage: Stage) -> None:
    """It ends between the last verification and the signal."""
    running = stage.session(ACTIVE)
    calls: list[Moment] = []

    def before(moment: Moment) -> None:
        calls.append(moment)
        if moment is Moment.PREPARE_CANCEL:
            os.kill(running.pid, signal.SIGSTOP)  # it gets the signal when it runs again
        if moment is Moment.PREPARE_TERMINATE:
            os.kill(running.pid, signal.SIGCONT)
            until(lambda: running.state == IDLE, "the cancel has come through")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(a_rule(SLOW, action="cancel", escalate_after="100ms"))
    assert Moment.PREPARE_TERMINATE in calls
    assert run.outcomes() == {running.pid: "cancelled"}
    assert running.is_there


def test_observe_reports_what_would_be_cancelled(stage: Stage) -> None:
    running = stage.session(ACTIVE)
    run = stage.run({"mode": "observe", "policy": policy(a_rule(SLOW, action="cancel"))})
    assert run.outcomes() == {running.pid: "would_terminate"}
    assert run.session(running)["reason"].endswith(", to be cancelled")
    assert running.state == ACTIVE


# -- keep and observe-only rules --------------------------------------------------------------------


def test_a_kept_session_is_left_alone_and_not_reported(stage: Stage) -> None:
    batch, leak = stage.session(LEAK, role="batch_1"), stage.session(LEAK)
    keep = {"name": "keep", "match": {"state": [LEAK], "role": ["batch_*"]}, "action": "keep"}
    run = stage.reap(keep, rule())
    assert run.outcomes() == {leak.pid: "terminated"}
    assert batch.is_there


def test_an_observe_only_rule_reports_and_never_signals(
    stage: Stage, output: pytest.CaptureFixture[str]
) -> None:
    leak, young = stage.session(LEAK, role="etl"), stage.session(LEAK)
    warn = a_rule({}, mode="observe", confirm_after="200ms") | {"name": "warn"}
    run = stage.reap(warn, rule(role=["etl"]), limits={"max_terminations": 1, "max_share": "50%"})
    assert run.outcomes() == {leak.pid: "terminated", young.pid: "would_terminate"}
    assert young.is_there
    assert run.session(young)["rule"] == "warn"
    lines = [json.loads(line) for line in output.readouterr().out.splitlines()]
    logged = {
        line["session"]["pid"]: line["outcome"]
        for line in lines
        if line.get("message") == "outcome"
    }
    assert logged == run.outcomes()

    run = stage.reap(warn)  # alone: nothing was done
    assert run.outcomes() == {young.pid: "would_terminate"}
    assert run.document["totals"]["terminated"] == 0
    assert run.target()["status"] == "ok"
    assert "OBSERVED" in run.said
    assert young.is_there


def test_kept_and_observed_sessions_count_in_no_limit_until_or_breaker(
    own_server: Callable[..., Stage],
) -> None:
    stage = a_small_server(own_server)  # 20 usable: 45 % are 9, 40 % are 8
    batch = stage.sessions(3, LEAK, role="batch_1")
    idle = stage.sessions(3, IDLE)
    leaks = stage.sessions(2)
    run = stage.reap(  # with the superuser's connection 9 are used
        a_rule({"state": [IDLE, LEAK]}, mode="observe") | {"name": "warn"},
        a_rule({"role": "batch_*"}, action="keep") | {"name": "keep"},
        a_rule({}, when={"slots_used": "45%"}, until={"slots_used": "40%"}),
        limits={"max_condemned": 1, "max_terminations": 1, "max_per_application": 1},
    )
    assert run.outcomes() == {
        **{victim.pid: "would_terminate" for victim in idle},
        leaks[0].pid: "terminated",
        leaks[1].pid: "spared",
    }
    assert run.session(leaks[1])["reason"].endswith("; not needed to reach slots_used: 40%")
    assert stage.survivors([*batch, *idle]) == [*batch, *idle]


def test_apply_changes_no_setting_for_sessions_that_are_only_observed(stage: Stage) -> None:
    stage.session(LEAK)
    run = stage.run(
        {
            "apply": ["set-idle-in-transaction-timeout"],
            "mode": "observe",
            "policy": policy(a_rule({}, mode="observe")),
        }
    )
    assert run.target()["applied"] == []


# -- confirmation by a second snapshot -------------------------------------------------------------

CONFIRMED = a_rule({}, confirm_after="300ms")


def _act_before_second_snapshot(change: Callable[[], object]) -> Callable[[Moment], None]:
    """Make the change before the second snapshot."""
    snapshots: list[Moment] = []

    def before(moment: Moment) -> None:
        if moment is Moment.SNAPSHOT:
            snapshots.append(moment)
            if len(snapshots) == 2:
                change()

    return before


def _next_transaction(victim: Victim) -> None:
    for statement in ("COMMIT", "BEGIN", "SELECT 1"):
        victim.connection.run(statement)
    until(lambda: _age(victim, "state_change") > 0.01, "it would match again")


def _age(victim: Victim, since: str) -> float:
    age: float = victim.read_column(f"extract(epoch FROM clock_timestamp() - {since})::float8")
    return age


def test_a_session_in_another_transaction_at_the_second_snapshot_escapes(stage: Stage) -> None:
    leak, pooled = stage.sessions(2)
    before = _act_before_second_snapshot(lambda: _next_transaction(pooled))
    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(CONFIRMED)
    assert run.outcomes() == {leak.pid: "terminated", pooled.pid: "escaped"}
    assert pooled.is_there
    assert run.session(pooled)["reason"].endswith(
        "; left alone: 300ms later it is another transaction, or no longer matches"
    )
    assert run.seconds > 0.3
    assert run.document["totals"]["escaped"] == 1


def test_a_transaction_that_ran_another_statement_meanwhile_is_the_same(
    stage: Stage,
) -> None:
    """A rule on the age of transactions also matches those that run a statement now and then."""
    busy = stage.session(LEAK)
    before = _act_before_second_snapshot(lambda: busy.connection.run("SELECT 2"))
    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(a_rule({"transaction_for": "1ms"}, confirm_after="300ms"))
    assert run.outcomes() == {busy.pid: "terminated"}


def test_a_session_that_no_longer_matches_at_the_second_snapshot_escapes(stage: Stage) -> None:
    leak, working = stage.sessions(2)
    until(lambda: _age(working, "state_change") > 0.25, "both are old enough")
    before = _act_before_second_snapshot(lambda: working.connection.run("SELECT 2"))
    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(a_rule({"idle_for": "200ms"}, confirm_after="300ms"))
    assert run.outcomes() == {leak.pid: "terminated", working.pid: "escaped"}
    assert working.is_there


def test_pressure_that_is_over_at_the_second_snapshot_condemns_no_session(
    own_server: Callable[..., Stage],
) -> None:
    stage = a_small_server(own_server)
    leaks, others = stage.sessions(8), stage.sessions(9, IDLE)
    tier = a_rule({}, when={"slots_used": "85%"}, confirm_after="200ms")

    def leave() -> None:
        for other in others[:4]:
            other.connection.close()
        until(lambda: stage.clients < 16, "they have gone")

    with Proxy(stage.server.port, before=_act_before_second_snapshot(leave)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(tier)
    assert set(run.outcomes().values()) == {"escaped"}
    assert stage.survivors(leaks) == leaks
    assert run.session(leaks[0])["reason"].endswith("; left alone: 200ms later no rule matches")


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_slots_freed_by_the_run_do_not_end_the_pressure(
    own_server: Callable[..., Stage], mode: str
) -> None:
    """An observe-only run finds the same victims."""
    stage = a_small_server(own_server)  # 20 usable
    plain, tier = stage.sessions(6, role="plain"), stage.sessions(10, role="tier")
    run = stage.run(
        {
            "mode": mode,
            "policy": policy(
                a_rule({"role": ["plain"]}, name="plain"),
                a_rule(
                    {"role": ["tier"]},
                    when={"slots_used": "80%"},
                    until={"slots_used": "40%"},
                    confirm_after="200ms",
                ),
            ),
        }
    )
    outcome = "terminated" if mode == "enforce" else "would_terminate"
    outcomes = run.outcomes()  # 17 used, 8 are 40 %
    assert [outcomes[session.pid] for session in plain] == [outcome] * 6
    assert [outcomes[session.pid] for session in tier] == [outcome] * 3 + ["spared"] * 7


def test_the_breaker_counts_at_the_first_snapshot_only(stage: Stage) -> None:
    """Healthy sessions that exit meanwhile do not trip a breaker that was not tripped."""
    leaks, healthy = stage.sessions(3), stage.sessions(4, IDLE)

    def leave() -> None:
        for session in healthy:
            session.connection.close()
        until(lambda: stage.survivors(healthy) == [], "they have gone")

    with Proxy(stage.server.port, before=_act_before_second_snapshot(leave)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(CONFIRMED, limits={"max_share": "50%"})  # 3 of 8, then 3 of 4
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}


@pytest.mark.majors(14, 18)
def test_idle_session_timeout_does_not_end_our_connection_between_two_snapshots(
    stage: Stage,
) -> None:
    leak = stage.session(LEAK)
    stage.root.run("ALTER ROLE session_reaper SET idle_session_timeout = '100ms'")
    stage.cleanup(stage.root.run, "ALTER ROLE session_reaper RESET idle_session_timeout")
    run = stage.reap(a_rule({}, confirm_after="400ms"))
    assert run.outcomes() == {leak.pid: "terminated"}


def test_observe_reports_what_would_be_denied(stage: Stage) -> None:
    denied, allowed = stage.session(LEAK, role="other"), stage.session(LEAK, role="app")
    stage.role("reaper", "IN ROLE pg_read_all_stats, app")
    stage.target(username="reaper")
    run = stage.run({"mode": "observe", "policy": policy()})
    assert run.outcomes() == {denied.pid: "denied", allowed.pid: "would_terminate"}


def test_a_rule_without_confirm_after_does_not_wait(stage: Stage) -> None:
    first, second = stage.session(LEAK, role="first"), stage.session(LEAK, role="second")
    seen: list[list[Victim]] = []
    before = _act_before_second_snapshot(lambda: seen.append(stage.survivors([first, second])))
    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(
            a_rule({"role": ["first"]}, name="at-once"),
            a_rule({"role": ["second"]}, confirm_after="300ms"),
        )
    assert seen == [[second]]
    assert run.outcomes() == {first.pid: "terminated", second.pid: "terminated"}


def test_rules_may_have_different_confirm_after(stage: Stage) -> None:
    roles = ("a", "b", "c")
    victims = {role: stage.session(LEAK, role=role) for role in roles}
    pauses = {"a": "300ms", "b": "100ms", "c": "200ms"}
    rules = [a_rule({"role": [r]}, name=r, confirm_after=pauses[r]) for r in roles]
    run = stage.reap(*rules)
    assert run.outcomes() == {victim.pid: "terminated" for victim in victims.values()}


def test_observe_also_confirms_and_signals_no_session(stage: Stage) -> None:
    leak, pooled = stage.sessions(2)
    before = _act_before_second_snapshot(lambda: _next_transaction(pooled))
    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.run({"mode": "observe", "policy": policy(CONFIRMED)})
    assert run.outcomes() == {leak.pid: "would_terminate", pooled.pid: "escaped"}
    assert stage.survivors([leak, pooled]) == [leak, pooled]


def test_a_session_is_spared_if_the_run_has_no_time_for_confirm_after(stage: Stage) -> None:
    leak = stage.session(LEAK)
    run = stage.reap(a_rule({}, confirm_after="50s"), seconds=50)
    assert run.outcomes() == {leak.pid: "spared"}
    assert run.session(leak)["reason"].endswith("; the run has no time for confirm_after: 50s")
    assert leak.is_there
    assert run.seconds < PATIENCE  # it does not wait for the end of its time


# -- limits ----------------------------------------------------------------------------------------


def test_max_per_application_limits_each_application(stage: Stage) -> None:
    api = stage.sessions(4, application_name="api")
    others = [stage.session(LEAK, application_name=name) for name in ("web", "", "")]
    run = stage.reap(limits={"max_per_application": 2})
    assert stage.survivors([*api, *others]) == api[2:]
    assert [run.outcomes()[leak.pid] for leak in api] == ["terminated"] * 2 + ["spared"] * 2
    assert run.session(api[2])["reason"].endswith(
        "; limits.max_per_application of 2 was reached by 'api'"
    )


def test_max_per_run_limits_all_targets_together(own_server: Callable[..., Stage]) -> None:
    here, there = own_server(), own_server()
    leaks = [*here.sessions(3), *there.sessions(3)]
    here.target("here")
    here.aws.put_secret("there", there.secret())
    here.listed("there")
    run = here.reap(limits={"max_per_run": 4, "max_terminations": 3})
    outcomes = [*run.outcomes("here").values(), *run.outcomes("there").values()]
    assert (outcomes.count("terminated"), outcomes.count("spared")) == (4, 2)
    assert sum(leak.is_there for leak in leaks) == 2
    assert run.document["totals"]["terminated"] == 4
    spared = [
        session
        for target in run.document["targets"]
        for session in target["sessions"]
        if session["outcome"] == "spared"
    ]
    for session in spared:
        assert session["reason"].endswith("; limits.max_per_run of 4 was reached")


def test_the_breaker_does_not_trip_below_min_sessions(stage: Stage) -> None:
    leaks = stage.sessions(2)  # with the superuser's 2 of 3
    run = stage.reap(limits={"max_share": "50%"})
    assert run.target()["status"] == "breaker"
    assert stage.survivors(leaks) == leaks
    run = stage.reap(limits={"max_share": "50%", "min_sessions": 4})
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
