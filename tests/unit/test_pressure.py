"""Rules that are in force only while slots are short, and stop when enough are free."""

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


def a_tier(
    when: dict[str, Any] | None = None, until: dict[str, Any] | None = None, **keys: object
) -> dict[str, Any]:
    marks = {"when": when, "until": until}
    given = {key: mark for key, mark in marks.items() if mark}
    return {"name": "tier", "match": MATCH, **given, **keys}


def leaks(number: int, first: int = 1, **session: object) -> list[Session]:
    """The higher the pid, the longer idle."""
    return [
        a_session(pid=pid, idle_seconds=60 + pid, **session) for pid in range(first, first + number)
    ]


def pids(judgement: Decisions, verdict: Verdict) -> list[int]:
    return [decision.pid for decision in judgement.having(verdict)]


# -- when -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "used", "in_force"),
    [
        ({"slots_used": "85%"}, 84, False),
        ({"slots_used": "85%"}, 85, True),
        ({"slots_used": "85%"}, 104, True),  # superusers and reserved roles are clients, too
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
def test_a_rule_is_in_force_from_its_mark_on(
    when: dict[str, Any], used: int, *, in_force: bool
) -> None:
    policy = a_policy(a_tier(when))
    judgement = decide(leaks(1), some_slots(used=used, maximum=105, reserved=5), policy)
    assert pids(judgement, CONDEMN) == ([1] if in_force else [])
    assert bool(describe_pressure(judgement)) == in_force


@pytest.mark.parametrize(("used", "in_force"), [(84, False), (85, True)])
def test_percentages_are_of_the_slots_that_ordinary_roles_can_use(
    used: int, *, in_force: bool
) -> None:
    """Of 200 with 100 reserved 85 % is 85, not 170."""
    slots = some_slots(used=used, maximum=200, reserved=100)
    judgement = decide(leaks(1), slots, a_policy(a_tier({"slots_used": "85%"})))
    assert bool(judgement.having(CONDEMN)) == in_force


def test_while_a_rule_is_not_in_force_a_later_one_may_match() -> None:
    policy = a_policy(a_tier({"slots_used": "85%"}), a_rule("later", **MATCH))
    decisions = decide(leaks(1), some_slots(used=10), policy).decisions
    assert [d.rule.name for d in decisions if d.rule] == ["later"]
    decisions = decide(leaks(1), some_slots(used=97), policy).decisions
    assert [d.rule.name for d in decisions if d.rule] == ["tier"]


def test_who_is_condemned_for_want_of_slots_is_told_of_it() -> None:
    policy = a_policy(a_tier({"slots_used": "85%"}))
    (decision,) = decide(leaks(1), some_slots(used=97), policy).decisions
    assert decision.reason == (
        "slots 97/97 (when slots_used: 85%), idle in transaction for 1m 1s (idle_for: 1m)"
    )
    policy = a_policy(a_tier({"slots_free": 3}))
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
        ({"slots_used": "33.3%"}, 400, 1000, 67),  # exactly 333: no rounding error takes one more
        ({"slots_used": "0.1%"}, 3, 1000, 2),
        ({"slots_used": "69.9%"}, 700, 1000, 1),
        ({"slots_free": 20}, 100, 100, 20),
        ({"slots_free": 20}, 81, 100, 1),
        ({"slots_free": 20}, 80, 100, 0),
        ({"slots_free": 20}, 103, 100, 23),
        ({"slots_free": 0}, 101, 100, 1),
    ],
)
def test_no_more_are_condemned_than_it_takes_the_longest_first(
    until: dict[str, Any], used: int, usable: int, freed: int
) -> None:
    slots = some_slots(used=used, maximum=usable + 5, reserved=5)
    judgement = decide(leaks(70), slots, a_policy(a_tier(until=until)))
    assert pids(judgement, CONDEMN) == list(range(70, 70 - freed, -1))
    assert pids(judgement, SPARE) == (list(range(70 - freed, 0, -1)) if freed else [])


def test_who_is_spared_by_until_is_told_so() -> None:
    policy = a_policy(a_tier({"slots_used": "85%"}, {"slots_used": "70%"}))
    judgement = decide(leaks(40), some_slots(used=97), policy)
    assert judgement.having(SPARE)[0].reason == (
        "slots 97/97 (when slots_used: 85%), idle in transaction for 1m 10s (idle_for: 1m);"
        " spared: until slots_used: 70% it takes no more"
    )
    assert {d.rule for d in judgement.having(SPARE)} == set(policy.rules)


def test_what_other_rules_free_counts() -> None:
    policy = a_policy(
        a_rule("old", state="idle in transaction", idle_for="2m"),
        a_tier({"slots_used": "85%"}, {"slots_used": "70%"}),
    )
    sessions = [*[a_session(pid=n, idle_seconds=130) for n in range(1, 21)], *leaks(30, 21)]
    judgement = decide(sessions, some_slots(used=97), policy)
    by_rule = [d.rule.name for d in judgement.having(CONDEMN) if d.rule]
    assert (by_rule.count("old"), by_rule.count("tier")) == (20, 10)
    assert len(judgement.having(SPARE)) == 20


@pytest.mark.parametrize(
    ("free", "old", "going"),
    [((10, 25), 15, (10, 15)), ((25, 10), 30, (25, 0))],
)
def test_the_tiers_of_a_policy_share_what_has_to_be_freed_in_its_order(
    free: tuple[int, int], old: int, going: tuple[int, int]
) -> None:
    first = a_tier(until={"slots_free": free[0]}) | {"name": "first"}
    younger = {"state": ["idle in transaction"], "idle_for": "30s"}
    second = a_tier(until={"slots_free": free[1]}) | {"name": "second", "match": younger}
    young = [a_session(pid=n, idle_seconds=40) for n in range(100, 130)]
    policy = a_policy(first, second)
    slots = some_slots(used=100, maximum=100, reserved=0)
    judgement = decide([*leaks(old), *young], slots, policy)
    assert named(policy, judgement) == dict(zip(("first", "second"), going, strict=True))


def test_a_cancelled_query_frees_no_slot() -> None:
    cancel = {
        "name": "cancel",
        "match": {"state": ["active"], "query_for": "1m"},
        "action": "cancel",
    }
    running = [a_session(pid=n, state="active", query_seconds=90) for n in range(100, 110)]
    policy = a_policy(cancel, a_tier(until={"slots_free": 20}))
    judgement = decide(
        [*running, *leaks(30)], some_slots(used=100, maximum=100, reserved=0), policy
    )
    assert sum(d.rule is policy.rules[1] for d in judgement.having(CONDEMN)) == 20


@pytest.mark.parametrize("limits", [{}, {"max_terminations": 3}])
def test_one_that_we_may_not_signal_frees_no_slot_and_takes_nobodys_place(
    limits: dict[str, Any],
) -> None:
    """Else sessions of one role without a grant would keep all others from being freed for ever."""
    denied = [a_session(pid=n, idle_seconds=9000, signalable=False) for n in range(100, 105)]
    policy = a_policy(a_tier(until={"slots_free": 3}), limits=limits)
    slots = some_slots(used=100, maximum=100, reserved=0)
    judgement = decide([*denied, *leaks(10)], slots, policy)
    assert pids(judgement, CONDEMN) == [100, 101, 102, 103, 104, 10, 9, 8]
    assert len(judgement.having(SPARE)) == 7


def test_protected_sessions_free_no_slot() -> None:
    sessions = [a_session(pid=100, idle_seconds=9000, superuser=True), *leaks(5)]
    policy = a_policy(a_tier(until={"slots_free": 2}))
    judgement = decide(sessions, some_slots(used=100, maximum=100, reserved=0), policy)
    assert pids(judgement, CONDEMN) == [5, 4]


def test_a_limit_holds_beside_until() -> None:
    policy = a_policy(a_tier(until={"slots_free": 20}), limits={"max_terminations": 5})
    judgement = decide(leaks(30), some_slots(used=97), policy)
    assert pids(judgement, CONDEMN) == [30, 29, 28, 27, 26]
    reasons = [d.reason for d in judgement.having(SPARE)]
    assert sum("limits.max_terminations of 5 was reached" in reason for reason in reasons) == 25


def test_the_breaker_counts_those_that_until_lets_go() -> None:
    """In the emergency a tier exists for, most sessions match, and few need to go."""
    tier = a_tier({"slots_used": "85%"}, {"slots_used": "70%"})
    policy = a_policy(tier, limits={"max_share": "40%"})
    judgement = decide(leaks(90), some_slots(used=97), policy)
    assert judgement.breaker is None
    assert len(judgement.having(CONDEMN)) == 30
    policy = a_policy(tier, limits={"max_share": "30%"})
    judgement = decide(leaks(90), some_slots(used=97), policy)
    assert judgement.breaker is not None
    assert "condemns 30 of 97" in judgement.breaker


# -- limits beside until ----------------------------------------------------------------------------


def named(policy: Policy, judgement: Decisions) -> dict[str, int]:
    """How many of each rule go."""
    rules = [decision.rule for decision in judgement.having(CONDEMN)]
    return {rule.name: rules.count(rule) for rule in policy.rules}


def test_whom_a_limit_holds_takes_no_place_in_until() -> None:
    """Else one application's leaks, held by its cap, would keep all others from being freed."""
    sessions = [*leaks(30, first=100, application="capped"), *_of_many_applications(60)]
    tier = a_tier({"slots_used": "85%"}, {"slots_used": "70%"})
    policy = a_policy(tier, limits={"max_per_application": 2})
    judgement = decide(sessions, some_slots(used=100, maximum=100, reserved=0), policy)
    going = [d.session.application for d in judgement.having(CONDEMN)]
    assert (going.count("capped"), len(going)) == (2, 30)
    assert describe_pressure(judgement)[0].endswith(
        ": stopped after 30, enough until slots_used: 70%"
    )


def _of_many_applications(number: int) -> list[Session]:
    return [
        a_session(pid=pid, idle_seconds=60 + pid, application=f"app-{pid}")
        for pid in range(1, number + 1)
    ]


def test_whom_a_limit_holds_of_another_rule_frees_nothing() -> None:
    plain = a_rule("plain", state="idle in transaction", application="capped", idle_for="1s")
    policy = a_policy(plain, a_tier(until={"slots_free": 30}), limits={"max_per_application": 5})
    sessions = [*leaks(50, first=100, application="capped"), *_of_many_applications(40)]
    judgement = decide(sessions, some_slots(used=95, maximum=100, reserved=0), policy)
    assert named(policy, judgement) == {"plain": 5, "tier": 20}


def test_a_place_that_until_leaves_goes_to_another_rule() -> None:
    """The tier's are older and would take all that the limit allows, but few of them are needed."""
    plain = a_rule("plain", state="idle", idle_for="1s")
    policy = a_policy(a_tier(until={"slots_free": 12}), plain, limits={"max_terminations": 10})
    idle = [a_session(pid=pid, state="idle", idle_seconds=5 + pid) for pid in range(200, 210)]
    old = [a_session(pid=pid, idle_seconds=9000 + pid) for pid in range(1, 31)]
    judgement = decide([*old, *idle], some_slots(used=90, maximum=100, reserved=0), policy)
    assert named(policy, judgement) == {"tier": 0, "plain": 10}
    policy = a_policy(a_tier(until={"slots_free": 15}), plain, limits={"max_terminations": 10})
    judgement = decide([*old, *idle], some_slots(used=90, maximum=100, reserved=0), policy)
    assert sum(named(policy, judgement).values()) == 10


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_terminations": 3}, "3 condemned, 37 held back; until slots_used: 70% it takes 30"),
        ({"max_share": "1%"}, "0 condemned, 40 held back; until slots_used: 70% it takes 30"),
    ],
)
def test_what_a_limit_or_the_breaker_holds_is_not_said_to_be_enough(
    limits: dict[str, Any], said: str
) -> None:
    tier = a_tier({"slots_used": "85%"}, {"slots_used": "70%"})
    judgement = decide(leaks(40), some_slots(used=97), a_policy(tier, limits=limits))
    assert describe_pressure(judgement)[0].endswith(f": {said}")


def test_what_the_limit_of_the_run_holds_is_not_said_to_be_enough_either() -> None:
    """It is known later than the others."""
    tier = a_tier({"slots_used": "85%"}, {"slots_used": "70%"})
    judgement = decide(leaks(40), some_slots(used=97), a_policy(tier))
    held = judgement.hold_back(lambda decision: "run" if decision.pid < 20 else None)
    assert describe_pressure(held)[0].endswith(
        ": 21 condemned, 19 held back; until slots_used: 70% it takes 30"
    )


def test_what_this_run_has_freed_counts_as_used_for_when_and_not_for_until() -> None:
    """At a second look: our own kills do not undo the pressure that they were an answer to."""
    policy = a_policy(a_tier({"slots_used": "80%"}, {"slots_used": "40%"}))
    slots = some_slots(used=11, maximum=20, reserved=0)
    assert decide(leaks(9), slots, policy).having(CONDEMN) == ()
    judgement = decide(leaks(9), slots, policy, freed=6)
    assert len(judgement.having(CONDEMN)) == 3
    assert judgement.decisions[0].reason.startswith("slots 17/20 (when slots_used: 80%), ")


# -- what the report says of it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "until", "number", "used", "said"),
    [
        (
            {"slots_used": "85%"},
            {"slots_used": "70%"},
            40,
            97,
            (
                "rule tier in force at slots 97/97 (when slots_used: 85%):"
                " stopped after 30, enough until slots_used: 70%"
            ),
        ),
        (
            {"slots_used": "85%"},
            {"slots_used": "70%"},
            12,
            97,
            (
                "rule tier in force at slots 97/97 (when slots_used: 85%):"
                " 12 condemned, no more match; until slots_used: 70% it takes 30"
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
            ("rule tier in force at slots 87/97: stopped after 10, enough until slots_free: 20"),
        ),
        ({"slots_used": "50%"}, {"slots_free": 20}, 3, 77, None),
        (
            {"slots_used": "50%"},
            {"slots_free": 20},
            3,
            78,
            (
                "rule tier in force at slots 78/97 (when slots_used: 50%):"
                " stopped after 1, enough until slots_free: 20"
            ),
        ),
        (None, {"slots_free": 20}, 3, 77, None),
        (None, {"slots_free": 20}, 3, 60, None),
        ({"slots_free": 5}, {"slots_free": 20}, 3, 60, None),
    ],
)
def test_the_report_says_which_tier_was_in_force_and_why_it_stopped(
    when: dict[str, Any] | None,
    until: dict[str, Any] | None,
    number: int,
    used: int,
    said: str | None,
) -> None:
    judgement = decide(leaks(number), some_slots(used=used), a_policy(a_tier(when, until)))
    assert describe_pressure(judgement) == ((said,) if said else ())


def test_what_others_free_is_not_asked_of_a_tier_in_its_sentence() -> None:
    plain = a_rule("plain", state="idle", idle_for="1s")
    second = a_tier(until={"slots_free": 40}) | {"name": "second", "match": MATCH | {"role": "b"}}
    sessions = [
        *[a_session(pid=n, state="idle", idle_seconds=5) for n in range(200, 205)],
        *leaks(12),
        *leaks(3, first=100, role="b"),
    ]
    policy = a_policy(plain, second, a_tier(until={"slots_free": 30}))
    judgement = decide(sessions, some_slots(used=97), policy)
    assert describe_pressure(judgement) == (
        (
            "rule second in force at slots 97/97:"
            " 3 condemned, no more match; until slots_free: 40 it takes 35"
        ),
        (
            "rule tier in force at slots 97/97:"
            " 12 condemned, no more match; until slots_free: 30 it takes 22"
        ),
    )


@pytest.mark.parametrize(("used", "said"), [(77, 0), (78, 1)])
def test_a_tier_without_when_is_in_force_as_soon_as_one_slot_is_missing(
    used: int, said: int
) -> None:
    judgement = decide([], some_slots(used=used), a_policy(a_tier(until={"slots_free": 20})))
    assert len(describe_pressure(judgement)) == said


def test_when_others_free_enough_a_tier_takes_none_and_says_so() -> None:
    plain = a_rule("plain", state="idle", idle_for="1s")
    idle = [a_session(pid=n, state="idle", idle_seconds=5) for n in range(200, 210)]
    policy = a_policy(plain, a_tier(until={"slots_free": 10}))
    judgement = decide([*idle, *leaks(3)], some_slots(used=97), policy)
    assert describe_pressure(judgement) == (
        "rule tier in force at slots 97/97: until slots_free: 10 it takes none",
    )
    assert len(judgement.having(SPARE)) == 3


def test_a_tier_that_needs_nobody_is_not_in_force_and_a_later_rule_may_match() -> None:
    """Else it would report its spared in every run of a healthy server."""
    tier = a_tier(until={"slots_free": 20})
    assert decide(leaks(3), some_slots(used=77), a_policy(tier)).having(SPARE) == ()
    policy = a_policy(tier, a_rule("later", **MATCH))
    decisions = decide(leaks(3), some_slots(used=77), policy).having(CONDEMN)
    assert [d.rule.name for d in decisions if d.rule] == ["later"] * 3


def test_rules_without_marks_are_not_spoken_of() -> None:
    assert (
        describe_pressure(decide(leaks(3), some_slots(used=97), a_policy(a_rule("r", **MATCH))))
        == ()
    )


def test_what_is_denied_is_not_counted_as_enough() -> None:
    sessions = [a_session(pid=n, idle_seconds=9000, signalable=False) for n in range(1, 31)]
    policy = a_policy(a_tier(until={"slots_free": 20}))
    (said,) = describe_pressure(decide(sessions, some_slots(used=97), policy))
    assert said.endswith(": 30 condemned, no more match; until slots_free: 20 it takes 20")


def test_a_policy_of_the_contract_reads() -> None:
    policy: Policy = read_policy(a_document(a_tier({"slots_used": "85%"}, {"slots_used": "70%"})))
    (rule,) = policy.rules
    assert (str(rule.when), str(rule.until)) == ("slots_used: 85%", "slots_used: 70%")
