"""The event `apply` sets the advised timeouts for roles that leak, and terminates nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pg8000.native import identifier

from tests.integration.advised import HOSTILE_NAMES, sql_by_code
from tests.integration.stage import ACTIVE, IDLE, LEAK, REAPER, Run, Stage, policy, rule
from tests.integration.standby import run_another
from tests.integration.wire import Action, Fault, Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infra.local.postgres import Build

    May = Callable[[str], None]

pytestmark = pytest.mark.every_major

CODE = "set-idle-in-transaction-timeout"
SETTING = "idle_in_transaction_session_timeout"


def apply(stage: Stage, *codes: str, mode: str = "enforce", **of_policy: object) -> Run:
    document = policy() | of_policy
    return stage.run({"apply": list(codes or [CODE]), "mode": mode, "policy": document})


def settings(stage: Stage, role: str = "app") -> list[str]:
    ((found,),) = stage.root.run("SELECT rolconfig FROM pg_roles WHERE rolname = :n", n=role)
    return found or []


def get_settings(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.target()["applied"]
    return found


@pytest.fixture
def may_alter(stage: Stage) -> Iterator[May]:
    """Let the reaper's role alter another role, as docs/advice.md says."""

    def let(role: str) -> None:
        stage.root.run(f"ALTER ROLE {REAPER} CREATEROLE")
        if stage.server.major >= 16:
            stage.root.run(
                f"GRANT {identifier(role)} TO {REAPER} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"
            )

    yield let
    stage.root.run(f"ALTER ROLE {REAPER} NOCREATEROLE")


def test_a_role_that_leaks_gets_its_timeout_and_no_session_is_terminated(
    stage: Stage, may_alter: May
) -> None:
    leak = stage.session(LEAK)
    may_alter("app")
    run = apply(stage)
    assert get_settings(run) == [
        {
            "code": CODE,
            "role": "app",
            "sql": f"ALTER ROLE \"app\" SET {SETTING} = '10min';",
            "old": None,
            "done": True,
            "error": None,
        }
    ]
    assert run.document["status"] == "ok"
    assert settings(stage) == [f"{SETTING}=10min"]
    assert CODE not in sql_by_code(run)
    assert run.outcomes() == {leak.pid: "would_terminate"}
    assert leak.is_there
    assert "1 setting applied (new sessions only)" in run.email.subject
    assert stage.session(LEAK).connection.run(f"SHOW {SETTING}") == [["10min"]]


def test_the_report_has_the_old_value(stage: Stage, may_alter: May) -> None:
    stage.role("app")
    stage.root.run(f"ALTER ROLE app SET {SETTING} = '0min'")
    stage.session(LEAK)
    may_alter("app")
    (setting,) = get_settings(apply(stage))
    assert setting["old"] == "0min"
    stage.root.run(setting["sql"].replace("10min", setting["old"]))
    assert settings(stage) == [f"{SETTING}=0min"]


def test_a_timeout_that_is_off_in_one_database_is_set_there(stage: Stage, may_alter: May) -> None:
    stage.role("app")
    stage.database("shop")
    stage.root.run(f"ALTER ROLE app SET {SETTING} = '5min'")
    stage.root.run(f"ALTER ROLE app IN DATABASE shop SET {SETTING} = 0")
    stage.session(LEAK, database="shop")
    stage.session(LEAK)
    may_alter("app")
    (setting,) = get_settings(apply(stage))
    assert setting["old"] == "0"
    assert setting["done"] is True
    assert settings(stage) == [f"{SETTING}=5min"]
    after = stage.session(IDLE, database="shop").connection
    assert after.run(f"SHOW {SETTING}") == [["10min"]]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_role_with_any_name_gets_its_timeout(stage: Stage, may_alter: May, name: str) -> None:
    stage.session(LEAK, role="app")
    stage.session(LEAK, role=name)
    may_alter(name)
    run = apply(stage, protect={"roles": ["app"]})
    (setting,) = get_settings(run)
    assert (setting["role"], setting["done"]) == (name, True)
    assert settings(stage, name) == [f"{SETTING}=10min"]
    assert settings(stage) == []


def test_a_setting_that_the_role_may_not_make_is_reported_with_a_hint(stage: Stage) -> None:
    leak = stage.session(LEAK)
    run = apply(stage)
    (setting,) = get_settings(run)
    assert setting["done"] is False
    assert setting["error"]["code"] == "42501"
    assert f"Run it as a superuser: {setting['sql']}" in setting["error"]["hint"]
    assert "need CREATEROLE" in setting["error"]["hint"]
    assert settings(stage) == []
    assert run.target()["status"] == run.document["status"] == "failed"
    assert run.error()["message"].startswith("1 of 1 settings not applied: altering: ")
    assert run.error()["hint"] == setting["error"]["hint"]
    assert "1 setting not applied" in run.email.subject
    assert sql_by_code(run)[CODE] == setting["sql"]
    assert leak.is_there
    stage.root.run(setting["sql"])
    assert get_settings(apply(stage)) == []


@pytest.mark.majors(16, 99)
def test_one_role_s_refusal_does_not_hide_another_s_success(stage: Stage, may_alter: May) -> None:
    stage.session(LEAK, role="denied")
    stage.session(LEAK, role="app")
    may_alter("app")
    run = apply(stage)
    assert {each["role"]: each["done"] for each in get_settings(run)} == {
        "denied": False,
        "app": True,
    }
    assert settings(stage) == [f"{SETTING}=10min"]
    assert run.target()["status"] == "failed"
    assert sql_by_code(run)[CODE] == f"ALTER ROLE \"denied\" SET {SETTING} = '10min';"


def test_observe_only_says_what_it_would_do(stage: Stage, may_alter: May) -> None:
    stage.session(LEAK)
    may_alter("app")
    run = apply(stage, mode="observe")
    (setting,) = get_settings(run)
    assert (setting["done"], setting["error"]) == (False, None)
    assert settings(stage) == []
    assert run.document["status"] == "ok"
    assert "1 setting would be applied" in run.email.subject
    assert CODE in sql_by_code(run)


def test_a_stack_in_mode_observe_applies_nothing(stage: Stage, may_alter: May) -> None:
    stage.monkeypatch.setenv("MODE", "observe")
    stage.session(LEAK)
    may_alter("app")
    assert get_settings(apply(stage))[0]["done"] is False
    assert settings(stage) == []


def test_only_the_requested_codes_are_applied(stage: Stage, may_alter: May) -> None:
    stage.session(LEAK)
    may_alter("app")
    run = apply(stage, "set-idle-session-timeout", "set-transaction-timeout")
    assert get_settings(run) == []
    assert settings(stage) == []
    assert "nothing to apply" in run.email.subject
    reason = f"its condemned sessions are idle in a transaction: request {CODE}"
    assert run.target()["unchanged"] == [{"role": "app", "code": None, "reason": reason}]
    assert CODE in sql_by_code(run)


@pytest.mark.majors(17, 99)
def test_several_codes_are_applied_to_the_roles_that_need_them(
    stage: Stage, may_alter: May
) -> None:
    stage.session(LEAK)
    stage.session(ACTIVE, role="web")
    may_alter("app")
    may_alter("web")
    stage.session(IDLE, role="app")
    every = rule(state=[LEAK, IDLE, ACTIVE])
    run = apply(stage, CODE, "set-idle-session-timeout", "set-transaction-timeout", rules=[every])
    assert all(each["done"] for each in get_settings(run))
    assert sorted(settings(stage)) == [f"{SETTING}=10min", "idle_session_timeout=1h"]
    assert settings(stage, "web") == ["transaction_timeout=1h"]


def test_protected_roles_superusers_and_the_reaper_s_own_role_are_not_changed(
    stage: Stage, may_alter: May
) -> None:
    protected = ["deploy", "rdsproxyadmin", "root2", REAPER]
    stage.role("root2", "SUPERUSER")
    for name in protected:
        stage.session(LEAK, role=name)
    may_alter("deploy")
    may_alter("rdsproxyadmin")
    ours = settings(stage, REAPER)
    run = apply(stage, protect={"roles": ["deploy"]})
    assert get_settings(run) == []
    assert CODE not in sql_by_code(run)
    assert [settings(stage, name) for name in protected[:-1]] == [[], [], []]
    assert settings(stage, REAPER) == ours


def test_nothing_is_applied_if_the_breaker_trips(stage: Stage, may_alter: May) -> None:
    stage.session(LEAK)
    may_alter("app")
    run = apply(stage, limits={"max_share": "10%"})
    assert run.target()["status"] == "breaker"
    assert get_settings(run) == []
    assert settings(stage) == []


@pytest.mark.parametrize("lost", [False, True])
def test_after_a_lost_connection_it_is_unknown_whether_the_setting_was_made(
    stage: Stage, may_alter: May, *, lost: bool
) -> None:
    stage.session(LEAK)
    may_alter("app")
    third = Fault(action=Action.CLOSE, moment=Moment.SNAPSHOT, nth=3, lost=lost)
    with Proxy(stage.server.port, third) as proxy:
        stage.target(port=proxy.port)
        run = apply(stage)
        after = settings(stage)
        again = apply(stage)  # by another connection, which does not break
    (setting,) = get_settings(run)
    assert setting["done"] is False
    assert "It is unknown whether" in setting["error"]["hint"]
    assert run.target()["status"] == "failed"
    assert CODE in sql_by_code(run)
    assert after == ([f"{SETTING}=10min"] if lost else [])
    assert [each["done"] for each in get_settings(again)] == ([] if lost else [True])


def test_on_a_replica_the_hint_says_to_set_the_timeout_on_the_writer(
    stage: Stage, build: Build
) -> None:
    with run_another(build, standby=True) as replica:
        leak = replica.leak()
        stage.target(port=replica.server.port)
        run = apply(stage)
        assert leak.is_there
    (setting,) = get_settings(run)
    assert setting["done"] is False
    assert "its writer" in setting["error"]["hint"]
    assert sql_by_code(run)[CODE] == setting["sql"]


def test_on_a_server_without_leaks_there_is_nothing_to_apply(stage: Stage) -> None:
    stage.session(IDLE)
    run = apply(stage)
    assert run.document["status"] == "ok"
    assert get_settings(run) == []
    assert "orders: nothing to apply, slots" in run.email.subject
    (unchanged,) = run.target()["unchanged"]
    assert (unchanged["role"], unchanged["code"]) == (None, None)
    assert unchanged["reason"].startswith("the policy condemns no session")


@pytest.mark.parametrize("place", ["ROLE ALL", "DATABASE shop", "ROLE app"])
def test_a_timeout_of_a_day_is_replaced_and_one_below_the_rules_time_is_explained(
    stage: Stage, may_alter: May, place: str
) -> None:
    """A day is Aurora's default: it ends no leak in time."""
    stage.role("app")
    stage.database("shop")
    stage.cleanup(stage.root.run, "ALTER ROLE ALL RESET ALL")
    stage.root.run(f"ALTER {place} SET {SETTING} = 86400000")
    stage.session(LEAK, database="shop")
    may_alter("app")
    (setting,) = get_settings(apply(stage))
    assert setting["sql"] == f"ALTER ROLE \"app\" SET {SETTING} = '10min';"
    assert setting["done"] is True
    again = apply(stage)
    assert get_settings(again) == []
    (unchanged,) = again.target()["unchanged"]
    assert (unchanged["role"], unchanged["code"]) == ("app", CODE)
    assert unchanged["reason"].startswith(f"its {SETTING} is already 10min, at most 10m;")
    assert f"Nothing to set for role app: its {SETTING}" in " ".join(again.email.body.split())


@pytest.mark.parametrize(
    ("written", "is_late"),
    [
        (" 0.5  h ", True),
        ("+1e3s", True),
        ("500us", True),  # rounded to 0, which is off
        ("0.1 h", False),
        ("0x5265C00", None),
        ("01130", None),
    ],
)
def test_a_timeout_in_an_unusual_form_is_read_or_named(
    stage: Stage, may_alter: May, written: str, *, is_late: bool | None
) -> None:
    stage.role("app")
    stage.root.run(f"ALTER ROLE app SET {SETTING} = '{written}'")
    stage.session(LEAK)
    may_alter("app")
    run = apply(stage)
    assert run.document["status"] == "ok"
    assert [each["done"] for each in get_settings(run)] == ([True] if is_late else [])
    reasons = [each["reason"] for each in run.target().get("unchanged", [])]
    problem = {
        False: "is already 0.1 h, at most 10m",
        None: f"is {written}, which the reaper cannot",
    }
    assert is_late or problem[is_late] in reasons[0]


def test_only_an_apply_run_reports_applied_settings(stage: Stage) -> None:
    stage.session(LEAK)
    assert "applied" not in stage.reap().target()
    assert "applied" not in stage.run({"check": True}).target()
