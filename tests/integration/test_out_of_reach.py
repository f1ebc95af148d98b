"""Sessions that a rule matches and the reaper may not end: nothing about them is silent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pg8000.native import literal

from tests.integration.stage import ACTIVE, IDLE, LEAK, policy, rule, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Run, Stage, Victim

pytestmark = pytest.mark.every_major
BLOCKERS = rule("blockers", blocks=1, blocks_for="1ms")
HIDDEN = "name the role in the rule to include them"
LOCK = "SELECT pg_advisory_xact_lock(7)"
GID = "customer o'brien; 4711"


def open_replicating(stage: Stage, leaks: int = 2, **options: object) -> list[Victim]:
    """Open leaks of a role whose REPLICATION attribute protects them."""
    stage.role("avnadmin", "REPLICATION")
    return stage.sessions(leaks, LEAK, role="avnadmin", application_name="api", **options)


def open_waiting(stage: Stage) -> Victim:
    waiter = stage.session(ACTIVE, role="waiter", query=LOCK, application_name="checkout")
    until(lambda: waiter.read_column("wait_event_type") == "Lock", "it waits")
    return waiter


def statement_of(run: Run, beginning: str) -> str:
    """Return the statement that stands alone on a line of the email."""
    lines = (line.strip() for line in run.email.body.splitlines())
    (found,) = (line for line in lines if line.startswith(beginning))
    return found


# -- protected sessions ----------------------------------------------------------------------------


def test_protected_sessions_are_in_the_return_value_of_a_quiet_run(stage: Stage) -> None:
    leaks = open_replicating(stage)
    stage.session(LEAK, application_name="pg_dump")
    stage.role("boss", "SUPERUSER")
    stage.session(LEAK, "boss", application_name="psql")
    stage.session(IDLE, "avnadmin")  # no rule matches it
    run = stage.run({"mode": "enforce", "policy": policy()})
    assert run.emails == []
    assert run.document["totals"]["protected"] == 4
    groups = run.target()["protected"]
    assert all(group.pop("oldest_seconds") >= 0 for group in groups)
    assert groups[0] == {
        "rule": "leak",
        "by": "replication role",
        "role": "avnadmin",
        "application": "api",
        "count": 2,
    }
    assert {group["by"] for group in groups[1:]} == {"superuser", "built in: pg_dump"}
    assert stage.survivors(leaks) == leaks


def test_a_session_that_a_later_rule_condemns_is_not_listed_as_protected(stage: Stage) -> None:
    (leak,) = open_replicating(stage, leaks=1)
    run = stage.reap(rule("general"), rule("named", role=["avnadmin"]))
    assert run.outcomes() == {}  # an event's policy lifts nothing
    assert run.document["totals"]["protected"] == 1
    stage.use_policy(policy(rule("general"), rule("named", role=["avnadmin"])))
    run = stage.run()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.target()["protected"] == []
    assert run.document["totals"]["protected"] == 0


def test_protected_sessions_are_in_the_mail_where_slots_are_short(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": "24", "superuser_reserved_connections": "4"})
    stage.target()
    open_replicating(stage, leaks=14)
    stage.sessions(2, IDLE)
    run = stage.run({"policy": policy()})
    assert run.target()["status"] == "ok"
    sentence = f"14 sessions match rule leak but are protected (replication role): {HIDDEN}"
    assert sentence in run.said
    assert any(sentence in step for step in run.document["steps"])
    assert run.document["verdict"] == (
        "ACTION NEEDED: A rule matches protected sessions that hold slots on orders."
    )
    assert sentence in json.loads(run.email.chat)["content"].get("nextSteps", [""])[0].replace(
        "`", ""
    )


@pytest.mark.usefixtures("table")
def test_a_protected_session_that_another_one_waits_for_is_in_the_mail(stage: Stage) -> None:
    """Also if no rule asks who waits for whom; once per REMIND_AFTER."""
    open_replicating(stage, leaks=1, query=LOCK)
    open_waiting(stage)
    stage.use_policy(policy())
    run = stage.run()
    assert "1 session matches rule leak but is protected (replication role)" in run.said
    assert "1 waiting" in run.said
    assert run.document["verdict"] == (
        "ACTION NEEDED: A rule matches protected sessions that block others on orders."
    )
    assert stage.run().emails == []
    stage.monkeypatch.setenv("REMIND_AFTER", "1s")
    until(lambda: stage.run().emails, "it is reported again")


def test_many_protections_leave_room_for_the_holders_among_the_steps(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": "24", "superuser_reserved_connections": "4"})
    stage.target()
    open_replicating(stage, leaks=2)
    for name in ("rdsproxyadmin", "deploy", "etl"):
        stage.session(LEAK, name)
    for application in ("pg_dump", "barman", "keep"):
        stage.session(LEAK, application_name=application)
    stage.sessions(9, IDLE, application_name="web")
    protect = {"roles": ["deploy", "etl"], "applications": ["keep"]}
    run = stage.run({"policy": policy(protect=protect)})
    assert run.document["totals"]["protected"] == 8
    assert any("9 idle: web@local" in step for step in run.document["steps"])
    assert any(
        "5 more sessions that rules match, also protected: " in x for x in run.document["steps"]
    )


# -- blockers --------------------------------------------------------------------------------------


@pytest.fixture
def preparing(own_server: Callable[..., Stage]) -> Stage:
    return own_server({"max_prepared_transactions": "5"})


def test_a_prepared_transaction_that_blocks_is_reported_with_what_to_run(preparing: Stage) -> None:
    orphan = preparing.connect()
    orphan.run("BEGIN")
    orphan.run(LOCK)
    orphan.run(f"PREPARE TRANSACTION {literal(GID)}")
    orphan.close()
    preparing.target()
    preparing.use_policy(policy(BLOCKERS))
    waiter = open_waiting(preparing)
    run = preparing.run()
    assert run.document["verdict"].startswith("ACTION NEEDED: A blocker that the reaper cannot end")
    assert "1 session (checkout as waiter; the longest for " in run.said
    (blocker,) = run.target()["blockers_out_of_reach"]
    assert blocker.pop("longest_seconds") >= 0
    assert blocker == {
        "rule": "blockers",
        "by": "prepared transaction",
        "pid": None,
        "waiting": 1,
    }
    assert "o'brien" not in run.email.body + json.dumps(run.document)
    ((statement, *_),) = preparing.root.run(statement_of(run, "SELECT format("))
    preparing.root.run(statement)
    until(lambda: waiter.state != ACTIVE, "it has got the lock")


@pytest.mark.parametrize("by_row", [True, False], ids=["row", "advisory lock"])
def test_prepared_transactions_that_block_nobody_are_not_rolled_back(
    preparing: Stage, *, by_row: bool
) -> None:
    """They may be one half of a healthy distributed transaction."""
    root = preparing.root
    root.run("CREATE TABLE account AS SELECT n FROM generate_series(1, 2) AS n")
    preparing.role("waiter")
    root.run("GRANT ALL ON account TO waiter")
    blocking = "UPDATE account SET n = n WHERE n = 1" if by_row else LOCK
    for gid, query in (("healthy", "UPDATE account SET n = n WHERE n = 2"), ("orphan", blocking)):
        root.run("BEGIN")
        root.run(query)
        root.run(f"PREPARE TRANSACTION '{gid}'")
        preparing.cleanup(root.run, f"ROLLBACK PREPARED '{gid}'")
    waiter = preparing.session(ACTIVE, role="waiter", query=blocking)
    until(lambda: waiter.read_column("wait_event_type") == "Lock", "it waits")
    run = preparing.reap(BLOCKERS)
    printed = root.run(statement_of(run, "SELECT format("))
    assert [row[0] for row in printed] == ["ROLLBACK PREPARED 'orphan'"]


def test_a_prepared_transaction_that_blocks_for_less_is_not_reported(preparing: Stage) -> None:
    preparing.root.run("BEGIN")
    preparing.root.run(LOCK)
    preparing.root.run("PREPARE TRANSACTION 'x'")
    preparing.cleanup(preparing.root.run, "ROLLBACK PREPARED 'x'")
    open_waiting(preparing)
    patient = rule("blockers", blocks=1, blocks_for="1h")
    many = rule("many", blocks=2, blocks_for="1ms")
    seeing = {**BLOCKERS, "name": "seeing", "mode": "observe"}
    run = preparing.reap(patient, many, seeing)
    assert run.emails == []
    assert "blockers_out_of_reach" not in run.target()


def test_a_superuser_that_blocks_is_reported_with_what_to_run(stage: Stage) -> None:
    stage.role("boss", "SUPERUSER")
    blocker = stage.session(LEAK, "boss", query=LOCK, application_name="psql")
    waiter = open_waiting(stage)
    run = stage.reap(BLOCKERS)
    assert "pid" in run.said
    assert run.target()["blockers_out_of_reach"][0]["by"] == "superuser"
    assert "which is protected (superuser)" in run.said
    assert HIDDEN not in run.said
    assert run.said.count("1 session (checkout as waiter;") == 1  # once, as a blocker
    assert json.loads(run.email.attributes["applications"]) == ["psql", "checkout"]
    assert json.loads(run.email.attributes["roles"]) == ["boss", "waiter"]
    stage.root.run(statement_of(run, "SELECT pg_terminate_backend"))
    until(lambda: not blocker.is_there, "it is gone")
    until(lambda: waiter.state != ACTIVE, "it has got the lock")


def test_a_blocker_that_works_again_outlives_what_the_mail_says_to_run(stage: Stage) -> None:
    (blocker,) = open_replicating(stage, leaks=1, query=LOCK)
    open_waiting(stage)
    run = stage.reap(BLOCKERS)
    assert HIDDEN in run.said
    blocker.connection.run("COMMIT")
    assert stage.root.run(statement_of(run, "SELECT pg_terminate_backend")) == []
    assert blocker.is_there


@pytest.mark.usefixtures("table")
def test_the_end_of_a_blocker_out_of_reach_is_reported(stage: Stage) -> None:
    (blocker,) = open_replicating(stage, leaks=1, query=LOCK)
    open_waiting(stage)
    stage.use_policy(policy(BLOCKERS))
    assert "blocker" in stage.run().said
    assert stage.run().emails == []
    blocker.connection.run("COMMIT")
    run = stage.run()
    assert run.document["verdict"].startswith("RECOVERED")
    assert "blocker out of reach (blockers, replication role)" in run.said


@pytest.mark.usefixtures("table")
def test_a_blocker_that_an_earlier_rule_matches_by_now_has_not_recovered(stage: Stage) -> None:
    """Some minutes later it is a leak, too; the same sessions still wait for it."""
    stage.role("boss", "SUPERUSER")
    stage.session(LEAK, "boss", query=LOCK)
    open_waiting(stage)
    stage.use_policy(policy(BLOCKERS))
    stage.run()
    stage.use_policy(policy(rule(), BLOCKERS))
    run = stage.run()
    assert run.emails == []
    assert run.target()["blockers_out_of_reach"][0]["waiting"] == 1
    assert "recovered" not in run.document["summary"]


def test_the_subject_of_a_run_that_ended_one_blocker_has_the_one_out_of_reach(stage: Stage) -> None:
    """One session waits for three, of which the run may end only one."""
    stage.role("boss", "SUPERUSER")
    shared = LOCK.replace("xact_lock", "xact_lock_shared")
    stage.session(LEAK, "boss", query=shared)
    stage.session(LEAK, "boss", query=shared)
    leak = stage.session(LEAK, query=shared)
    open_waiting(stage)
    run = stage.reap(BLOCKERS)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.email.subject.startswith(
        "orders: 1 session terminated, 1 waiting for a blocker out of reach, slots "
    )
