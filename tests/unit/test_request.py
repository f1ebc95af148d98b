from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Verdict
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Mode
from session_reaper.runs.request import (
    RunRequest,
    choose_lowest_mode,
    is_scheduled,
    merge_policy,
    read_request,
)

from tests.builders import a_document, a_policy, a_rule, a_session, some_slots

if TYPE_CHECKING:
    from collections.abc import Callable

EVENTS = Path(__file__).parents[2] / "events"
OFF, OBSERVE, ENFORCE = Mode.OFF, Mode.OBSERVE, Mode.ENFORCE


def test_the_folder_contains_events() -> None:
    assert len(list(EVENTS.glob("*.json"))) >= 4


@pytest.mark.parametrize("path", sorted(EVENTS.glob("*.json")), ids=lambda path: path.name)
def test_every_event_in_the_folder_is_valid(path: Path) -> None:
    assert isinstance(read_request(json.loads(path.read_text("utf-8"))), RunRequest)


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("scheduled.json", RunRequest()),
        ("scheduler.json", RunRequest()),
        ("manual_everything.json", RunRequest()),
        ("manual_check.json", RunRequest(check=True)),
        ("manual_explain.json", RunRequest(explain=True)),
        ("manual_observe.json", RunRequest(mode=OBSERVE)),
        ("manual_one_target.json", RunRequest(targets=("orders",))),
    ],
)
def test_an_event_requests_what_its_file_name_says(name: str, request_: RunRequest) -> None:
    assert read_request(json.loads((EVENTS / name).read_text("utf-8"))) == request_


@pytest.mark.parametrize(
    "event",
    [
        {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}},
        {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": "{}"},
        {"source": "custom", "detail-type": "Leak", "detail": {"mode": "off"}, "replay-name": "x"},
    ],
)
def test_any_event_from_eventbridge_is_a_run_without_options(event: dict[str, Any]) -> None:
    assert read_request(event) == RunRequest()


def test_a_manual_event_may_combine_options() -> None:
    asked = read_request(
        {"mode": "observe", "targets": ["a", "b"], "rules": ["r"], "policy": a_document()}
    )
    assert asked.mode is OBSERVE
    assert asked.targets == ("a", "b")
    assert asked.rules == ("r",)
    assert asked.policy == a_policy()


@pytest.mark.parametrize(
    ("event", "place"),
    [
        ({"target": ["orders"]}, r"event\.target: unknown key"),
        ({"Mode": "off"}, r"event\.Mode: unknown key"),
        ({"dry_run": True}, r"event\.dry_run: unknown key"),
        ({"source": "me"}, r"event\.source: unknown key"),
        ({"mode": "kill"}, r"event\.mode: "),
        ({"mode": None}, r"event\.mode: "),
        ({"mode": 2}, r"event\.mode: "),
        ({"mode": True}, r"event\.mode: "),
        ({"targets": []}, r"event\.targets: "),
        ({"targets": [""]}, r"event\.targets\[0\]: "),
        ({"targets": ["a", 1]}, r"event\.targets\[1\]: "),
        ({"targets": None}, r"event\.targets: "),
        ({"rules": [["a"]]}, r"event\.rules\[0\]: "),
        ({"policy": None}, r"event\.policy: "),
        ({"policy": {"version": 1}}, r"event\.policy\.rules: is required"),
        (
            {"policy": a_document(a_rule(), {"name": "x", "match": {"state": "idle"}})},
            r"event\.policy\.rules\[1\]\.match: ",
        ),
        (None, "event: "),
        ([], "event: "),
        ("{}", "event: "),
    ],
)
def test_an_invalid_event_is_an_error_that_names_the_key(event: object, place: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{place}"):
        read_request(event)


def test_the_error_for_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="mode, targets, rules, policy"):
        read_request({"modes": "off"})


@pytest.mark.parametrize(
    ("stack", "policy", "event", "effective"),
    [
        (ENFORCE, None, None, ENFORCE),
        (ENFORCE, ENFORCE, ENFORCE, ENFORCE),
        (ENFORCE, OBSERVE, None, OBSERVE),
        (ENFORCE, None, OFF, OFF),
        (ENFORCE, OFF, ENFORCE, OFF),
        (OBSERVE, ENFORCE, ENFORCE, OBSERVE),
        (OBSERVE, None, ENFORCE, OBSERVE),
        (OFF, ENFORCE, ENFORCE, OFF),
    ],
)
def test_the_lowest_mode_applies(
    stack: Mode, policy: Mode | None, event: Mode | None, effective: Mode
) -> None:
    assert choose_lowest_mode(stack, policy, event) is effective


def test_a_request_without_rules_keeps_all() -> None:
    policy = a_policy(a_rule("a"), a_rule("b"), mode="observe", protect={"roles": ["deploy"]})
    assert merge_policy(policy, RunRequest()) == policy


def test_an_event_s_policy_lifts_only_the_protections_that_the_stack_s_rules_lift() -> None:
    def rules(*roles: str, **keys: object) -> dict[str, Any]:
        match = {"state": "idle in transaction", "role": [*roles], "idle_for": "1m"}
        return {"name": "r", "match": match, **keys}

    admin = a_session(role="avnadmin", replication=True)
    own = a_policy(rules("avnadmin"))
    for stack, verdict in (
        (rules("avnadmin", "app"), Verdict.CONDEMN),
        (rules("avn*", "app"), Verdict.LEAVE),
        (rules("avnadmin", mode="observe"), Verdict.LEAVE),
        (rules("avnadmin", mode="off"), Verdict.LEAVE),
        (rules("avnadmin", action="keep"), Verdict.LEAVE),
    ):
        policy = merge_policy(a_policy(stack), RunRequest(policy=own))
        (decision,) = decide([admin], some_slots(), policy).decisions
        assert decision.verdict is verdict, stack
    with pytest.raises(ConfigurationError, match=r"^event\.policy\.liftable_roles: unknown key"):
        read_request({"policy": a_document(liftable_roles=["avnadmin"])})


def test_keep_rules_stay_in_force_when_an_event_selects_rules() -> None:
    keep = {"name": "keep", "match": {"state": "idle in transaction"}, "action": "keep"}
    chosen = merge_policy(a_policy(a_rule("a"), keep, a_rule("b")), RunRequest(rules=("b",)))
    assert [rule.name for rule in chosen.rules] == ["keep", "b"]


def test_the_selected_rules_keep_the_order_of_the_policy() -> None:
    policy = a_policy(a_rule("a"), a_rule("b"), a_rule("c"))
    chosen = merge_policy(policy, RunRequest(rules=("c", "a")))
    assert [rule.name for rule in chosen.rules] == ["a", "c"]


def test_the_error_for_an_unknown_rule_lists_the_known_ones() -> None:
    policy = a_policy(a_rule("a"), a_rule("b"))
    with pytest.raises(ConfigurationError, match=r"^event\.rules\[1\]: .*\bz\b.*\ba, b$"):
        merge_policy(policy, RunRequest(rules=("a", "z")))


def test_the_policy_of_an_event_replaces_the_stacks() -> None:
    own = a_policy(a_rule("own"), limits={"max_terminations": 5})
    policy = merge_policy(a_policy(a_rule("stack")), RunRequest(policy=own, rules=("own",)))
    assert policy == own
    assert policy.lifted_roles == frozenset()


@pytest.mark.parametrize(
    ("stack", "event", "effective"),
    [
        (None, None, None),
        (None, "enforce", ENFORCE),
        ("off", None, OFF),
        ("off", "enforce", OFF),
        ("observe", "enforce", OBSERVE),
        ("enforce", "observe", OBSERVE),
        ("enforce", None, ENFORCE),
    ],
)
def test_the_policy_of_an_event_cannot_raise_the_mode(
    stack: str | None, event: str | None, effective: Mode | None
) -> None:
    policy = a_policy(**{"mode": stack} if stack else {})
    own = a_policy(**{"mode": event} if event else {})
    assert merge_policy(policy, RunRequest(policy=own)).mode is effective


@pytest.mark.parametrize(
    ("stack", "event", "effective"),
    [
        ("full", "full", "full"),
        ("full", "redacted", "redacted"),
        ("redacted", "full", "redacted"),
        ("redacted", "redacted", "redacted"),
    ],
)
def test_queries_are_shown_in_full_only_if_the_stacks_policy_allows_it(
    stack: str, event: str, effective: str
) -> None:
    policy, own = a_policy(queries=stack), a_policy(queries=event)
    assert merge_policy(policy, RunRequest()).queries == stack
    assert merge_policy(policy, RunRequest(policy=own)).queries == effective


@pytest.mark.parametrize(
    ("key", "session"),
    [
        ("roles", {"role": "deploy"}),
        ("applications", {"application": "deploy"}),
        ("databases", {"database": "deploy"}),
    ],
)
def test_the_policy_of_an_event_keeps_the_protections_of_the_stacks(
    key: str, session: dict[str, Any]
) -> None:
    stack = a_policy(protect={key: ["deploy"], "clients": ["10.9.0.0/16"]})
    own = a_policy(protect={key: ["more"], "clients": ["10.8.0.0/16"]})
    policy = merge_policy(stack, RunRequest(policy=own))
    name = next(iter(session))
    for spared in (session, {name: "more"}, {"client": "10.9.0.1"}, {"client": "10.8.0.1"}):
        (decision,) = decide([a_session(**spared)], some_slots(), policy).decisions
        assert decision.reason.startswith("protected: "), spared
    (decision,) = decide([a_session()], some_slots(), policy).decisions
    assert decision.verdict is Verdict.CONDEMN


def test_check_and_record_cannot_be_combined() -> None:
    assert read_request({"check": True}) == RunRequest(check=True)
    with pytest.raises(ConfigurationError, match=r"^event\.record: .*check"):
        read_request({"check": True, "record": True})
    with pytest.raises(ConfigurationError, match=r"^event\.check: "):
        read_request({"check": "yes"})


def test_apply_lists_the_codes_of_role_settings() -> None:
    asked = read_request({"apply": ["set-transaction-timeout", "set-idle-session-timeout"]})
    assert asked.apply == ("set-transaction-timeout", "set-idle-session-timeout")
    assert not asked.is_usual


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({"apply": ["use-pooler"]}, r"event\.apply\[0\]: invalid value 'use-pooler'; valid"),
        (
            {"apply": ["set-transaction-timeout", "x"]},
            r"event\.apply\[1\]: .*: set-idle-in-transaction-timeout, set-idle-session-.*-timeout$",
        ),
        ({"apply": []}, r"event\.apply: "),
        ({"apply": True}, r"event\.apply: "),
        (
            {"apply": ["set-transaction-timeout"], "check": True},
            r"event\.apply: cannot be combined with check",
        ),
        (
            {"apply": ["set-transaction-timeout"], "record": True},
            r"event\.apply: cannot be combined with record",
        ),
    ],
)
def test_an_invalid_apply_is_an_error(event: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{problem}"):
        read_request(event)


def test_only_envelopes_of_eventbridge_and_of_alarms_are_scheduled() -> None:
    for path in EVENTS.glob("*.json"):
        scheduled = path.stem.startswith("schedule")
        assert is_scheduled(json.loads(path.read_text())) is scheduled
    assert not is_scheduled("detail-type source")
    assert not is_scheduled({"source": "aws.cloudwatch"})


def test_an_alarms_lambda_action_asks_for_a_scheduled_run() -> None:
    event = json.loads((EVENTS / "scheduled_by_alarm_action.json").read_text())
    assert read_request(event) == RunRequest()


def test_an_alarm_wrapped_by_sns_is_refused() -> None:
    event = {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": "{}"}}]}
    with pytest.raises(ConfigurationError, match=r"^event\.Records: unknown key"):
        read_request(event)


URI = "postgres://app:hunter2@db.example/orders"
DSN = "host=db.example password=hunter2"


@pytest.mark.parametrize("value", [URI, DSN, "app:hunter2@db.example", {"password": "hunter2"}])
@pytest.mark.parametrize(
    "event",
    [
        lambda value: {"mode": value},
        lambda value: {"targets": [{"uri": value}]},
        lambda value: {"check": value},
        lambda value: {"apply": value if isinstance(value, dict) else [value]},
        lambda value: {"rules": [[value]]},
        lambda value: {"policy": {"version": value}},
        lambda value: {"policy": {"version": 1, "mode": value}},
        lambda value: {str(value): True},
        lambda value: {"policy": {"version": 1, str(value): 1}},
        lambda value: value,
    ],
    ids=range(10),
)
def test_no_error_shows_a_credential(event: Callable[[object], object], value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_request(event(value))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", [URI, DSN])
def test_a_rule_that_looks_like_a_credential_is_not_shown(name: str) -> None:
    request = read_request({"rules": [name]})
    with pytest.raises(ConfigurationError, match=r"^event\.rules\[0\]: ") as caught:
        merge_policy(a_policy(), request)
    assert "hunter2" not in str(caught.value)
