"""Rules with `when` and `until`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Decisions, Verdict
from session_reaper.policy.model import read_policy

from tests.builders import a_document, a_policy, a_rule, a_session, some_slots

if TYPE_CHECKING:
    from session_reaper.policy.model import Policy
    from session_reaper.sessions.session import Session

LEAVE, CONDEMN, SPARE = Verdict.LEAVE, Verdict.CONDEMN, Verdict.SPARE
MATCH = {"state": ["idle in transaction"], "idle_for": "1m"}


def a_pressure_rule(
    when: dict[str, Any] | None = None, until: dict[str, Any] | None = None, **keys: object
) -> dict[str, Any]:
    marks = {"when": when, "until": until}
    given = {key: mark for key, mark in marks.items() if mark}
    return {"name": "tier", "match": MATCH, **given, **keys}


def leaks(number: int, first: int = 1, **session: object) -> list[Session]:
    """Return sessions that idle longer the higher their pid."""
    return [
        a_session(pid=pid, idle_seconds=60 + pid, **session) for pid in range(first, first + number)
    ]


def pids(decided: Decisions, verdict: Verdict) -> list[int]:
    return [decision.pid for decision in decided.having(verdict)]


# -- when -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "used", "in_force"),
    [
        ({"slots_used": "85%"}, 84, False),
        ({"slots_used": "85%"}, 85, True),
        ({"slots_used": "85%"}, 104, True),  # superusers and reserved roles count as clients
        ({"slots_used": "100%"}, 99, False),
        ({"slots_used": "100%"}, 100, True),
        ({"slots_used": "84.5%"}, 84, False),
        ({"slots_used": "84.5%"}, 85, True),
        ({"slots_free": 5}, 94, False),
        ({"slots_free": 5}, 95, True),
        ({"slots_free": 5}, 102, True),
        ({"slots_free": 0}, 99, False),
        ({"slots_free": 0}, 100, True),
    ],
)
def test_a_rule_is_in_force_from_its_threshold_on(
    when: dict[str, Any], used: int, *, in_force: bool
) -> None:
    policy = a_policy(a_pressure_rule(when))
    decided = decide(leaks(1), some_slots(used=used, maximum=105, reserved=5), policy)
    assert pids(decided, CONDEMN) == ([1] if in_force else [])
    assert bool(describe_pressure(decided)) == in_force


@pytest.mark.parametrize(("used", "in_force"), [(84, False), (85, True)])
def test_percentages_are_of_the_slots_that_ordinary_roles_can_use(
    used: int, *, in_force: bool
) -> None:
    """With 100 of 200 slots reserved, 85 % is 85, not 170."""
    slots = some_slots(used=used, maximum=200, reserved=100)
    decided = decide(leaks(1), slots, a_policy(a_pressure_rule({"slots_used": "85%"})))
    assert bool(decided.having(CONDEMN)) == in_force


def test_a_later_rule_may_match_while_a_rule_is_not_in_force() -> None:
    policy = a_policy(a_pressure_rule({"slots_used": "85%"}), a_rule("later", **MATCH))
    decisions = decide(leaks(1), some_slots(used=10), policy).decisions
    assert [d.rule.name for d in decisions if d.rule] == ["later"]
    decisions = decide(leaks(1), some_slots(used=97), policy).decisions
    assert [d.rule.name for d in decisions if d.rule] == ["tier"]


def test_the_reason_names_the_pressure() -> None:
    policy = a_policy(a_pressure_rule({"slots_used": "85%"}))
    (decision,) = decide(leaks(1), some_slots(used=97), policy).decisions
    assert decision.reason == (
        "slots 97/97 (when slots_used: 85%), idle in transaction for 1m 1s (idle_for: 1m)"
    )
    policy = a_policy(a_pressure_rule({"slots_free": 3}))
    (decision,) = decide(leaks(1), some_slots(used=95), policy).decisions
    assert decision.reason.startswith("slots 95/97 (when slots_free: 3), ")


# -- until ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "used", "usable", "freed"),
    [
        ({"slots_used": "70%"}, 97, 97, 30),  # 67 are 69.07 %, 68 are 70.1 %
        ({"slots_used": "70%"}, 100, 100, 30),
        ({"slots_used": "70%"}, 71, 100, 1),
        ({"slots_used": "70%"}, 70, 100, 0),
        ({"slots_used": "70%"}, 10, 100, 0),
        ({"slots_used": "33.3%"}, 400, 1000, 67),  # exactly 333, without a rounding error
        ({"slots_used": "0.1%"}, 3, 1000, 2),
        ({"slots_used": "69.9%"}, 700, 1000, 1),
        ({"slots_free": 20}, 100, 100, 20),
        ({"slots_free": 20}, 81, 100, 1),
        ({"slots_free": 20}, 80, 100, 0),
        ({"slots_free": 20}, 103, 100, 23),
        ({"slots_free": 0}, 101, 100, 1),
    ],
)
def test_until_condemns_no_more_sessions_than_needed_the_longest_idle_first(
    until: dict[str, Any], used: int, usable: int, freed: int
) -> None:
    slots = some_slots(used=used, maximum=usable + 5, reserved=5)
    decided = decide(leaks(70), slots, a_policy(a_pressure_rule(until=until)))
    assert pids(decided, CONDEMN) == list(range(70, 70 - freed, -1))
    assert pids(decided, SPARE) == (list(range(70 - freed, 0, -1)) if freed else [])


def test_a_session_spared_by_until_names_until() -> None:
    policy = a_policy(a_pressure_rule({"slots_used": "85%"}, {"slots_used": "70%"}))
    decided = decide(leaks(40), some_slots(used=97), policy)
    assert decided.having(SPARE)[0].reason == (
        "slots 97/97 (when slots_used: 85%), idle in transaction for 1m 10s (idle_for: 1m);"
        " not needed to reach slots_used: 70%"
    )
    assert {d.rule for d in decided.having(SPARE)} == set(policy.rules)


def test_slots_freed_by_other_rules_count() -> None:
    policy = a_policy(
        a_rule("old", state="idle in transaction", idle_for="2m"),
        a_pressure_rule({"slots_used": "85%"}, {"slots_used": "70%"}),
    )
    sessions = [*[a_session(pid=n, idle_seconds=130) for n in range(1, 21)], *leaks(30, 21)]
    decided = decide(sessions, some_slots(used=97), policy)
    by_rule = [d.rule.name for d in decided.having(CONDEMN) if d.rule]
    assert (by_rule.count("old"), by_rule.count("tier")) == (20, 10)
    assert len(decided.having(SPARE)) == 20


@pytest.mark.parametrize(
    ("free", "old", "going"),
    [((10, 25), 15, (10, 15)), ((25, 10), 30, (25, 0))],
)
def test_several_rules_with_until_count_what_earlier_ones_free(
    free: tuple[int, int], old: int, going: tuple[int, int]
) -> None:
    first = a_pressure_rule(until={"slots_free": free[0]}) | {"name": "first"}
    younger = {"state": ["idle in transaction"], "idle_for": "30s"}
    second = a_pressure_rule(until={"slots_free": free[1]}) | {"name": "second", "match": younger}
    young = [a_session(pid=n, idle_seconds=40) for n in range(100, 130)]
    policy = a_policy(first, second)
    slots = some_slots(used=100, maximum=100, reserved=0)
    decided = decide([*leaks(old), *young], slots, policy)
    assert count_by_rule(policy, decided) == dict(zip(("first", "second"), going, strict=True))


def test_a_cancelled_query_frees_no_slot() -> None:
    cancel = {
        "name": "cancel",
        "match": {"state": ["active"], "query_for": "1m"},
        "action": "cancel",
    }
    running = [a_session(pid=n, state="active", query_seconds=90) for n in range(100, 110)]
    policy = a_policy(cancel, a_pressure_rule(until={"slots_free": 20}))
    decided = decide([*running, *leaks(30)], some_slots(used=100, maximum=100, reserved=0), policy)
    assert sum(d.rule is policy.rules[1] for d in decided.having(CONDEMN)) == 20


@pytest.mark.parametrize("limits", [{}, {"max_terminations": 3}])
def test_a_session_that_our_role_may_not_signal_frees_no_slot_and_uses_up_no_limit(
    limits: dict[str, Any],
) -> None:
    """Otherwise sessions of a role without a grant would block the others in every run."""
    denied = [a_session(pid=n, idle_seconds=9000, signalable=False) for n in range(100, 105)]
    policy = a_policy(a_pressure_rule(until={"slots_free": 3}), limits=limits)
    slots = some_slots(used=100, maximum=100, reserved=0)
    decided = decide([*denied, *leaks(10)], slots, policy)
    assert pids(decided, CONDEMN) == [100, 101, 102, 103, 104, 10, 9, 8]
    assert len(decided.having(SPARE)) == 7


def test_protected_sessions_free_no_slot() -> None:
    sessions = [a_session(pid=100, idle_seconds=9000, superuser=True), *leaks(5)]
    policy = a_policy(a_pressure_rule(until={"slots_free": 2}))
    decided = decide(sessions, some_slots(used=100, maximum=100, reserved=0), policy)
    assert pids(decided, CONDEMN) == [5, 4]


def test_max_terminations_applies_in_addition_to_until() -> None:
    policy = a_policy(a_pressure_rule(until={"slots_free": 20}), limits={"max_terminations": 5})
    decided = decide(leaks(30), some_slots(used=97), policy)
    assert pids(decided, CONDEMN) == [30, 29, 28, 27, 26]
    reasons = [d.reason for d in decided.having(SPARE)]
    assert sum("limits.max_terminations of 5 was reached" in reason for reason in reasons) == 25


def test_the_breaker_counts_only_sessions_that_until_needs() -> None:
    """Under pressure most sessions may match while few must end."""
    tier = a_pressure_rule({"slots_used": "85%"}, {"slots_used": "70%"})
    policy = a_policy(tier, limits={"max_share": "40%"})
    decided = decide(leaks(90), some_slots(used=97), policy)
    assert decided.breaker is None
    assert len(decided.having(CONDEMN)) == 30
    policy = a_policy(tier, limits={"max_share": "30%"})
    decided = decide(leaks(90), some_slots(used=97), policy)
    assert decided.breaker is not None
    assert "condemns 30 of 97" in decided.breaker


# -- limits in addition to until ----------------------------------------------------------------------------


def count_by_rule(policy: Policy, decided: Decisions) -> dict[str, int]:
    """Count the condemned sessions of each rule."""
    rules = [decision.rule for decision in decided.having(CONDEMN)]
    return {rule.name: rules.count(rule) for rule in policy.rules}


def test_a_session_held_back_by_a_limit_does_not_count_for_until() -> None:
    """Otherwise the capped leaks of one application would block all others."""
    sessions = [*leaks(30, first=100, application="capped"), *_of_many_applications(60)]
    tier = a_pressure_rule({"slots_used": "85%"}, {"slots_used": "70%"})
    policy = a_policy(tier, limits={"max_per_application": 2})
    decided = decide(sessions, some_slots(used=100, maximum=100, reserved=0), policy)
    going = [d.session.application for d in decided.having(CONDEMN)]
    assert (going.count("capped"), len(going)) == (2, 30)
    reasons = {d.held_by for d in decided.having(SPARE) if d.session.application == "capped"}
    assert reasons == {"limits.max_per_application of 2 was reached by 'capped'"}
    assert describe_pressure(decided)[0].endswith(": 30 condemned, enough to reach slots_used: 70%")


def _of_many_applications(number: int) -> list[Session]:
    return [
        a_session(pid=pid, idle_seconds=60 + pid, application=f"app-{pid}")
        for pid in range(1, number + 1)
    ]


def test_a_session_of_another_rule_held_back_by_a_limit_frees_no_slot() -> None:
    plain = a_rule("plain", state="idle in transaction", application="capped", idle_for="1s")
    policy = a_policy(
        plain, a_pressure_rule(until={"slots_free": 30}), limits={"max_per_application": 5}
    )
    sessions = [*leaks(50, first=100, application="capped"), *_of_many_applications(40)]
    decided = decide(sessions, some_slots(used=95, maximum=100, reserved=0), policy)
    assert count_by_rule(policy, decided) == {"plain": 5, "tier": 20}


def test_a_session_not_needed_by_until_does_not_count_against_a_limit() -> None:
    """The older sessions of the rule with `until` must not use up the limit."""
    plain = a_rule("plain", state="idle", idle_for="1s")
    policy = a_policy(
        a_pressure_rule(until={"slots_free": 12}), plain, limits={"max_terminations": 10}
    )
    idle = [a_session(pid=pid, state="idle", idle_seconds=5 + pid) for pid in range(200, 210)]
    old = [a_session(pid=pid, idle_seconds=9000 + pid) for pid in range(1, 31)]
    decided = decide([*old, *idle], some_slots(used=90, maximum=100, reserved=0), policy)
    assert count_by_rule(policy, decided) == {"tier": 0, "plain": 10}
    policy = a_policy(
        a_pressure_rule(until={"slots_free": 15}), plain, limits={"max_terminations": 10}
    )
    decided = decide([*old, *idle], some_slots(used=90, maximum=100, reserved=0), policy)
    assert sum(count_by_rule(policy, decided).values()) == 10


def test_a_later_rule_with_until_takes_no_place_under_a_limit_before_its_turn() -> None:
    first, later = (
        a_pressure_rule(
            until={"slots_used": "70%"}, name=name, match={**MATCH, "application": name}
        )
        for name in ("first", "later")
    )
    sessions = [*leaks(3, application="first"), *leaks(1, first=9, application="later")]
    policy = a_policy(first, later, limits={"max_terminations": 2})
    decided = decide(sessions, some_slots(used=72, reserved=0), policy)
    assert pids(decided, CONDEMN) == [3, 2]
    held_by = {decision.pid: decision.held_by for decision in decided.having(SPARE)}
    assert held_by == dict.fromkeys((9, 1), "not needed to reach slots_used: 70%")


@pytest.mark.parametrize(
    ("limits", "described"),
    [
        (
            {"max_terminations": 3},
            "3 condemned, 37 spared; 27 more must end to reach slots_used: 70%",
        ),
        ({"max_share": "1%"}, "0 condemned, 40 spared; 30 more must end to reach slots_used: 70%"),
    ],
)
def test_the_report_does_not_say_enough_if_a_limit_or_the_breaker_stopped_a_rule(
    limits: dict[str, Any], described: str
) -> None:
    tier = a_pressure_rule({"slots_used": "85%"}, {"slots_used": "70%"})
    decided = decide(leaks(40), some_slots(used=97), a_policy(tier, limits=limits))
    assert describe_pressure(decided)[0].endswith(f": {described}")


def test_the_report_does_not_say_enough_if_max_per_run_stopped_a_rule() -> None:
    tier = a_pressure_rule({"slots_used": "85%"}, {"slots_used": "70%"})
    decided = decide(leaks(40), some_slots(used=97), a_policy(tier))
    held = decided.hold_back(lambda decision: "run" if decision.pid < 20 else None)
    assert describe_pressure(held)[0].endswith(
        ": 21 condemned, 19 spared; 9 more must end to reach slots_used: 70%"
    )


def test_slots_freed_by_this_run_still_count_as_used_for_when_but_not_for_until() -> None:
    """In the second snapshot of confirm_after, our own terminations must not end the pressure."""
    policy = a_policy(a_pressure_rule({"slots_used": "80%"}, {"slots_used": "40%"}))
    slots = some_slots(used=11, maximum=20, reserved=0)
    assert decide(leaks(9), slots, policy).having(CONDEMN) == ()
    decided = decide(leaks(9), slots, policy, freed=6)
    assert len(decided.having(CONDEMN)) == 3
    assert decided.decisions[0].reason.startswith("slots 17/20 (when slots_used: 80%), ")


# -- the report ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "until", "number", "used", "described"),
    [
        (
            {"slots_used": "85%"},
            {"slots_used": "70%"},
            40,
            97,
            (
                "rule tier in force at slots 97/97 (when slots_used: 85%):"
                " 30 condemned, enough to reach slots_used: 70%"
            ),
        ),
        (
            {"slots_used": "85%"},
            {"slots_used": "70%"},
            12,
            97,
            (
                "rule tier in force at slots 97/97 (when slots_used: 85%):"
                " 12 condemned, no more match; 18 more must end to reach slots_used: 70%"
            ),
        ),
        (
            {"slots_free": 5},
            None,
            2,
            97,
            "rule tier in force at slots 97/97 (when slots_free: 5): 2 condemned, no more match",
        ),
        (
            {"slots_free": 5},
            None,
            0,
            97,
            "rule tier in force at slots 97/97 (when slots_free: 5): 0 condemned, no more match",
        ),
        ({"slots_used": "50%"}, {"slots_free": 20}, 3, 60, None),
        (
            None,
            {"slots_free": 20},
            30,
            87,
            ("rule tier in force at slots 87/97: 10 condemned, enough to reach slots_free: 20"),
        ),
        ({"slots_used": "50%"}, {"slots_free": 20}, 3, 77, None),
        (
            {"slots_used": "50%"},
            {"slots_free": 20},
            3,
            78,
            (
                "rule tier in force at slots 78/97 (when slots_used: 50%):"
                " 1 condemned, enough to reach slots_free: 20"
            ),
        ),
        (None, {"slots_free": 20}, 3, 77, None),
        (None, {"slots_free": 20}, 3, 60, None),
        ({"slots_free": 5}, {"slots_free": 20}, 3, 60, None),
    ],
)
def test_the_report_says_which_rule_was_in_force_and_why_it_stopped(
    when: dict[str, Any] | None,
    until: dict[str, Any] | None,
    number: int,
    used: int,
    described: str | None,
) -> None:
    decided = decide(leaks(number), some_slots(used=used), a_policy(a_pressure_rule(when, until)))
    assert describe_pressure(decided) == ((described,) if described else ())


def test_the_report_subtracts_slots_freed_by_other_rules() -> None:
    plain = a_rule("plain", state="idle", idle_for="1s")
    second = a_pressure_rule(until={"slots_free": 40}) | {
        "name": "second",
        "match": MATCH | {"role": "b"},
    }
    sessions = [
        *[a_session(pid=n, state="idle", idle_seconds=5) for n in range(200, 205)],
        *leaks(12),
        *leaks(3, first=100, role="b"),
    ]
    policy = a_policy(plain, second, a_pressure_rule(until={"slots_free": 30}))
    decided = decide(sessions, some_slots(used=97), policy)
    assert describe_pressure(decided) == (
        (
            "rule second in force at slots 97/97:"
            " 3 condemned, no more match; 32 more must end to reach slots_free: 40"
        ),
        (
            "rule tier in force at slots 97/97:"
            " 12 condemned, no more match; 10 more must end to reach slots_free: 30"
        ),
    )


@pytest.mark.parametrize(("used", "described"), [(77, 0), (78, 1)])
def test_a_rule_without_when_is_in_force_as_soon_as_one_slot_is_missing(
    used: int, described: int
) -> None:
    decided = decide([], some_slots(used=used), a_policy(a_pressure_rule(until={"slots_free": 20})))
    assert len(describe_pressure(decided)) == described


def test_the_report_says_that_none_is_needed_if_other_rules_free_enough() -> None:
    plain = a_rule("plain", state="idle", idle_for="1s")
    idle = [a_session(pid=n, state="idle", idle_seconds=5) for n in range(200, 210)]
    policy = a_policy(plain, a_pressure_rule(until={"slots_free": 10}))
    decided = decide([*idle, *leaks(3)], some_slots(used=97), policy)
    assert describe_pressure(decided) == (
        "rule tier in force at slots 97/97: no further session is needed to reach slots_free: 10",
    )
    assert len(decided.having(SPARE)) == 3


def test_a_rule_whose_until_is_reached_is_not_in_force() -> None:
    """Otherwise every run on a healthy server would report spared sessions."""
    tier = a_pressure_rule(until={"slots_free": 20})
    assert decide(leaks(3), some_slots(used=77), a_policy(tier)).having(SPARE) == ()
    policy = a_policy(tier, a_rule("later", **MATCH))
    decisions = decide(leaks(3), some_slots(used=77), policy).having(CONDEMN)
    assert [d.rule.name for d in decisions if d.rule] == ["later"] * 3


def test_the_report_omits_rules_without_when_and_until() -> None:
    assert (
        describe_pressure(decide(leaks(3), some_slots(used=97), a_policy(a_rule("r", **MATCH))))
        == ()
    )


def test_denied_sessions_do_not_count_as_enough() -> None:
    sessions = [a_session(pid=n, idle_seconds=9000, signalable=False) for n in range(1, 31)]
    policy = a_policy(a_pressure_rule(until={"slots_free": 20}))
    (described,) = describe_pressure(decide(sessions, some_slots(used=97), policy))
    assert described.endswith(
        ": 30 condemned, no more match; 20 more must end to reach slots_free: 20"
    )


def test_reads_when_and_until() -> None:
    policy: Policy = read_policy(
        a_document(a_pressure_rule({"slots_used": "85%"}, {"slots_used": "70%"}))
    )
    (rule,) = policy.rules
    assert (str(rule.when), str(rule.until)) == ("slots_used: 85%", "slots_used: 70%")
