from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Decision, Decisions, Verdict
from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.session import Session, State

from tests.builders import a_policy, a_rule, a_session, some_slots

if TYPE_CHECKING:
    from session_reaper.policy.model import Policy

LEAVE, CONDEMN, SPARE = Verdict.LEAVE, Verdict.CONDEMN, Verdict.SPARE

EVERYTHING = a_policy(a_rule("everything", state=[str(state) for state in State], idle_for="1ms"))
"""Condemns every session that is not protected."""


def verdict_on(session: Session, policy: Policy) -> Decision:
    decided = decide([session], some_slots(), policy)
    assert len(decided.decisions) == 1
    return decided.decisions[0]


def rule_of(decision: Decision) -> str | None:
    return decision.rule.name if decision.rule else None


def pids(decided: Decisions, verdict: Verdict) -> list[int]:
    return [decision.session.identity.pid for decision in decided.having(verdict)]


# -- matching -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "match", "verdict", "reason"),
    [
        (
            {"state": "idle in transaction", "idle_seconds": 901.2},
            {"state": "idle in transaction", "idle_for": "5m"},
            CONDEMN,
            "idle in transaction for 15m 1s (idle_for: 5m)",
        ),
        (
            {"state": "idle in transaction (aborted)", "idle_seconds": 300},
            {"state": ["idle in transaction", "idle in transaction (aborted)"], "idle_for": "5m"},
            CONDEMN,
            "idle in transaction (aborted) for 5m (idle_for: 5m)",
        ),
        (
            {"idle_seconds": 299.999},
            {"state": "idle in transaction", "idle_for": "5m"},
            LEAVE,
            "no rule matches",
        ),
        (
            {"state": "active", "idle_seconds": 901},
            {"state": "idle in transaction", "idle_for": "5m"},
            LEAVE,
            "no rule matches",
        ),
        (
            {"idle_seconds": 0.1, "transaction_seconds": 7300},
            {"state": "idle in transaction", "transaction_for": "2h"},
            CONDEMN,
            "transaction open for 2h 1m (transaction_for: 2h)",
        ),
        (
            {"state": "idle", "transaction_seconds": None},
            {"state": "idle", "transaction_for": "1ms"},
            LEAVE,
            "no rule matches",
        ),
        (
            {"state": "idle", "idle_seconds": 0.5, "connected_seconds": 90_000},
            {"state": "idle", "connected_for": "1d"},
            CONDEMN,
            "connected for 1d 1h (connected_for: 1d)",
        ),
        (
            {"state": "active", "query_seconds": 1800},
            {"state": "active", "query_for": "30m"},
            CONDEMN,
            "query running for 30m (query_for: 30m)",
        ),
        (
            {"state": "idle", "query_seconds": None},
            {"state": ["active", "idle"], "query_for": "1ms"},
            LEAVE,
            "no rule matches",
        ),
        (
            {"idle_seconds": 61, "transaction_seconds": 601, "connected_seconds": 4000.1},
            {
                "state": "idle in transaction",
                "connected_for": "1h",
                "idle_for": "1m",
                "transaction_for": "10m",
            },
            CONDEMN,
            (
                "idle in transaction for 1m 1s (idle_for: 1m),"
                " transaction open for 10m 1s (transaction_for: 10m),"
                " connected for 1h 6m (connected_for: 1h)"
            ),
        ),
        (
            {"idle_seconds": 61, "transaction_seconds": 601, "connected_seconds": 3599},
            {
                "state": "idle in transaction",
                "connected_for": "1h",
                "idle_for": "1m",
                "transaction_for": "10m",
            },
            LEAVE,
            "no rule matches",
        ),
    ],
)
def test_a_session_is_condemned_if_it_reaches_every_threshold_of_a_rule(
    session: dict[str, Any], match: dict[str, Any], verdict: Verdict, reason: str
) -> None:
    decision = verdict_on(a_session(**session), a_policy(a_rule("r", **match)))
    assert decision.verdict is verdict
    assert rule_of(decision) == ("r" if verdict is CONDEMN else None)
    assert decision.reason == reason


CONDITIONS = {
    "state": ["idle in transaction"],
    "role": ["app", "web_*"],
    "database": ["orders"],
    "application": ["api", "worker*"],
    "client": ["10.0.0.0/24"],
    "query": ["* from orders", "* from items"],
    "idle_for": "5m",
}


@pytest.mark.parametrize(
    "session",
    [
        {},
        {"role": "web_1"},
        {"application": "worker-7"},
        {"client": "10.0.0.255"},
        {"query": "select * from items"},
    ],
)
def test_the_values_of_one_condition_are_alternatives(session: dict[str, Any]) -> None:
    policy = a_policy(a_rule("r", **CONDITIONS))
    assert verdict_on(a_session(**session), policy).verdict is CONDEMN


@pytest.mark.parametrize(
    "session",
    [
        {"state": "idle"},
        {"role": "application"},
        {"database": "orders2"},
        {"application": "API"},
        {"application": ""},
        {"client": "10.0.1.0"},
        {"client": None},
        {"query": "select * from customers"},
        {"query": ""},
        {"idle_seconds": 299},
    ],
)
def test_a_session_that_fails_one_condition_is_left_alone(
    session: dict[str, Any],
) -> None:
    policy = a_policy(a_rule("r", **CONDITIONS))
    decision = verdict_on(a_session(**session), policy)
    assert (decision.verdict, decision.reason) == (LEAVE, "no rule matches")


def test_the_first_rule_that_matches_decides() -> None:
    policy = a_policy(
        a_rule("other-role", state="idle in transaction", role="etl", idle_for="1m"),
        a_rule("patient", state="idle in transaction", idle_for="1h"),
        a_rule("first", state="idle in transaction", idle_for="5m"),
        a_rule("second", state="idle in transaction", idle_for="1m"),
    )
    assert rule_of(verdict_on(a_session(idle_seconds=301), policy)) == "first"
    assert rule_of(verdict_on(a_session(idle_seconds=299), policy)) == "second"
    assert rule_of(verdict_on(a_session(idle_seconds=3600), policy)) == "patient"


BATCH = {"state": ["idle in transaction"], "role": ["batch_*"]}


def test_a_keep_rule_gives_some_sessions_a_longer_threshold() -> None:
    policy = a_policy(
        a_rule("batch", **BATCH, idle_for="1h"),
        {"name": "keep-batch", "match": BATCH, "action": "keep"},
        a_rule("everybody", state="idle in transaction", idle_for="5m"),
    )
    session = a_session(role="batch_1", idle_seconds=3599)
    young = verdict_on(session, policy)
    assert young.session == session
    assert (young.verdict, rule_of(young)) == (Verdict.KEEP, "keep-batch")
    assert young.reason == "kept by rule keep-batch"
    assert rule_of(verdict_on(a_session(role="batch_1", idle_seconds=3600), policy)) == "batch"
    assert rule_of(verdict_on(a_session(role="app", idle_seconds=300), policy)) == "everybody"


def test_a_keep_rule_with_when_keeps_only_from_that_threshold_on() -> None:
    keep = {
        "name": "keep",
        "match": {"state": "idle in transaction", "blocks": 1},
        "action": "keep",
        "when": {"slots_used": "85%"},
    }
    blocker = a_session(waiters=(Waiter(pid=1, role="app", application="api", seconds=1.0),))
    policy = a_policy(keep, a_rule("last"))
    (kept,) = decide([blocker], some_slots(used=85), policy).decisions
    assert (kept.verdict, rule_of(kept)) == (Verdict.KEEP, "keep")
    (condemned,) = decide([blocker], some_slots(used=50), policy).decisions
    assert (condemned.verdict, rule_of(condemned)) == (CONDEMN, "last")
    assert describe_pressure(decide([blocker], some_slots(used=85), policy)) == ()


WARN = a_rule("warn", state="idle in transaction", idle_for="1m") | {"mode": "observe"}


def test_an_observe_only_rule_reports_what_no_other_rule_decides() -> None:
    keep = {"name": "keep", "match": BATCH, "action": "keep"}
    policy = a_policy(WARN, WARN | {"name": "again"}, keep, a_rule("last"))
    warned = verdict_on(a_session(idle_seconds=60), policy)
    assert (warned.verdict, rule_of(warned)) == (Verdict.OBSERVE, "warn")
    assert warned.reason == (
        "idle in transaction for 1m (idle_for: 1m), only observed (mode: observe)"
    )
    assert rule_of(verdict_on(a_session(idle_seconds=300), policy)) == "last"
    assert rule_of(verdict_on(a_session(idle_seconds=300, role="batch_1"), policy)) == "keep"
    assert verdict_on(a_session(idle_seconds=59), policy).verdict is LEAVE


def test_a_rule_that_is_off_matches_no_session() -> None:
    policy = a_policy(WARN | {"mode": "off"}, a_rule("last"))
    assert verdict_on(a_session(idle_seconds=60), policy).verdict is LEAVE
    keep_off = a_policy(a_rule("only") | {"mode": "off"})
    assert verdict_on(a_session(), keep_off).verdict is LEAVE


def test_the_pressure_says_how_many_sessions_an_observe_only_rule_reports() -> None:
    policy = a_policy(WARN | {"when": {"slots_used": "85%"}, "until": {"slots_used": "70%"}})
    decided = decide([a_session(pid=1), a_session(pid=2)], some_slots(used=90), policy)
    assert pids(decided, Verdict.OBSERVE) == [1, 2]
    assert list(describe_pressure(decided)) == [
        (
            "rule warn in force at slots 90/97 (when slots_used: 85%):"
            " 2 would be terminated (mode: observe)"
        )
    ]


@pytest.mark.parametrize(
    ("application", "glob", "verdict"),
    [("", "*", CONDEMN), ("", "?*", LEAVE), ("", "api", LEAVE), ("a'b\"; --", "a'b*", CONDEMN)],
)
def test_a_missing_application_name_is_matched_as_empty(
    application: str, glob: str, verdict: Verdict
) -> None:
    policy = a_policy(a_rule(state="idle in transaction", application=glob, idle_for="1s"))
    assert verdict_on(a_session(application=application), policy).verdict is verdict


def test_a_session_on_a_unix_socket_is_condemned_by_a_rule_without_client() -> None:
    assert verdict_on(a_session(client=None), a_policy()).verdict is CONDEMN


def test_every_session_gets_one_decision_with_a_reason() -> None:
    sessions = [
        a_session(pid=pid, role=role, idle_seconds=pid)
        for pid, role in enumerate(["app", "rdsadmin", "app", "deploy"] * 100)
    ]
    decided = decide(sessions, some_slots(used=400), a_policy(protect={"roles": ["deploy"]}))
    assert sorted(d.session.identity.pid for d in decided.decisions) == list(range(400))
    assert all(decision.reason for decision in decided.decisions)


def test_without_sessions_there_are_no_decisions() -> None:
    decided = decide([], some_slots(used=0), a_policy(limits={"max_share": "1%"}))
    assert (decided.decisions, decided.breaker, describe_pressure(decided)) == ((), None, ())


# -- protections ----------------------------------------------------------------------------------


def test_the_rule_used_below_condemns_an_unprotected_session() -> None:
    for state in State:
        assert verdict_on(a_session(state=state), EVERYTHING).verdict is CONDEMN


@pytest.mark.parametrize(
    "session",
    [
        {"own_role": True},
        {"own_role": True, "application": "session-reaper"},
        {"superuser": True},
        {"replication": True},
        *(
            {"role": role}
            for role in ("rdsadmin", "rdsproxyadmin", "rdswriteforwarduser", "rdsrepladmin")
        ),
        *({"role": role} for role in ("aiven", "aiven_extras", "_aiven", "metrics_user_telegraf")),
        # A name that is not valid UTF-8 cannot be compared with a pattern.
        {"role": "d\ufffdploy"},
        {"database": "\ufffdt\ufffd"},
        {"database": "rdsadmin"},
        {"database": "_aiven"},
    ],
    ids=str,
)
def test_built_in_protections_apply_under_every_rule(session: dict[str, Any]) -> None:
    for state in State:
        decision = verdict_on(a_session(state=state, **session), EVERYTHING)
        assert decision.verdict is LEAVE
        assert decision.rule is None
        assert decision.reason.startswith("protected: ")


BY_ROLE = [
    ({"role": "rdsproxyadmin"}, "provider's role"),
    ({"role": "avnadmin", "replication": True}, "replication role"),
    ({"role": "shared", "own_role": True}, "our own role"),
    ({"role": "CDC-XXL.2", "replication": True}, "replication role"),
]


@pytest.mark.parametrize(("session", "by"), BY_ROLE)
def test_a_rule_that_names_a_role_literally_lifts_the_protections_of_that_role(
    session: dict[str, Any], by: str
) -> None:
    role = session["role"]
    literal = a_rule("literal", state="idle in transaction", role=["web_*", role], idle_for="1m")
    policy = a_policy(a_rule("glob", state="idle in transaction", role="*", idle_for="1m"), literal)
    condemned = verdict_on(a_session(**session), policy)
    assert (condemned.verdict, rule_of(condemned)) == (CONDEMN, "literal")
    # Sessions of other roles in the list stay protected.
    for name in ("web_1", "web_*"):
        other = verdict_on(a_session(role=name, replication=True), policy)
        assert other.protection
        assert (other.verdict, other.protection.by) == (LEAVE, "replication role")
    for glob in ("*", f"{role}*", f"[{role[0]}]{role[1:]}"):
        rule = a_rule(state="idle in transaction", role=glob, idle_for="1m")
        protected = verdict_on(a_session(**session), a_policy(rule))
        assert protected.protection
        assert (protected.verdict, protected.protection.by) == (LEAVE, by)
        assert protected.protected_from is not None


@pytest.mark.parametrize(
    ("session", "protect", "by"),
    [
        ({"superuser": True}, {}, "superuser"),
        ({"own_role": True, "application": "session-reaper"}, {}, "our own role"),
        ({"replication": True}, {"roles": "ap*"}, "protect.roles"),
        ({"own_role": True}, {"applications": "api"}, "protect.applications"),
        ({"replication": True}, {"databases": "orders"}, "protect.databases"),
        ({"replication": True}, {"clients": "10.0.0.0/8"}, "protect.clients"),
        ({"replication": True, "application": "pgBackRest [x]"}, {}, "built in: pgBackRest"),
        ({"database": "rdsadmin"}, {}, "built in: database rdsadmin"),
    ],
)
def test_nothing_lifts_protect_and_what_is_always_protected(
    session: dict[str, Any], protect: dict[str, Any], by: str
) -> None:
    rule = a_rule(state="idle in transaction", role="app", idle_for="1m")
    decision = verdict_on(a_session(**session), a_policy(rule, protect=protect))
    assert decision.protection
    assert (decision.verdict, decision.protection.by) == (LEAVE, by)
    assert decision.protected_from
    assert decision.protected_from.name == "idle-in-transaction"


def test_a_protected_session_that_no_rule_would_have_condemned_is_protected_from_none() -> None:
    policy = a_policy(
        a_rule("old", state="idle in transaction", idle_for="1h"),
        WARN,
        {"name": "keep", "match": {"state": "idle in transaction"}, "action": "keep"},
        a_rule("last"),
    )
    decision = verdict_on(a_session(superuser=True), policy)
    assert (decision.verdict, decision.rule, decision.protected_from) == (LEAVE, None, None)
    assert decision.reason == "protected: a superuser"


def test_an_observe_only_rule_lifts_a_protection_for_itself_alone() -> None:
    named = a_rule("named", state="idle in transaction", role="avnadmin", idle_for="1m")
    policy = a_policy(named | {"mode": "observe"}, a_rule("last"))
    decision = verdict_on(a_session(role="avnadmin", replication=True), policy)
    assert (decision.verdict, rule_of(decision)) == (Verdict.OBSERVE, "named")
    assert decision.protected_from is policy.rules[1]
    assert policy.lifted_roles == frozenset()


def test_a_session_of_a_dropped_role_is_an_ordinary_one_unless_roles_are_protected() -> None:
    by_role = a_rule("by-role", state="idle in transaction", role="*", idle_for="1m")
    dropped = a_session(role=None)
    decision = verdict_on(dropped, a_policy(by_role, a_rule("last")))
    assert (decision.verdict, rule_of(decision)) == (CONDEMN, "last")
    assert verdict_on(dropped, a_policy(by_role)).reason == "no rule matches"
    protected = verdict_on(dropped, a_policy(a_rule("last"), protect={"roles": "deploy"}))
    assert protected.protection
    assert (protected.verdict, protected.protection.by) == (LEAVE, "role dropped")
    reason = "role dropped, so protect.roles cannot be compared with it"
    assert protected.reason == f"protected: {reason}"


@pytest.mark.parametrize(
    ("protect", "session", "reason"),
    [
        ({"roles": ["deploy", "etl_*"]}, {"role": "etl_1"}, "protected: role etl_1"),
        (
            {"applications": ["migrate*"]},
            {"application": "migrate 42"},
            "protected: application migrate 42",
        ),
        ({"databases": ["billing"]}, {"database": "billing"}, "protected: database billing"),
        ({"clients": ["10.0.8.0/24"]}, {"client": "10.0.8.9"}, "protected: client 10.0.8.9"),
        (
            {"clients": ["10.0.8.0/24", "fd00::/8"]},
            {"client": "fd00::1"},
            "protected: client fd00::1",
        ),
        (
            {"roles": ["x"], "applications": ["y"], "databases": ["billing"]},
            {"database": "billing"},
            "protected: database billing",
        ),
    ],
)
def test_one_matching_protection_is_enough(
    protect: dict[str, Any], session: dict[str, Any], reason: str
) -> None:
    policy = a_policy(a_rule(state="idle in transaction", idle_for="1s"), protect=protect)
    decision = verdict_on(a_session(**session), policy)
    assert (decision.verdict, decision.rule, decision.reason) == (LEAVE, None, reason)


@pytest.mark.parametrize(
    ("protect", "session"),
    [
        ({"roles": ["etl_*"]}, {"role": "etl"}),
        ({"roles": ["etl"]}, {"role": "ETL"}),
        ({"applications": ["etl"]}, {"role": "etl"}),
        ({"roles": ["orders"]}, {"database": "orders"}),
        ({"applications": ["?*"]}, {"application": ""}),
        ({"clients": ["10.0.8.0/24"]}, {"client": "10.0.9.1"}),
        ({"clients": ["0.0.0.0/0"]}, {"client": None}),
    ],
)
def test_a_protection_covers_no_other_session(
    protect: dict[str, Any], session: dict[str, Any]
) -> None:
    policy = a_policy(a_rule(state="idle in transaction", idle_for="1s"), protect=protect)
    assert verdict_on(a_session(**session), policy).verdict is CONDEMN


def test_the_protections_of_the_policy_are_added_to_the_built_in_ones() -> None:
    policy = a_policy(
        a_rule(state="idle", idle_for="1s"),
        protect={"roles": ["deploy"], "applications": ["migrate"], "databases": ["billing"]},
    )
    own = ({"role": "deploy"}, {"application": "migrate"}, {"database": "billing"})
    built_in = ({"role": "rdsadmin"}, {"application": "pg_dump"}, {"database": "rdsadmin"})
    for session in (*own, *built_in):
        assert verdict_on(a_session(state="idle", **session), policy).verdict is LEAVE
    assert verdict_on(a_session(state="idle"), policy).verdict is CONDEMN


# -- limits ---------------------------------------------------------------------------------------


def test_max_terminations_keeps_the_sessions_that_idle_longest() -> None:
    ages = {1: 400, 2: 900, 3: 500, 4: 1000, 5: 301}
    sessions = [a_session(pid=pid, idle_seconds=age) for pid, age in ages.items()]
    decided = decide(sessions, some_slots(), a_policy(limits={"max_terminations": 2}))
    assert pids(decided, CONDEMN) == [4, 2]
    assert pids(decided, SPARE) == [3, 1, 5]
    assert decided.breaker is None


def test_a_spared_session_keeps_its_rule_and_names_the_limit() -> None:
    sessions = [a_session(pid=1, idle_seconds=400), a_session(pid=2, idle_seconds=300)]
    decided = decide(sessions, some_slots(), a_policy(limits={"max_terminations": 1}))
    (spared,) = decided.having(SPARE)
    assert rule_of(spared) == "idle-in-transaction"
    assert spared.reason == (
        "idle in transaction for 5m (idle_for: 5m); limits.max_terminations of 1 was reached"
    )


@pytest.mark.parametrize(("condemned", "going"), [(99, 99), (100, 100), (101, 100), (1000, 100)])
def test_max_terminations_is_100_by_default(condemned: int, going: int) -> None:
    sessions = [a_session(pid=pid, idle_seconds=300 + pid) for pid in range(condemned)]
    decided = decide(sessions, some_slots(used=condemned), a_policy())
    assert len(decided.having(CONDEMN)) == going
    assert len(decided.having(SPARE)) == condemned - going


def test_protected_sessions_do_not_count_against_the_limit() -> None:
    sessions = [
        a_session(pid=1, idle_seconds=9000, superuser=True),
        a_session(pid=2, idle_seconds=8000, role="rdsadmin"),
        a_session(pid=3, idle_seconds=400),
    ]
    decided = decide(sessions, some_slots(), a_policy(limits={"max_terminations": 1}))
    assert pids(decided, CONDEMN) == [3]


def test_max_terminations_counts_all_rules_together() -> None:
    policy = a_policy(
        a_rule("a", state="idle in transaction", idle_for="1m"),
        a_rule("b", state="idle", idle_for="1m"),
        limits={"max_terminations": 2},
    )
    sessions = [
        a_session(pid=pid, state=state, idle_seconds=100 + pid)
        for pid, state in enumerate(["idle", "idle in transaction"] * 3)
    ]
    decided = decide(sessions, some_slots(), policy)
    assert pids(decided, CONDEMN) == [5, 4]


@pytest.mark.parametrize(
    ("condemned", "used", "share", "trips"),
    [
        (5, 10, "50%", False),
        (6, 10, "50%", True),
        (10, 10, "100%", False),
        (1, 100, "1%", False),
        (2, 100, "1%", True),
        (1, 1000, "0.1%", False),
        (1, 1001, "0.1%", False),
        (1, 999, "0.1%", True),
        (333, 1000, "33.3%", False),
        (334, 1000, "33.3%", True),
        (7, 10_000, "0.07%", False),
        (29, 10_000, "0.29%", False),
        (11, 1000, "1.1%", False),
        *((percent, 100, f"{percent}%", False) for percent in (7, 14, 28, 29, 55, 56, 57, 58)),
        *((percent + 1, 100, f"{percent}%", True) for percent in (7, 14, 28, 29, 55, 56, 57, 58)),
    ],
)
def test_the_breaker_trips_when_more_than_the_share_is_condemned(
    condemned: int, used: int, share: str, *, trips: bool
) -> None:
    sessions = [a_session(pid=pid) for pid in range(condemned)]
    decided = decide(
        sessions,
        some_slots(used=used),
        a_policy(limits={"max_share": share, "max_terminations": 1000}),
    )
    assert (decided.breaker is not None) is trips
    assert len(decided.having(CONDEMN)) == (0 if trips else condemned)
    assert len(decided.having(SPARE)) == (condemned if trips else 0)


def test_the_share_is_of_all_client_sessions_not_only_those_in_the_snapshot() -> None:
    # The snapshot contains two of a hundred connected sessions.
    sessions = [a_session(pid=1), a_session(pid=2)]
    policy = a_policy(limits={"max_share": "50%"})
    assert decide(sessions, some_slots(used=100), policy).breaker is None


def test_the_breaker_counts_sessions_before_max_terminations_applies() -> None:
    sessions = [a_session(pid=pid) for pid in range(60)]
    policy = a_policy(limits={"max_share": "50%", "max_terminations": 10})
    decided = decide(sessions, some_slots(used=100), policy)
    assert decided.breaker is not None
    assert decided.having(CONDEMN) == ()


def test_a_tripped_breaker_is_in_the_reason_of_every_spared_session() -> None:
    sessions = [a_session(pid=pid) for pid in range(97)]
    decided = decide(sessions, some_slots(), a_policy(limits={"max_share": "50%"}))
    assert decided.breaker == (
        "the policy condemns 97 of 97 client sessions, more than limits.max_share of 50%"
    )
    assert {decision.reason for decision in decided.decisions} == {
        f"idle in transaction for 15m 1s (idle_for: 5m); {decided.breaker}"
    }


def test_without_max_share_a_policy_may_condemn_every_session() -> None:
    sessions = [a_session(pid=pid) for pid in range(97)]
    decided = decide(sessions, some_slots(used=97), a_policy())
    assert len(decided.having(CONDEMN)) == 97


@pytest.mark.parametrize(("used", "trips"), [(9, False), (10, True), (11, True)])
def test_the_breaker_does_not_trip_below_min_sessions(used: int, *, trips: bool) -> None:
    sessions = [a_session(pid=pid) for pid in range(9)]
    policy = a_policy(limits={"max_share": "50%", "min_sessions": 10})
    assert bool(decide(sessions, some_slots(used=used), policy).breaker) is trips


@pytest.mark.parametrize(("condemned", "trips"), [(29, False), (30, False), (31, True)])
def test_the_breaker_trips_when_more_than_max_condemned_are_condemned(
    condemned: int, *, trips: bool
) -> None:
    sessions = [a_session(pid=pid) for pid in range(condemned)]
    # min_sessions belongs to max_share alone.
    limits = {"max_condemned": 30, "max_terminations": 10, "min_sessions": 1000}
    decided = decide(sessions, some_slots(used=97), a_policy(limits=limits))
    assert len(decided.having(CONDEMN)) == (0 if trips else 10)
    assert decided.breaker == (
        "the policy condemns 31 of 97 client sessions, more than limits.max_condemned of 30"
        if trips
        else None
    )


def test_max_condemned_counts_only_the_sessions_that_until_needs() -> None:
    rule = a_rule() | {"until": {"slots_free": 5}}
    sessions = [a_session(pid=pid) for pid in range(20)]
    policy = a_policy(rule, limits={"max_condemned": 5})
    assert len(decide(sessions, some_slots(), policy).having(CONDEMN)) == 5
    assert decide(sessions, some_slots(used=98), policy).breaker is not None


def test_the_order_of_the_snapshot_does_not_matter() -> None:
    sessions = [a_session(pid=pid, idle_seconds=300 + pid % 3) for pid in range(20)]
    policy = a_policy(limits={"max_terminations": 5})
    one = decide(sessions, some_slots(), policy)
    other = decide(list(reversed(sessions)), some_slots(), policy)
    assert one == other


# -- mistakes of similar tools ---------------------------------------------------------------------


def test_a_rule_whose_list_matches_no_session_condemns_none() -> None:
    policy = a_policy(a_rule(state="idle in transaction", role=["webapp"], idle_for="1s"))
    sessions = [a_session(pid=1, role="etl", idle_seconds=1e6), a_session(pid=2, role="app")]
    assert decide(sessions, some_slots(), policy).having(CONDEMN) == ()


@pytest.mark.parametrize("glob", ["*", "etl*", "**"])
def test_a_protection_that_also_matches_the_empty_name_protects(glob: str) -> None:
    policy = a_policy(protect={"applications": [glob]})
    for application in ("etl", "etl_nightly"):
        assert verdict_on(a_session(application=application), policy).verdict is LEAVE


@pytest.mark.parametrize("query", ["LISTEN jobs", "listen jobs"])
def test_no_query_is_exempt_unless_the_policy_says_so(query: str) -> None:
    policy = a_policy(a_rule(state="idle", idle_for="5m"))
    assert verdict_on(a_session(state="idle", query=query), policy).verdict is CONDEMN


def test_a_walsender_with_a_long_query_is_left_alone() -> None:
    policy = a_policy(a_rule(state="active", query_for="1m"))
    walsender = a_session(
        state="active",
        role="replicator",
        replication=True,
        query="START_REPLICATION SLOT x LOGICAL 0/0",
        query_seconds=1e6,
        idle_seconds=1e6,
    )
    assert verdict_on(walsender, policy).verdict is LEAVE


@pytest.mark.parametrize("query", ["COMMIT", "ROLLBACK", "rollback;", "DISCARD ALL"])
def test_an_idle_pooled_session_is_not_condemned_for_its_last_statement(query: str) -> None:
    session = a_session(state="idle", query=query, transaction_seconds=None, idle_seconds=1e6)
    assert verdict_on(session, a_policy()).verdict is LEAVE


@pytest.mark.parametrize("state", ["disabled", "starting", "", None])
def test_a_state_without_a_known_activity_cannot_be_named(
    state: str | None,
) -> None:
    with pytest.raises(ValueError, match="is not a valid State"):
        State(state)  # type: ignore[arg-type] # an invalid value on purpose


def test_a_rule_on_idle_sessions_does_not_match_busy_ones() -> None:
    policy = a_policy(a_rule(state="idle", connected_for="1ms"))
    for state in set(State) - {State.IDLE}:
        assert verdict_on(a_session(state=state, query_seconds=1e6), policy).verdict is LEAVE


@pytest.mark.parametrize("state", ["idle in transaction", "active", "idle"])
def test_the_leader_of_a_parallel_dump_is_left_alone_in_every_state(state: str) -> None:
    leader = a_session(
        state=state, application="pg_dump", idle_seconds=1e6, transaction_seconds=1e6
    )
    decision = verdict_on(leader, EVERYTHING)
    assert (decision.verdict, decision.reason) == (
        LEAVE,
        "protected: application pg_dump (built in)",
    )


@pytest.mark.parametrize("application", ["api", "pg_dump", "deploy", ""])
def test_a_protected_role_is_protected_under_every_application_name(
    application: str,
) -> None:
    policy = a_policy(protect={"roles": ["deploy"], "applications": ["psql"]})
    protected = a_session(role="deploy", application=application)
    assert verdict_on(protected, policy).verdict is LEAVE
    # An application name protects only the sessions that set it.
    assert verdict_on(a_session(application="psql"), policy).verdict is LEAVE
    assert verdict_on(a_session(application="deploy"), policy).verdict is CONDEMN


def test_idle_time_starts_at_the_end_of_the_query() -> None:
    just_ended = a_session(idle_seconds=0.2, transaction_seconds=2400, query_seconds=None)
    assert verdict_on(just_ended, a_policy()).verdict is LEAVE


def test_the_default_does_not_condemn_a_pooled_session_for_its_age() -> None:
    pooled = a_session(idle_seconds=0.01, transaction_seconds=0.02, connected_seconds=1e6)
    assert verdict_on(pooled, a_policy()).verdict is LEAVE
    by_name = a_policy(a_rule(state="idle in transaction", connected_for="5m"))
    assert verdict_on(pooled, by_name).verdict is CONDEMN


# -- secrecy --------------------------------------------------------------------------------------


def test_the_repr_of_a_decision_contains_no_query() -> None:
    session = a_session(query="select 'CANARY'")
    decided = decide([session], some_slots(), a_policy())
    assert "CANARY" not in repr(decided)
    assert "CANARY" not in decided.decisions[0].reason


def test_no_query_text_is_kept_after_matching() -> None:
    policy = a_policy(a_rule(state="idle", idle_for="1s", query="*needle"))
    decide([a_session(state="idle", query="select 1")], some_slots(), policy)
    tracemalloc.start()
    try:
        for number in range(100):
            query = f"listen {'x' * 100_000}{number}"
            decide([a_session(state="idle", query=query)], some_slots(), policy)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


def test_a_query_is_redacted_once_and_only_if_all_other_conditions_hold() -> None:
    redacted: list[str] = []

    def redact_query(query: str) -> str:
        redacted.append(query)
        return query

    policy = a_policy(
        a_rule("young", state="idle", idle_for="2h", query="select *"),
        a_rule("other", state="idle", role="other", idle_for="1s", query="select *"),
        a_rule("old", state="idle", idle_for="1h", query="select *"),
        a_rule("older", state="idle", idle_for="30m", query="select *"),
    )
    sessions = [
        a_session(pid=1, state="idle", idle_seconds=3600, query="select a"),
        a_session(pid=2, state="idle", idle_seconds=3601, query="select a"),
        a_session(pid=3, state="idle", idle_seconds=1800, query="update b"),
        a_session(pid=4, state="idle", idle_seconds=60, query="select c"),
        a_session(pid=5, state="active", idle_seconds=3600, query="select d"),
    ]
    decided = decide(sessions, some_slots(), policy, redact_query=redact_query)
    assert {d.pid: rule_of(d) for d in decided.having(CONDEMN)} == {1: "old", 2: "old"}
    assert redacted == ["select a", "update b"]


def test_a_decision_ends_between_two_sessions_if_its_time_is_over() -> None:
    decided: list[str] = []

    def redact_query(query: str) -> str:
        decided.append(query)
        return query

    def check_time() -> None:
        if len(decided) == 2:
            raise TimeoutError

    policy = a_policy(a_rule(state="idle", idle_for="1s", query="select *"))
    sessions = [a_session(pid=pid, state="idle", query=f"select {pid}") for pid in (1, 2, 3)]
    with pytest.raises(TimeoutError):
        decide(sessions, some_slots(), policy, redact_query=redact_query, check_time=check_time)
    assert len(decided) == 2
