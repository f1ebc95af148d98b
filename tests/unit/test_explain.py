"""The explanation of a decision: its reason, and of a session that is left the rule that misses least."""

from __future__ import annotations

from typing import Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.explain import Explanation, explain
from session_reaper.sessions.lock_chains import Waiter

from tests.builders import a_policy, a_rule, a_session, some_slots

LEAK = "idle in transaction"
NAMED = {"state": LEAK, "idle_for": "5m"}
WAITERS = tuple(Waiter(pid=n, role="app", application="api", seconds=90.0) for n in (1, 2))


def explain_session(
    session: dict[str, Any], *rules: dict[str, Any], used: int = 42, **keys: object
) -> Explanation:
    policy = a_policy(*rules, **keys)
    (explanation,) = explain(decide([a_session(**session)], some_slots(used=used), policy), policy)
    return explanation


def summarize(explanation: Explanation) -> tuple[str, str | None, str]:
    rule = explanation.rule
    return explanation.outcome.value, rule.name if rule else None, explanation.reason


@pytest.mark.parametrize(
    ("rules", "keys", "expected"),
    [
        ([a_rule("leak", **NAMED)], {}, ("condemned", "leak", f"{LEAK} for 15m 1s (idle_for: 5m)")),
        (
            [a_rule("keep", state=LEAK) | {"action": "keep"}, a_rule()],
            {},
            ("kept", "keep", "kept by rule keep"),
        ),
        (
            [a_rule("warn", **NAMED) | {"mode": "observe"}],
            {},
            (
                "left",
                "warn",
                f"{LEAK} for 15m 1s (idle_for: 5m), only observed (mode: observe)",
            ),
        ),
        (
            [a_rule("warn", **NAMED) | {"mode": "observe", "when": {"slots_free": 60}}],
            {},
            (
                "left",
                "warn",
                (
                    f"slots 42/97 (when slots_free: 60), {LEAK} for 15m 1s (idle_for: 5m),"
                    " only observed (mode: observe)"
                ),
            ),
        ),
        (
            [a_rule("keep", state="idle") | {"action": "keep"}],
            {},
            ("left", None, "no rule matches"),
        ),
        (
            [a_rule("leak", **NAMED)],
            {"protect": {"roles": "app"}},
            (
                "protected",
                "leak",
                "protected (protect.roles): role app; otherwise rule leak would condemn it",
            ),
        ),
        (
            [a_rule("young", state=LEAK, idle_for="1h")],
            {"protect": {"roles": "app"}},
            ("protected", None, "protected (protect.roles): role app"),
        ),
    ],
)
def test_a_decision_is_explained_by_its_rule_or_its_protection(
    rules: list[dict[str, Any]], keys: dict[str, Any], expected: tuple[str, str | None, str]
) -> None:
    assert summarize(explain_session({}, *rules, **keys)) == expected


def test_a_session_that_a_limit_holds_back_is_spared() -> None:
    policy = a_policy(limits={"max_terminations": 1})
    sessions = [a_session(pid=1), a_session(pid=2, idle_seconds=600.0)]
    first, second = explain(decide(sessions, some_slots(), policy), policy)
    assert (first.outcome, second.outcome) == ("condemned", "spared")
    assert (first.decision.pid, second.decision.pid) == (1, 2)
    assert second.reason.endswith("; limits.max_terminations of 1 was reached")


def test_a_protected_session_that_is_observed_shows_both() -> None:
    rules = [
        a_rule("warn", **NAMED, role="avnadmin") | {"mode": "observe"},
        a_rule("leak", **NAMED),
    ]
    explanation = explain_session({"role": "avnadmin", "replication": True}, *rules)
    assert summarize(explanation) == (
        "protected",
        "warn",
        (
            "protected (replication role): a replication role; otherwise rule leak would condemn it;"
            f" observed by rule warn: {LEAK} for 15m 1s (idle_for: 5m), only observed (mode: observe)"
        ),
    )


# -- misses ---------------------------------------------------------------------------------------

ACTIVE = {"state": "active", "query_seconds": 60.0}


@pytest.mark.parametrize(
    ("match", "session", "miss"),
    [
        ({**NAMED, "idle_for": "1h"}, {}, "idle in transaction for 15m 1s of 1h"),
        (
            {**NAMED, "state": ["idle", "active"]},
            {},
            "is idle in transaction, not idle or active",
        ),
        ({**NAMED, "role": ["a", "b"]}, {}, "role 'app' does not match"),
        ({**NAMED, "role": "app"}, {"role": None}, "role (dropped) does not match"),
        ({**NAMED, "database": "x"}, {}, "database 'orders' does not match"),
        ({**NAMED, "application": "x"}, {}, "application 'api' does not match"),
        ({**NAMED, "client": "::1"}, {}, "client 10.0.0.7 does not match"),
        ({**NAMED, "client": "::1"}, {"client": None}, "client (local) does not match"),
        ({**NAMED, "holds": ["xid", "locks"]}, {}, "holds no xid or locks"),
        ({**NAMED, "query": "insert"}, {}, "its query does not match"),
        ({**NAMED, "query": "insert", "role": "x"}, {}, "role 'app' does not match"),
        ({**NAMED, "transaction_for": "16m"}, {}, "transaction open for 15m 5s of 16m"),
        (
            {"state": LEAK, "transaction_for": "1m"},
            {"transaction_seconds": None},
            "no transaction is open (transaction_for: 1m)",
        ),
        (
            {"state": LEAK, "transaction_for": "1m", "role": "x"},
            {"transaction_seconds": None},
            "role 'app' does not match",
        ),
        ({**NAMED, "connected_for": "2h"}, {}, "connected for 1h 6m of 2h"),
        ({**NAMED, "blocks": 3}, {"waiters": WAITERS}, "2 waiting on it of 3"),
        ({**NAMED, "blocks_for": "2m"}, {"waiters": WAITERS}, "waited for 1m 30s of 2m"),
        (
            {"state": LEAK, "blocks_for": "2m"},
            {},
            "too few sessions wait for it (blocks_for: 2m)",
        ),
        (
            {**NAMED, "pins_vacuum_by": 2000},
            {"xid_age": 1500},
            "holds vacuum back by 1,500 transactions of 2,000",
        ),
        ({"state": "active", "query_for": "2m"}, ACTIVE, "query running for 1m of 2m"),
        (
            {"state": "active", "query_for": "1m"},
            {"state": "active"},
            "no query is running (query_for: 1m)",
        ),
        (
            {"state": "active", "query_for": "1m", "waiting_for_client": True},
            ACTIVE,
            "does not wait for its client",
        ),
        (
            {"state": "active", "query_for": "1m", "waiting_for_client": False},
            {**ACTIVE, "waiting_for_client": True},
            "waits for its client",
        ),
        (
            {"state": "active", "query_for": "1m", "wait_event_type": "Client"},
            {**ACTIVE, "wait_event_type": "IO"},
            "wait_event_type IO does not match",
        ),
        (
            {"state": "active", "query_for": "1m", "wait_event": "ClientWrite"},
            ACTIVE,
            "wait_event None does not match",
        ),
        (
            {"state": "active", "query_for": "1m"},
            {**ACTIVE, "waits_for_lock": True},
            "waits for a lock, and the rule has no wait_event_type",
        ),
        (
            {**NAMED, "role": "x", "client": "10.0.0.0/8", "wait_event": "C*"},
            {"wait_event_type": "Client", "wait_event": "ClientRead"},
            "role 'app' does not match",
        ),
        (
            {**NAMED, "idle_for": "1h", "role": "x", "database": "y"},
            {},
            (
                "role 'app' does not match, database 'orders' does not match,"
                " idle in transaction for 15m 1s of 1h"
            ),
        ),
    ],
)
def test_a_session_that_is_left_shows_each_condition_that_it_misses(
    match: dict[str, Any], session: dict[str, Any], miss: str
) -> None:
    outcome, rule, reason = summarize(explain_session(session, a_rule("only", **match)))
    assert (outcome, rule) == ("left", None)
    assert reason.endswith(f"; nearest: only: {miss}")


@pytest.mark.parametrize(
    ("nearest", "farther"),
    [
        # Of two rules that miss by time only, the one of whose time a larger share has passed.
        ({"idle_for": "20m"}, {"idle_for": "21m"}),
        ({"idle_for": "1h", "connected_for": "67m"}, {"idle_for": "61m", "connected_for": "2h"}),
        # A condition that time does not mend weighs more than any time.
        ({"idle_for": "1d"}, {"role": "x"}),
        ({"idle_for": "1d"}, {"pins_vacuum_by": 1000}),
        ({"role": "x"}, {"role": "x", "database": "y"}),
        ({"role": "x"}, {"role": "x", "idle_for": "1h"}),
    ],
)
def test_the_nearest_rule_is_the_one_that_time_is_most_likely_to_mend(
    nearest: dict[str, Any], farther: dict[str, Any]
) -> None:
    near, far = a_rule("near", **NAMED | nearest), a_rule("far", **NAMED | farther)
    for rules in ((near, far), (far, near)):
        assert "nearest: near: " in explain_session({"xid_age": 999}, *rules).reason


def test_of_two_rules_that_miss_by_the_same_the_first_is_named() -> None:
    rules = [a_rule(name, **NAMED | {"role": name}) for name in ("first", "second")]
    assert "nearest: first: " in explain_session({}, *rules).reason


def test_the_nearest_rule_is_one_that_may_condemn_if_there_is_one() -> None:
    warn = a_rule("warn", **NAMED | {"idle_for": "16m"}) | {"mode": "observe"}
    off = a_rule("off", **NAMED | {"idle_for": "16m"}) | {"mode": "off"}
    keep = a_rule("keep", **NAMED | {"idle_for": "16m"}) | {"action": "keep"}
    leak = a_rule("leak", **NAMED | {"idle_for": "1h"})
    assert "nearest: leak: " in explain_session({}, warn, off, keep, leak).reason
    assert "nearest: warn: " in explain_session({}, keep, off, warn).reason
    assert explain_session({}, keep, off).reason == "no rule matches"


@pytest.mark.parametrize(
    ("marks", "text"),
    [
        ({"when": {"slots_used": "85%"}}, "when slots_used: 85%"),
        ({"until": {"slots_free": 60}}, "until slots_free: 60"),
        ({"when": {"slots_free": 80}, "until": {"slots_used": "90%"}}, "until slots_used: 90%"),
        ({"when": {"slots_free": 50}, "until": {"slots_free": 99}}, "when slots_free: 50"),
    ],
)
def test_a_rule_that_is_not_in_force_says_so(marks: dict[str, Any], text: str) -> None:
    in_force = a_rule("other", **NAMED | {"role": "x", "database": "y"})
    explanation = explain_session({}, a_rule("pressed", **NAMED) | marks, in_force, used=30)
    assert explanation.reason == (
        f"no rule matches; nearest: pressed: not in force at slots 30/97 ({text})"
    )


def test_a_rule_that_is_not_in_force_is_nearer_than_one_for_another_state() -> None:
    pressed = a_rule("pressed", **NAMED | {"idle_for": "16m"}) | {"when": {"slots_used": "85%"}}
    active = a_rule("active", state="active", query_for="30m")
    for rules in ((pressed, active), (active, pressed)):
        assert "nearest: pressed: " in explain_session({}, *rules, used=30).reason
    soon = a_rule("soon", **NAMED | {"idle_for": "16m"})
    assert "nearest: soon: " in explain_session({}, pressed, soon, used=30).reason
