"""A session that waits for a lock is a victim; what a session waits for can be a condition."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Decision, Verdict
from session_reaper.sessions.session import WaitGuard

from tests.builders import a_policy, a_rule, a_session, some_slots

if TYPE_CHECKING:
    from session_reaper.policy.model import Policy

ACTIVE: dict[str, Any] = {"state": "active", "query_for": "15m"}
STUCK: dict[str, Any] = {"state": "active", "query_seconds": 901.0}
LOCK = {"wait_event_type": "Lock", "wait_event": "relation", "waits_for_lock": True}
WORKERS = {"wait_event_type": "IPC", "wait_event": "ExecuteGather", "waits_for_lock": True}
WRITES = {"wait_event_type": "Client", "wait_event": "ClientWrite"}
READS = {"wait_event_type": "Client", "wait_event": "ClientRead", "waiting_for_client": True}


def verdict_on(policy: Policy, **session: Any) -> Decision:  # noqa: ANN401 -- a session's values
    (decision,) = decide([a_session(**STUCK | session)], some_slots(), policy).decisions
    return decision


@pytest.mark.parametrize("waits", [LOCK, WORKERS])
@pytest.mark.parametrize("keys", [{}, {"action": "cancel"}, {"mode": "observe"}])
def test_a_rule_without_wait_event_type_matches_no_session_that_waits_for_a_lock(
    waits: dict[str, Any], keys: dict[str, Any]
) -> None:
    rule = a_rule("runaway", **ACTIVE) | keys
    decision = verdict_on(a_policy(rule), **waits)
    assert (decision.verdict, decision.rule) == (Verdict.LEAVE, None)
    assert decision.reason == "waits for a lock, and rule runaway has no wait_event_type"
    by_event = a_rule("runaway", **ACTIVE, wait_event=["*"]) | keys
    assert verdict_on(a_policy(by_event), **waits).verdict is Verdict.LEAVE
    by_type = a_rule("last", **ACTIVE, wait_event_type=["Lock"])
    condemned = verdict_on(a_policy(rule, by_type), **waits)
    assert (condemned.verdict, condemned.rule and condemned.rule.name) == (Verdict.CONDEMN, "last")


def test_a_keep_rule_keeps_a_session_that_waits_for_a_lock() -> None:
    keep = {"name": "keep", "match": {"state": "active"}, "action": "keep"}
    victims = a_rule("victims", **ACTIVE, wait_event_type="*")
    assert verdict_on(a_policy(keep, victims), **LOCK).verdict is Verdict.KEEP


def test_a_session_that_waits_for_a_lock_is_protected_from_no_rule_that_would_not_match_it() -> (
    None
):
    assert verdict_on(a_policy(a_rule(**ACTIVE)), **LOCK, superuser=True).protected_from is None


@pytest.mark.parametrize(
    ("match", "session", "verdict"),
    [
        ({"wait_event_type": "Client"}, WRITES, Verdict.CONDEMN),
        ({"wait_event": ["ClientWrite"]}, WRITES, Verdict.CONDEMN),
        ({"wait_event": ["Client*", "x"], "wait_event_type": ["C*"]}, WRITES, Verdict.CONDEMN),
        ({"wait_event": "ClientRead"}, WRITES, Verdict.LEAVE),
        ({"wait_event_type": "*"}, {}, Verdict.LEAVE),
        ({"wait_event": "*"}, {}, Verdict.LEAVE),
        ({"wait_event_type": "IPC"}, WORKERS, Verdict.CONDEMN),
        ({"wait_event_type": "Lock", "wait_event": "relation"}, WORKERS, Verdict.LEAVE),
    ],
)
def test_what_a_session_waits_for_is_a_condition(
    match: dict[str, Any], session: dict[str, Any], verdict: Verdict
) -> None:
    assert verdict_on(a_policy(a_rule(**ACTIVE, **match)), **session).verdict is verdict


@pytest.mark.parametrize(
    ("match", "session", "reason"),
    [
        ({"wait_event": "ClientWrite"}, WRITES, "waits for Client: ClientWrite"),
        ({"wait_event_type": "Lock"}, LOCK, "waits for Lock: relation"),
        (
            {"wait_event_type": "Lock"},
            WORKERS,
            "waits for IPC: ExecuteGather, and a parallel worker for a lock",
        ),
    ],
)
def test_the_reason_says_what_the_session_waits_for(
    match: dict[str, Any], session: dict[str, Any], reason: str
) -> None:
    decision = verdict_on(a_policy(a_rule(**ACTIVE, **match)), **session)
    assert decision.reason == f"query running for 15m 1s (query_for: 15m), {reason}"


@pytest.mark.parametrize(
    ("match", "session", "guard"),
    [
        ({}, {}, WaitGuard(waits_for_lock=False)),
        ({}, WRITES, WaitGuard(waits_for_lock=False)),
        ({"wait_event": "C*"}, WRITES, WaitGuard(wait_event="ClientWrite", waits_for_lock=False)),
        (
            {"wait_event_type": "C*"},
            WRITES,
            WaitGuard(wait_event_type="Client", waits_for_lock=None),
        ),
        ({"wait_event_type": "L*"}, LOCK, WaitGuard(wait_event_type="Lock", waits_for_lock=None)),
        ({"wait_event_type": "Lock"}, WORKERS, WaitGuard(waits_for_lock=True)),
        (
            {"waiting_for_client": True},
            {"waiting_for_client": True, "wait_event": "ClientRead"},
            WaitGuard(wait_event="ClientRead", waits_for_lock=False),
        ),
        (
            {"waiting_for_client": False},
            {},
            WaitGuard(other_than="ClientRead", waits_for_lock=False),
        ),
        (  # the rows of a COPY
            {"waiting_for_client": False},
            {"wait_event": "ClientRead"},
            WaitGuard(waits_for_lock=False),
        ),
    ],
)
def test_the_guard_checks_the_wait_conditions_that_the_rule_relies_on(
    match: dict[str, Any], session: dict[str, Any], guard: WaitGuard
) -> None:
    decision = verdict_on(a_policy(a_rule(**ACTIVE, **match)), **session)
    assert decision.verdict is Verdict.CONDEMN
    assert decision.wait_guard == guard


@pytest.mark.parametrize(
    ("kept", "session", "guard"),
    [
        ({"wait_event_type": ["I*", "Lock"]}, {}, WaitGuard(none_of=("I%:%", "Lock:%"))),
        ({"wait_event": "Client?r_[te]"}, {}, WaitGuard(none_of=("%:Client_r\\__",))),
        (WRITES, {}, WaitGuard(none_of=("Client:ClientWrite",))),
        ({"waiting_for_client": True}, {}, WaitGuard(none_of=("%:ClientRead",))),
        (  # the rows of a COPY
            {"waiting_for_client": True},
            {"wait_event_type": "Client", "wait_event": "ClientRead"},
            WaitGuard(),
        ),
        (
            {"waiting_for_client": False},
            {"wait_event": "ClientRead", "waiting_for_client": True},
            WaitGuard(wait_event="ClientRead"),
        ),
        ({"waiting_for_client": False, "wait_event": "Pg*"}, {}, WaitGuard(none_of=("%:Pg%",))),
        (  # no other wait of a client, but this one
            {"waiting_for_client": False, "wait_event_type": "Client"},
            READS,
            WaitGuard(wait_event_type="Client", wait_event="ClientRead"),
        ),
        (
            {"wait_event_type": "[!C]*"},
            WRITES,
            WaitGuard(wait_event_type="Client", wait_event="ClientWrite"),
        ),
        ({"wait_event_type": "IO", "role": "other"}, {}, WaitGuard()),
        ({"wait_event_type": "IO", "query_for": "1h"}, {}, WaitGuard()),
        ({"wait_event_type": "IO", "client": "10.9.0.0/16"}, {}, WaitGuard()),
        ({"wait_event_type": "IO", "state": "idle"}, {}, WaitGuard()),
        ({"wait_event_type": "IO", "query": "insert"}, {}, WaitGuard()),
        ({"wait_event_type": "IO", "query": "select"}, {}, WaitGuard(none_of=("IO:%",))),
    ],
)
def test_the_guard_excludes_the_waits_by_which_an_earlier_keep_rule_would_match(
    kept: dict[str, Any], session: dict[str, Any], guard: WaitGuard
) -> None:
    keep = {"name": "keep", "match": {"state": "active"} | kept, "action": "keep"}
    decision = verdict_on(a_policy(keep, a_rule(**ACTIVE)), **session)
    assert decision.verdict is Verdict.CONDEMN
    assert decision.wait_guard == guard
    later = verdict_on(a_policy(a_rule(**ACTIVE), keep), **session)
    assert later.wait_guard == WaitGuard()


def test_a_keep_rule_on_locks_forbids_the_workers_to_wait_for_one() -> None:
    keep = a_rule("keep", state="active", wait_event_type="Lock") | {"action": "keep"}
    gathers = {"wait_event_type": "IPC", "wait_event": "ExecuteGather"}
    decision = verdict_on(a_policy(keep, a_rule(**ACTIVE, wait_event_type="IPC")), **gathers)
    guard = WaitGuard(wait_event_type="IPC", waits_for_lock=False, none_of=("Lock:%",))
    assert decision.wait_guard == guard


def test_a_keep_rule_on_locks_excludes_its_events_while_a_worker_waits_for_a_lock() -> None:
    keep = a_rule("keep", state="active", wait_event_type="Lock", wait_event="Client*")
    policy = a_policy(keep | {"action": "keep"}, a_rule(**ACTIVE, wait_event_type="Lock"))
    guard = WaitGuard(waits_for_lock=True, none_of=("%:Client%",))
    assert verdict_on(policy, **WORKERS).wait_guard == guard


# -- every combination -----------------------------------------------------------------------------

WAITS: list[dict[str, Any]] = [
    {},
    LOCK,
    WORKERS,
    WRITES,
    {"wait_event_type": "IPC", "wait_event": "ExecuteGather"},
    READS,
    {"wait_event_type": "Lock", "wait_event": "tuple", "waits_for_lock": True},
    WRITES | {"waits_for_lock": True},
]
CONDITIONS: dict[str, list[Any]] = {
    "wait_event_type": [None, "Lock", "Client", "IPC", "*", "[!L]*", ["IPC", "Lock"]],
    "wait_event": [None, "Client*", "ClientWrite", "relation", "*"],
    "waiting_for_client": [None, True, False],
}


def is_like(text: str, pattern: str) -> bool:
    """Compare as LIKE does, with a pattern that has no backslash."""
    return fnmatchcase(text, pattern.replace("%", "*").replace("_", "?"))


def passes(guard: WaitGuard, session: dict[str, Any]) -> bool:
    """Decide as signal.sql does."""
    kind, event = session.get("wait_event_type"), session.get("wait_event")
    return (
        guard.wait_event_type in (None, kind)
        and guard.wait_event in (None, event)
        and (guard.other_than is None or guard.other_than != event)
        and (event is None or not any(is_like(f"{kind}:{event}", each) for each in guard.none_of))
        and guard.waits_for_lock in (None, session.get("waits_for_lock", False))
    )


MATCHES: list[dict[str, Any]] = [
    {key: value for key, value in zip(CONDITIONS, values, strict=True) if value is not None}
    for values in product(*CONDITIONS.values())
]
KEEPING: list[dict[str, Any]] = [
    {"name": f"keep-{n}", "match": {"state": "active"} | match, "action": "keep"}
    for n, match in enumerate(MATCHES)
]
RULES = [a_rule(**ACTIVE, **match) for match in MATCHES]


@pytest.mark.parametrize("before", WAITS, ids=str)
def test_a_session_that_passes_the_guard_still_meets_the_conditions_of_its_rule(
    before: dict[str, Any],
) -> None:
    for rule in RULES:
        assert_the_guard_holds(a_policy(rule), before)


@given(
    st.lists(st.sampled_from(KEEPING), min_size=1, max_size=2, unique_by=str),
    st.sampled_from(RULES),
    st.sampled_from(WAITS),
)
def test_a_session_that_passes_the_guard_is_still_kept_by_no_rule(
    keeping: list[dict[str, Any]], rule: dict[str, Any], before: dict[str, Any]
) -> None:
    assert_the_guard_holds(a_policy(*keeping, rule), before)


def assert_the_guard_holds(policy: Policy, before: dict[str, Any]) -> None:
    """The session passes its guard, and whatever it waits for when it does, its rule matches."""
    decision = verdict_on(policy, **before)
    if decision.verdict is Verdict.CONDEMN:
        guard = decision.wait_guard
        assert passes(guard, before)
        for now in WAITS:
            assert not passes(guard, now) or verdict_on(policy, **now).rule == decision.rule
