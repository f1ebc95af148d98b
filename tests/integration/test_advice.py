"""A run that condemned a session recommends what ends the cause, by facts from the server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from session_reaper.deadline import Deadline
from session_reaper.postgres.server import Server
from session_reaper.targets.target import Secret

from infra.local.certificates import make_tls
from tests.builders import read_target
from tests.integration.advised import HOSTILE_NAMES, sql_by_code
from tests.integration.stage import (
    ABORTED,
    ACTIVE,
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


def read_facts_of(stage: Stage) -> ServerFacts:
    secret = Secret(name="orders", arn="arn", text=json.dumps(stage.secret()))
    target = read_target(secret)
    server = Server.connect(target, Deadline(10))
    try:
        return server.read_facts(Deadline(10))
    finally:
        server.close()


def test_a_quiet_run_queries_no_facts_and_advises_nothing_more(stage: Stage) -> None:
    stage.session(IDLE)
    with Proxy(stage.server.port) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert set(sql_by_code(run)) == {"encrypt-connection"}
    assert proxy.seen.count(Moment.SNAPSHOT) == 1


@pytest.mark.parametrize("state", [LEAK, ABORTED])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_role_that_leaks_transactions_is_advised_the_timeout_that_ends_them(
    stage: Stage, state: str, mode: str
) -> None:
    """Once it is set, it is not advised any more."""
    stage.session(state)
    run = stage.run({"mode": mode, "policy": policy()})
    sql = sql_by_code(run)[IN_TRANSACTION]
    assert sql == ALTER.format("app")
    assert sql in run.email.body
    stage.root.run(sql)
    again = stage.session(LEAK)
    assert again.connection.run("SHOW idle_in_transaction_session_timeout") == [["10min"]]
    run = stage.reap()
    assert run.outcomes()[again.pid] == "terminated"
    assert IN_TRANSACTION not in sql_by_code(run)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_the_statement_works_for_any_role_name(stage: Stage, name: str) -> None:
    stage.session(LEAK, role=name)
    sql = sql_by_code(stage.reap())[IN_TRANSACTION]
    assert sql is not None
    stage.root.run(sql)
    ((settings,),) = stage.root.run("SELECT rolconfig FROM pg_roles WHERE rolname = :n", n=name)
    assert settings == ["idle_in_transaction_session_timeout=10min"]


@pytest.mark.thorough
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
        (["ALTER ROLE ALL SET idle_in_transaction_session_timeout = 86400000"], True),
        (["ALTER DATABASE shop SET idle_in_transaction_session_timeout = '1d'"], True),
        (["ALTER ROLE app SET idle_in_transaction_session_timeout = '24h'"], True),
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
def test_a_timeout_is_advised_only_where_it_is_known_to_be_off_or_too_long(
    own_server: Callable[..., Stage], statements: list[str], *, advised: bool
) -> None:
    stage = own_server()
    stage.role("app")
    stage.database("shop")
    for statement in statements:
        stage.root.run(statement)
    stage.session(LEAK, database="shop")
    assert (IN_TRANSACTION in sql_by_code(stage.reap())) is advised


@pytest.mark.majors(14, 99)
def test_a_role_that_leaks_idle_sessions_is_advised_the_timeout_that_ends_them(
    stage: Stage,
) -> None:
    stage.session(IDLE)
    sql = sql_by_code(stage.reap(rule(state=IDLE)))["set-idle-session-timeout"]
    assert sql == "ALTER ROLE \"app\" SET idle_session_timeout = '1h';"
    stage.root.run(sql)
    assert stage.session(IDLE).connection.run("SHOW idle_session_timeout") == [["1h"]]
    assert "set-idle-session-timeout" not in sql_by_code(stage.reap(rule(state=IDLE)))


@pytest.mark.majors(14, 99)
def test_a_timeout_hidden_by_the_reaper_s_own_setting_is_not_advised(stage: Stage) -> None:
    stage.root.run(f"ALTER ROLE {REAPER} SET idle_session_timeout = '60s'")
    stage.cleanup(stage.root.run, f"ALTER ROLE {REAPER} RESET idle_session_timeout")
    stage.session(IDLE)
    assert "set-idle-session-timeout" not in sql_by_code(stage.reap(rule(state=IDLE)))


@pytest.mark.majors(13, 13)
def test_no_timeout_for_idle_sessions_is_advised_on_postgresql_13(stage: Stage) -> None:
    stage.session(IDLE)
    assert set(sql_by_code(stage.reap(rule(state=IDLE)))) == {
        "encrypt-connection",
        "add-fallback-secret",
    }


def test_a_role_with_endless_transactions_is_advised_transaction_timeout_if_the_server_has_it(
    stage: Stage,
) -> None:
    stage.session(ACTIVE)
    run = stage.reap(rule(state=ACTIVE, query_for="1ms"))
    sql = sql_by_code(run)
    if stage.server.major < 17:
        assert "set-transaction-timeout" not in sql
        return
    assert sql["set-transaction-timeout"] == "ALTER ROLE \"app\" SET transaction_timeout = '1h';"
    stage.root.run(sql["set-transaction-timeout"])
    stage.session(ACTIVE)
    assert "set-transaction-timeout" not in sql_by_code(stage.reap(rule(state=ACTIVE)))


def test_a_pooler_is_advised_for_an_application_with_many_idle_sessions(
    stage: Stage,
) -> None:
    """20 of at most 77 slots are more than a quarter."""
    stage.session(LEAK)
    idle = stage.sessions(20, IDLE, role="web", application_name="checkout")
    run = stage.reap()
    slots = run.target()["slots"]["usable"]
    assert f"checkout as web held 20 idle sessions, of {slots} slots" in message(run, "use-pooler")
    idle[0].close()
    idle[1].close()
    stage.session(LEAK)
    assert "use-pooler" not in sql_by_code(stage.reap())


def test_no_pooler_is_advised_for_sessions_in_a_transaction(stage: Stage) -> None:
    stage.sessions(20, LEAK, role="web", application_name="checkout")
    run = stage.run({"mode": "observe", "policy": policy()})
    assert "use-pooler" not in sql_by_code(run)


def test_idle_sessions_that_this_run_terminates_count_as_held(stage: Stage) -> None:
    stage.sessions(20, IDLE, role="web", application_name="checkout")
    run = stage.reap(rule(state=IDLE))
    assert "checkout as web held 20 idle sessions" in message(run, "use-pooler")


def test_a_reserved_slot_is_advised_where_there_is_none(stage: Stage) -> None:
    stage.session(LEAK)
    code = "set-reserved-connections" if stage.server.major >= 16 else "add-fallback-secret"
    assert code in sql_by_code(stage.reap())


def test_a_prepared_transaction_is_reported_without_its_gid(
    own_server: Callable[..., Stage],
) -> None:
    """The unit tests cover the threshold of an hour."""
    stage = own_server({"max_prepared_transactions": "2"})
    stage.database("shop")
    assert read_facts_of(stage).prepared == ()
    client = stage.session(IDLE, database="shop").connection
    client.run("BEGIN")
    client.run("PREPARE TRANSACTION 'canary'")
    found = read_facts_of(stage)
    (prepared,) = found.prepared
    assert prepared.database == "shop"
    assert 0 < prepared.seconds < 60
    assert "canary" not in str(found)
    stage.session(LEAK)
    run = stage.reap()
    assert "end-prepared-transactions" not in sql_by_code(run)
    assert "canary" not in str(run.document)
    client.run("ROLLBACK PREPARED 'canary'")
    assert read_facts_of(stage).prepared == ()


def test_a_replication_slot_is_reported_if_it_holds_back_10000_transactions(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"wal_level": "logical"})
    stage.root.run("SELECT pg_create_physical_replication_slot('physical')")
    stage.root.run("SELECT pg_create_logical_replication_slot('orphan', 'pgoutput')")
    stage.cleanup(stage.root.run, "SELECT pg_drop_replication_slot('physical')")
    stage.session(LEAK)
    assert "drop-replication-slot" not in sql_by_code(stage.reap())
    stage.root.run(
        "DO $$BEGIN FOR i IN 1..10000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$"
    )
    stage.session(LEAK)
    run = stage.reap()
    sql = sql_by_code(run)["drop-replication-slot"]
    assert sql == "SELECT pg_drop_replication_slot('orphan');"
    assert "orphan (inactive) by 10,00" in message(run, "drop-replication-slot")
    stage.root.run(sql)
    stage.session(LEAK)
    assert "drop-replication-slot" not in sql_by_code(stage.reap())


@pytest.mark.tls
@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require"])
def test_a_run_advises_to_verify_the_host_of_the_certificate(
    own_server: Callable[..., Stage], tmp_path: Path, sslmode: str
) -> None:
    tls = make_tls(tmp_path)
    stage = own_server(tls=tls)
    stage.target(sslmode=sslmode, sslrootcert=tls.authority.read_text())
    assert "verify-certificate" not in sql_by_code(stage.reap())
    stage.session(LEAK)
    assert ("verify-certificate" in sql_by_code(stage.reap())) is (sslmode != "verify-full")


def test_the_most_useful_advice_comes_first(stage: Stage) -> None:
    stage.session(LEAK)
    assert next(iter(sql_by_code(stage.reap()))) == IN_TRANSACTION
    assert next(iter(sql_by_code(stage.run({"check": True})))) == IN_TRANSACTION


@pytest.mark.thorough
@pytest.mark.parametrize("action", [Action.HANG, Action.CLOSE, Action.DRIP])
def test_a_server_that_stops_answering_does_not_change_the_outcomes(
    stage: Stage, action: Action
) -> None:
    leak = stage.session(LEAK)
    with Proxy(stage.server.port, Fault(action=action, moment=Moment.SNAPSHOT, nth=2)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=12.0 if action is Action.DRIP else 60.0)
    assert proxy.seen.count(Moment.SNAPSHOT) == 2
    assert run.seconds < 3 + PATIENCE  # three of its sixty seconds
    assert run.target()["status"] == "ok"
    assert run.outcomes() == {leak.pid: "terminated"}
    assert set(sql_by_code(run)) == {"encrypt-connection"}


def test_a_run_with_little_time_left_does_not_query_facts(stage: Stage) -> None:
    leak = stage.session(LEAK)
    run = stage.reap(seconds=4.0)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert set(sql_by_code(run)) == {"encrypt-connection"}
