"""A run that condemns sessions advises how to remove the cause, from facts about the server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from session_reaper.deadline import Deadline
from session_reaper.postgres.server import Server
from session_reaper.targets.target import Secret

from infra.local.certificates import make_tls
from tests.builders import read_target
from tests.integration.stage import (
    ABORTED,
    ACTIVE,
    HOSTILE_NAMES,
    IDLE,
    LEAK,
    PATIENCE,
    REAPER,
    Run,
    Stage,
    policy,
    rule,
)
from tests.integration.wire import Action, Fault, Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from session_reaper.sessions.server_facts import ServerFacts

pytestmark = pytest.mark.every_major

IN_TRANSACTION = "set-idle-in-transaction-timeout"
ALTER = "ALTER ROLE \"{}\" SET idle_in_transaction_session_timeout = '10min';"


def message(run: Run, code: str) -> str:
    (advice,) = [a for a in run.target()["advice"] if a["code"] == code]
    return str(advice["message"])


def preflight(stage: Stage) -> ServerFacts:
    secret = Secret(name="orders", arn="arn", text=json.dumps(stage.secret()))
    target = read_target(secret)
    server = Server.connect(target, Deadline(10))
    try:
        return server.preflight(Deadline(10))
    finally:
        server.close()


def test_a_quiet_run_takes_one_snapshot_and_gives_no_advice_on_roles(stage: Stage) -> None:
    stage.session(IDLE)
    with Proxy(stage.server.port) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert set(run.sql_by_code()) == {"encrypt-connection"}
    assert proxy.seen.count(Moment.SNAPSHOT) == 1


@pytest.mark.parametrize("state", [LEAK, ABORTED])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_advice_for_a_role_that_leaks_sets_the_idle_in_transaction_timeout(
    stage: Stage, state: str, mode: str
) -> None:
    """Once the timeout is set, it is not advised again."""
    stage.session(state)
    run = stage.run({"mode": mode, "policy": policy()})
    sql = run.sql_by_code()[IN_TRANSACTION]
    assert sql == ALTER.format("app")
    assert sql in run.email.body
    stage.root.run(sql)
    again = stage.session(LEAK)
    assert again.connection.run("SHOW idle_in_transaction_session_timeout") == [["10min"]]
    run = stage.reap()
    assert run.outcomes()[again.pid] == "terminated"
    assert IN_TRANSACTION not in run.sql_by_code()


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_the_statement_works_for_roles_of_any_name(stage: Stage, name: str) -> None:
    stage.session(LEAK, role=name)
    sql = stage.reap().sql_by_code()[IN_TRANSACTION]
    assert sql is not None
    stage.root.run(sql)
    ((settings,),) = stage.root.run("SELECT rolconfig FROM pg_roles WHERE rolname = :n", n=name)
    assert settings == ["idle_in_transaction_session_timeout=10min"]


@pytest.mark.parametrize(
    ("statements", "advised"),
    [
        (["ALTER ROLE app SET idle_in_transaction_session_timeout = '1min'"], False),
        (["ALTER DATABASE shop SET idle_in_transaction_session_timeout = '1min'"], False),
        (
            ["ALTER ROLE app IN DATABASE shop SET idle_in_transaction_session_timeout = '1min'"],
            False,
        ),
        (["ALTER DATABASE postgres SET idle_in_transaction_session_timeout = '1min'"], False),
        (["ALTER DATABASE template1 SET idle_in_transaction_session_timeout = '1min'"], True),
        (["ALTER ROLE ALL SET idle_in_transaction_session_timeout = '1min'"], False),
        (["ALTER ROLE session_reaper SET idle_in_transaction_session_timeout = '1min'"], False),
        (
            [
                "ALTER ROLE session_reaper SET idle_in_transaction_session_timeout = '1min'",
                "ALTER DATABASE shop SET idle_in_transaction_session_timeout = 0",
            ],
            True,
        ),
        (
            [
                "ALTER ROLE ALL SET idle_in_transaction_session_timeout = '1min'",
                "ALTER ROLE app SET idle_in_transaction_session_timeout = '0min'",
            ],
            True,
        ),
    ],
)
def test_the_timeout_is_advised_only_where_it_is_known_to_be_off(
    stage: Stage, statements: list[str], *, advised: bool
) -> None:
    stage.role("app")
    stage.database("shop")
    for statement in statements:
        stage.root.run(statement)
        altered = statement.partition(" SET ")[0]
        stage.cleanup(stage.root.run, f"{altered} RESET idle_in_transaction_session_timeout")
    stage.session(LEAK, database="shop")
    assert (IN_TRANSACTION in stage.reap().sql_by_code()) is advised


@pytest.mark.majors(14, 99)
def test_advice_for_a_role_that_leaves_idle_sessions_sets_the_idle_session_timeout(
    stage: Stage,
) -> None:
    stage.session(IDLE)
    sql = stage.reap(rule(state=IDLE)).sql_by_code()["set-idle-session-timeout"]
    assert sql == "ALTER ROLE \"app\" SET idle_session_timeout = '1h';"
    stage.root.run(sql)
    assert stage.session(IDLE).connection.run("SHOW idle_session_timeout") == [["1h"]]
    assert "set-idle-session-timeout" not in stage.reap(rule(state=IDLE)).sql_by_code()


@pytest.mark.majors(14, 99)
def test_a_timeout_hidden_by_our_own_setting_is_not_advised(stage: Stage) -> None:
    stage.root.run(f"ALTER ROLE {REAPER} SET idle_session_timeout = '60s'")
    stage.cleanup(stage.root.run, f"ALTER ROLE {REAPER} RESET idle_session_timeout")
    stage.session(IDLE)
    assert "set-idle-session-timeout" not in stage.reap(rule(state=IDLE)).sql_by_code()


@pytest.mark.majors(13, 13)
def test_13_has_no_timeout_for_idle_sessions(stage: Stage) -> None:
    stage.session(IDLE)
    assert set(stage.reap(rule(state=IDLE)).sql_by_code()) == {
        "encrypt-connection",
        "add-fallback-secret",
    }


def test_transaction_timeout_is_advised_where_the_server_has_it(stage: Stage) -> None:
    stage.session(ACTIVE)
    run = stage.reap(rule(state=ACTIVE, query_for="1ms"))
    sql = run.sql_by_code()
    if stage.server.major < 17:
        assert "set-transaction-timeout" not in sql
        return
    assert sql["set-transaction-timeout"] == "ALTER ROLE \"app\" SET transaction_timeout = '1h';"
    stage.root.run(sql["set-transaction-timeout"])
    stage.session(ACTIVE)
    assert "set-transaction-timeout" not in stage.reap(rule(state=ACTIVE)).sql_by_code()


def test_an_application_with_many_idle_sessions_is_advised_to_use_a_pooler(
    stage: Stage,
) -> None:
    """20 sessions are at least a quarter of at most 77 slots."""
    stage.session(LEAK)
    idle = stage.sessions(20, IDLE, role="web", application_name="checkout")
    run = stage.reap()
    slots = run.target()["slots"]["usable"]
    assert f"checkout as web held 20 idle sessions, of {slots} slots" in message(run, "use-pooler")
    idle[0].close()
    idle[1].close()
    stage.session(LEAK)
    assert "use-pooler" not in stage.reap().sql_by_code()


def test_sessions_in_a_transaction_do_not_count_for_the_pooler(stage: Stage) -> None:
    stage.sessions(20, LEAK, role="web", application_name="checkout")
    run = stage.run({"mode": "observe", "policy": policy()})
    assert "use-pooler" not in run.sql_by_code()


def test_idle_sessions_terminated_by_this_run_count_for_the_pooler(stage: Stage) -> None:
    stage.sessions(20, IDLE, role="web", application_name="checkout")
    run = stage.reap(rule(state=IDLE))
    assert "checkout as web held 20 idle sessions" in message(run, "use-pooler")


def test_a_reserved_slot_or_fallback_is_advised_where_neither_exists(stage: Stage) -> None:
    stage.session(LEAK)
    code = "set-reserved-connections" if stage.server.major >= 16 else "add-fallback-secret"
    assert code in stage.reap().sql_by_code()


def test_a_prepared_transaction_is_read_with_its_age_and_database_but_not_its_gid(
    own_server: Callable[..., Stage],
) -> None:
    """tests/unit tests the threshold of an hour."""
    stage = own_server({"max_prepared_transactions": "2"})
    stage.database("shop")
    assert preflight(stage).prepared == ()
    client = stage.session(IDLE, database="shop").connection
    client.run("BEGIN")
    client.run("PREPARE TRANSACTION 'canary'")
    found = preflight(stage)
    (prepared,) = found.prepared
    assert prepared.database == "shop"
    assert 0 < prepared.seconds < 60
    assert "canary" not in str(found)
    stage.session(LEAK)
    run = stage.reap()
    assert "end-prepared-transactions" not in run.sql_by_code()
    assert "canary" not in str(run.document)
    client.run("ROLLBACK PREPARED 'canary'")
    assert preflight(stage).prepared == ()


def test_a_replication_slot_is_reported_from_10000_held_transactions_on(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"wal_level": "logical"})
    stage.root.run("SELECT pg_create_physical_replication_slot('physical')")
    stage.root.run("SELECT pg_create_logical_replication_slot('orphan', 'pgoutput')")
    stage.cleanup(stage.root.run, "SELECT pg_drop_replication_slot('physical')")
    stage.session(LEAK)
    assert "drop-replication-slot" not in stage.reap().sql_by_code()
    stage.root.run(
        "DO $$BEGIN FOR i IN 1..10000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$"
    )
    stage.session(LEAK)
    run = stage.reap()
    sql = run.sql_by_code()["drop-replication-slot"]
    assert sql == "SELECT pg_drop_replication_slot('orphan');"
    assert "orphan (inactive) by 10,00" in message(run, "drop-replication-slot")
    stage.root.run(sql)
    stage.session(LEAK)
    assert "drop-replication-slot" not in stage.reap().sql_by_code()


@pytest.mark.tls
@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require"])
def test_advice_to_verify_the_certificate_unless_sslmode_is_verify_full(
    own_server: Callable[..., Stage], tmp_path: Path, sslmode: str
) -> None:
    tls = make_tls(tmp_path)
    stage = own_server(tls=tls)
    stage.target(sslmode=sslmode, sslrootcert=tls.authority.read_text())
    assert "verify-certificate" not in stage.reap().sql_by_code()
    stage.session(LEAK)
    assert ("verify-certificate" in stage.reap().sql_by_code()) is (sslmode != "verify-full")


def test_the_most_useful_advice_comes_first(stage: Stage) -> None:
    stage.session(LEAK)
    assert next(iter(stage.reap().sql_by_code())) == IN_TRANSACTION
    assert next(iter(stage.run({"check": True}).sql_by_code())) == IN_TRANSACTION


@pytest.mark.parametrize("action", [Action.HANG, Action.CLOSE, Action.DRIP])
def test_a_server_that_stops_answering_leaves_outcomes_unchanged_and_gets_no_advice(
    stage: Stage, action: Action
) -> None:
    leak = stage.session(LEAK)
    with Proxy(stage.server.port, Fault(action=action, moment=Moment.SNAPSHOT, nth=2)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=12.0 if action is Action.DRIP else 60.0)
    assert proxy.seen.count(Moment.SNAPSHOT) == 2
    assert run.seconds < 3 + PATIENCE  # it is given three of sixty
    assert run.target()["status"] == "ok"
    assert run.outcomes() == {leak.pid: "terminated"}
    assert set(run.sql_by_code()) == {"encrypt-connection"}


def test_a_run_short_of_time_skips_advice(stage: Stage) -> None:
    leak = stage.session(LEAK)
    run = stage.reap(seconds=3.0)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert set(run.sql_by_code()) == {"encrypt-connection"}
