"""The groups of sessions that hold the slots, where many slots are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.answers import HOLDERS, list_places
from tests.integration.rescue import store_superuser
from tests.integration.stage import IDLE, LEAK, REAPER, Client, policy, rule
from tests.integration.wire import Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Stage, Victim

pytestmark = pytest.mark.every_major
USABLE = 16


@pytest.fixture
def small(own_server: Callable[..., Stage], build: object) -> Stage:
    """A server with few slots for ordinary roles, and more for the reaper."""
    settings = {"max_connections": "20", "superuser_reserved_connections": "4"}
    if getattr(build, "major", 0) >= 16:
        settings |= {"superuser_reserved_connections": "2", "reserved_connections": "2"}
    stage = own_server(settings)
    stage.target(fallback_secret=store_superuser(stage))
    return stage


def crowd(stage: Stage, leaks: int = 0, idle: int = 0) -> list[Victim]:
    """Open sessions of two applications, one of them over TCP."""
    api = stage.sessions(idle, IDLE, application_name="api", tcp=True)
    return api + stage.sessions(leaks, LEAK, role="batch", application_name="import")


def test_a_full_server_s_holders_are_named_everywhere(small: Stage) -> None:
    crowd(small, idle=9)
    small.sessions(4, IDLE, role="batch", application_name="")
    small.fill("other")
    run = small.reap(rule(idle_for="1h"))
    slots, holders = run.target()["slots"], run.target()["holders"]
    assert slots["usable"] == USABLE
    assert slots["used_before"] >= USABLE
    first = holders[0]
    assert first.pop("oldest_seconds") >= 0
    assert first == {
        "application": "api",
        "role": "app",
        "client": "127.0.0.0/24",
        "state": IDLE,
        "count": 9,
    }
    assert holders[1].items() >= {"role": "batch", "client": None, "count": 4}.items()
    assert sum(holder["count"] for holder in holders) == slots["used_before"]
    assert run.email.subject.startswith("CRITICAL: ")
    assert "9 idle: api@127.0.0.0/24 (role app)" in run.document["steps"][0]
    assert run.said.count("9 idle: api@127.0.0.0/24 (role app)") == 2  # step, and what happened
    assert "4 idle: (no name)@local (role batch)" in run.said


def test_a_nearly_full_server_s_holders_are_those_that_remain(small: Stage) -> None:
    crowd(small, leaks=2, idle=13)
    run = small.reap()
    assert run.document["totals"]["terminated"] == 2
    holders = {holder["application"]: holder["count"] for holder in run.target()["holders"]}
    assert holders == {"api": 13, "import": 2, "": 1}  # as `used_before`, with the test's superuser
    assert "13 idle: api@127.0.0.0/24" in run.said
    assert "2 idle in transaction: import@" not in run.said
    assert any("13 idle: api" in step for step in run.document["steps"])


def test_a_server_with_free_slots_names_no_holders(small: Stage) -> None:
    crowd(small, leaks=1, idle=9)
    run = small.reap()
    assert "holders" not in run.target()
    assert "hold slots" not in run.said


def test_only_a_crowded_server_is_asked_for_its_holders(own_server: Callable[..., Stage]) -> None:
    stage = own_server({"max_connections": "20", "superuser_reserved_connections": "10"})
    crowd(stage, idle=5)  # and the superuser's session: 60 % of the slots
    with Proxy(stage.server.port) as proxy:
        stage.target(port=proxy.port)
        stage.reap(rule(idle_for="1h"))
        assert proxy.seen.count(Moment.SNAPSHOT) == 1
        crowd(stage, idle=1)
        proxy.seen.clear()
        assert stage.reap(rule(idle_for="1h")).target()["holders"][0]["count"] == 6
        assert proxy.seen.count(Moment.SNAPSHOT) == 2


def test_holders_are_not_named_once_there_is_room_again(small: Stage) -> None:
    crowd(small, leaks=8, idle=5)
    run = small.reap()
    assert len(run.target()["holders"]) == 3
    assert "hold slots" not in run.said


def test_sessions_of_a_dropped_role_are_holders_too(small: Stage) -> None:
    crowd(small, idle=4)
    small.root.run("CREATE ROLE vault_1 LOGIN")
    for _ in range(9):
        small.cleanup(
            Client("vault_1", database="postgres", unix_sock=small.server.unix_sock).close
        )
    small.root.run("DROP ROLE vault_1")
    run = small.run({"mode": "observe"})
    assert run.target()["holders"][0].items() >= {"role": None, "count": 9}.items()


def test_no_more_than_ten_groups_leave_the_server(small: Stage) -> None:
    for number in range(12):
        small.session(IDLE, application_name=f"app-{number}")
    run = small.reap(rule(idle_for="1h"))
    assert len(run.target()["holders"]) == 10


def test_the_holders_have_the_places_that_the_unit_tests_try(small: Stage) -> None:
    crowd(small, idle=12)
    (snapshot,) = small.run({"record": True}).document["snapshots"].values()
    holder = snapshot["holders"][0]
    assert len(holder) == len([*list_places(HOLDERS)]) - 2


@pytest.mark.parametrize(
    "function", ["network(inet)", "set_masklen(inet, integer)", "family(inet)"]
)
def test_a_role_that_may_not_read_the_holders_still_ends_leaks(small: Stage, function: str) -> None:
    crowd(small, leaks=2, idle=12)
    small.root.run(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    small.cleanup(small.root.run, f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC")
    run = small.reap()
    assert (run.target()["status"], run.document["totals"]["terminated"]) == ("ok", 2)
    assert "holders" not in run.target()
    advised = small.run({"check": True}).target()["advice"]
    (advice,) = (each for each in advised if each["code"] == "grant-functions")
    assert REAPER in advice["sql"]
    small.root.run(advice["sql"])
    assert small.run({"mode": "observe"}).target()["holders"]


def test_holders_that_are_protected_are_not_said_to_need_only_a_rule(small: Stage) -> None:
    small.role("avnadmin", "REPLICATION")
    small.sessions(14, IDLE, role="avnadmin", application_name="api")
    small.fill("other")
    run = small.reap(rule(idle_for="1h"))
    step = run.document["steps"][0]
    assert "14 idle: api@local (role avnadmin)" in step
    assert "They are protected (replication role). To let the reaper end such sessions" in step
    assert step.endswith("add a rule for them to the policy that names the role.")
    assert "pg_terminate_backend" not in step  # it would spare them


@pytest.mark.parametrize("protected", ["database", "dropped role"])
def test_holders_whose_sessions_are_all_protected_are_not_said_to_need_only_a_rule(
    small: Stage, protected: str
) -> None:
    """A group has neither databases nor dropped roles, but each of its sessions has."""
    small.database("billing")
    small.root.run("CREATE ROLE vault_1 LOGIN")
    role, database = ("app", "billing") if protected == "database" else ("vault_1", "postgres")
    small.role("app")
    for _ in range(12):
        client = Client(
            role, database=database, unix_sock=small.server.unix_sock, application_name="api"
        )
        small.cleanup(client.close)
        client.run("BEGIN")
        client.run("SELECT 1")
    small.root.run("DROP ROLE vault_1")
    protect = {"databases": ["billing"], "roles": ["nobody"]}
    run = small.run({"policy": policy(protect=protect)})
    (step,) = (step for step in run.document["steps"] if "The largest group" in step)
    shown = "role app" if protected == "database" else "role dropped"
    assert f"12 idle in transaction: api@local ({shown}), oldest" in step
    by = "protect.databases" if protected == "database" else "role dropped"
    assert f"They are protected ({by}): " in step
    assert "pg_terminate_backend" not in step  # it would end none of them
    assert "add a rule" not in step
    assert f"({shown})" in run.said


def test_the_statement_for_young_holders_is_said_to_end_none(small: Stage) -> None:
    small.sessions(12, IDLE, application_name="api")
    small.fill("other")
    run = small.reap(rule(idle_for="1h"))
    assert (
        "shorten the interval in this statement, because none is 5 minutes old: SELECT" in run.said
    )


def test_a_full_server_in_observe_mode_names_its_holders_first(small: Stage) -> None:
    crowd(small, leaks=9)
    small.fill("other")
    run = small.run({"mode": "observe", "policy": policy()})
    holders, *_, mode, why = run.document["steps"]
    assert holders.startswith("orders: Applications cannot connect. The largest group")
    assert "9 idle in transaction: import@local (role batch)" in holders
    assert "state = 'idle in transaction' AND usename = 'batch'" in holders
    assert "add a rule" not in holders  # one condemns them already
    assert "set the mode to enforce" in mode
    assert why.startswith("orders: Find out why")


def test_holders_whose_state_is_unknown_are_not_said_to_need_only_a_rule(small: Stage) -> None:
    small.role("app")
    small.root.run("ALTER ROLE app SET track_activities = off")
    for _ in range(12):
        client = small.connect("app", application_name="api")
        small.cleanup(client.close)
    step = next(x for x in small.reap().document["steps"] if "The largest group" in x)
    assert "12 disabled: api@local (role app)" in step
    assert step.endswith("No rule can match them, because track_activities is off. Turn it on.")
