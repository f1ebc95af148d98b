"""Properties of every decision, for any sessions and any policy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from session_reaper.decision.decide import decide
from session_reaper.decision.explain import explain
from session_reaper.decision.matching import list_misses
from session_reaper.decision.model import Decisions, Verdict
from session_reaper.policy.enums import Action, Mode
from session_reaper.policy.model import Policy, Protect, Rule, read_policy
from session_reaper.runs.request import RunRequest, merge_policy
from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.redaction import redact_for_matching, strip_for_matching
from session_reaper.sessions.session import Session, Slots, State

from tests.builders import a_policy, a_rule, a_session
from tests.documents import policy_documents
from tests.visible import list_matched, select_visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS = st.sampled_from([0.0, 0.5, 1.5, 150.0, 299.999, 300.0, 900.0, 172_800.0, 1e9])
MAYBE_SECONDS = st.none() | SECONDS
AGES = st.none() | st.sampled_from([0, 1, 7, 1_000_000, 2_147_483_647])
NAMES = st.sampled_from(["app", "app_1", "worker", "db7", "x", "a[b", "ÄPP", "null", "", "pg_dump"])
ROLES = NAMES | st.sampled_from(["rdsadmin", "rdsproxyadmin", "aiven_x", "deploy"])
APPLICATIONS = NAMES | st.just("session-reaper")
WAIT_TYPES = st.sampled_from([None, "Lock", "IPC", "Client"])
LIFTABLE = st.none() | st.frozensets(ROLES)
CLIENTS = st.none() | st.sampled_from(["10.0.8.7", "10.0.9.1", "::1", "2001:db8::5", "fe80::1"])
QUERIES = st.sampled_from(
    [
        "select 1",
        "LISTEN jobs",
        "COPY t FROM STDIN",
        "COPY t TO STDOUT",
        "a x b y c",
        "insert into t values (1)",
        "",
    ]
)
WAITERS = st.lists(
    st.builds(Waiter, pid=st.integers(1, 99), role=NAMES, application=NAMES, seconds=SECONDS),
    max_size=3,
).map(lambda waiters: tuple(sorted(waiters, key=lambda w: -w.seconds)))
FLAGS = st.sampled_from([False, False, False, False, True])


@st.composite
def sessions_of(draw: st.DrawFn, pid: int) -> Session:
    return a_session(
        pid=pid,
        state=draw(st.sampled_from(State)),
        role=draw(st.none() | ROLES),
        database=draw(NAMES),
        application=draw(APPLICATIONS),
        client=draw(CLIENTS),
        query=draw(QUERIES),
        idle_seconds=draw(SECONDS),
        transaction_seconds=draw(MAYBE_SECONDS),
        connected_seconds=draw(SECONDS),
        query_seconds=draw(MAYBE_SECONDS),
        waiting_for_client=draw(st.booleans()),
        wait_event_type=draw(WAIT_TYPES),
        wait_event=draw(st.sampled_from([None, "ClientRead", "ClientWrite", "relation"])),
        waits_for_lock=draw(FLAGS),
        xid_age=draw(AGES),
        xmin_age=draw(AGES),
        locks=draw(st.none() | st.integers(0, 3)),
        waiters=draw(WAITERS),
        superuser=draw(FLAGS),
        replication=draw(FLAGS),
        own_role=draw(FLAGS),
        signalable=not draw(FLAGS),
    )


@st.composite
def several_sessions(draw: st.DrawFn) -> list[Session]:
    number = draw(st.integers(0, 12))
    return [draw(sessions_of(pid)) for pid in range(1, number + 1)]


POLICIES = policy_documents().map(read_policy)
SLOTS = st.builds(
    Slots, max=st.integers(1, 40), reserved=st.integers(0, 10), used=st.integers(0, 40)
)


def list_victims(decided: Decisions) -> set[int]:
    return {d.pid for d in decided.having(Verdict.CONDEMN)}


def remove_limits(policy: Policy) -> Policy:
    """Return the same rules without `until` and without limits."""
    rules = tuple(replace(rule, until=None) for rule in policy.rules)
    limits = a_policy(limits={"max_terminations": 10**9}).limits
    return replace(policy, rules=rules, limits=limits)


def is_always_protected(session: Session, protect: Protect) -> bool:
    """Decide independently of the engine on the protections that no rule lifts."""
    if session.superuser or (session.own_role and session.application == "session-reaper"):
        return True
    if session.application == "pg_dump" or (session.role is None and protect.roles):
        return True
    by_name: list[tuple[Sequence[str], str]] = [
        (protect.roles, session.role or ""),
        (protect.applications, session.application),
        (protect.databases, session.database),
    ]
    # The generated globs that matter here are literal names or *.
    return any(name in patterns or "*" in patterns for patterns, name in by_name)


def is_protected_by_role(session: Session) -> bool:
    provider = (session.role or "").startswith(("rds", "aiven", "_aiven"))
    return session.replication or session.own_role or provider


@given(several_sessions(), SLOTS, POLICIES)
def test_every_session_gets_one_decision_with_a_reason(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    decided = decide(sessions, slots, policy)
    assert Counter(d.pid for d in decided.decisions) == Counter(range(1, len(sessions) + 1))
    for decision in decided.decisions:
        assert decision.reason
        assert (decision.rule is None) == (decision.verdict is Verdict.LEAVE)
        assert decision.rule is None or decision.rule in policy.rules
        assert decision.session in sessions
        assert (decision.held_by is not None) == (decision.verdict is Verdict.SPARE)
        assert decision.held_by is None or decision.reason.endswith(f"; {decision.held_by}")


@given(several_sessions(), SLOTS, POLICIES, LIFTABLE)
def test_a_protected_session_is_never_condemned(
    sessions: list[Session],
    slots: Slots,
    policy: Policy,
    liftable: frozenset[str] | None,
) -> None:
    policy = replace(policy, liftable_roles=liftable)
    for decision in decide(sessions, slots, policy).decisions:
        session, rule = decision.session, decision.rule
        is_lifted = session.role in (rule.match.role if rule else ())
        is_liftable = liftable is None or session.role in liftable
        if is_always_protected(session, policy.protect) or (
            is_protected_by_role(session) and not (is_lifted and is_liftable)
        ):
            assert decision.verdict is Verdict.LEAVE
            assert decision.protection
            assert decision.reason == f"protected: {decision.protection.detail}"
        if decision.verdict in (Verdict.CONDEMN, Verdict.SPARE):
            assert decision.protection is None
            assert decision.protected_from is None


@given(several_sessions(), SLOTS, POLICIES)
def test_a_session_that_waits_for_a_lock_matches_only_rules_that_name_wait_event_type_or_keep(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    for decision in decide(sessions, slots, policy).decisions:
        if decision.session.waits_for_lock and decision.rule:
            match, action = decision.rule.match, decision.rule.action
            assert match.wait_event_type or action is Action.KEEP


@given(several_sessions(), SLOTS, POLICIES)
def test_a_session_whose_role_was_dropped_matches_only_rules_without_role(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    for decision in decide(sessions, slots, policy).decisions:
        if decision.session.role is None and decision.rule:
            assert not decision.rule.match.role


@given(several_sessions(), SLOTS, POLICIES, POLICIES)
def test_an_event_s_policy_lifts_nothing_that_the_stack_s_does_not(
    sessions: list[Session], slots: Slots, stack: Policy, own: Policy
) -> None:
    policy = merge_policy(stack, RunRequest(policy=own))
    literal = {
        role
        for rule in stack.rules
        if rule.may_condemn
        for role in rule.match.role
        if not set("*?[") & set(role)
    }
    for decision in decide(sessions, slots, policy).decisions:
        if is_protected_by_role(decision.session) and decision.rule:
            assert decision.session.role in literal


@given(several_sessions(), SLOTS, POLICIES)
def test_a_condemned_session_is_in_a_state_that_its_rule_names(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    for decision in decide(sessions, slots, policy).decisions:
        if decision.rule:
            assert decision.session.state in decision.rule.match.state
            assert decision.rule.when is None or decision.rule.when.is_reached(slots)


def assert_condemns_no_other_session(
    sessions: Sequence[Session], slots: Slots, before: Policy, after: Policy
) -> None:
    """A place under a limit, `until` or the breaker may go to another session that was condemned."""
    decided = [decide(select_visible(sessions, each), slots, each) for each in (before, after)]
    assert list_matched(decided[1]) <= list_matched(decided[0])
    if decided[0].breaker is None and list_matched(decided[0]) == list_victims(decided[0]):
        assert list_victims(decided[1]) <= list_victims(decided[0])
    free = [
        decide(select_visible(sessions, each), slots, remove_limits(each))
        for each in (before, after)
    ]
    assert list_victims(free[1]) <= list_victims(free[0])


PROTECTIONS: dict[str, st.SearchStrategy[list[str]]] = {
    "roles": st.lists(ROLES.filter(bool).filter(lambda n: "[" not in n), min_size=1),
    "applications": st.lists(st.sampled_from(["app*", "*", "worker"]), min_size=1),
    "databases": st.lists(st.sampled_from(["db?", "null"]), min_size=1),
    "clients": st.lists(st.sampled_from(["10.0.0.0/8", "::/0"]), min_size=1),
}


@pytest.mark.parametrize("key", PROTECTIONS)
@given(data=st.data())
def test_an_added_protection_never_condemns_more_sessions(key: str, data: st.DataObject) -> None:
    sessions, slots = data.draw(several_sessions()), data.draw(SLOTS)
    policy = data.draw(POLICIES)
    more = a_policy(protect={key: data.draw(PROTECTIONS[key])}).protect
    careful = replace(policy, protect=policy.protect.merge(more))
    assert_condemns_no_other_session(sessions, slots, policy, careful)


def a_keep_rule(rule: Rule) -> Rule:
    return Rule(name="added", match=rule.match, when=rule.when, action=Action.KEEP)


def an_observe_only_rule(rule: Rule) -> Rule:
    return replace(rule, name="added", mode=Mode.OBSERVE)


@pytest.mark.parametrize("addition", [a_keep_rule, an_observe_only_rule])
@given(several_sessions(), SLOTS, POLICIES, st.data())
def test_an_added_rule_that_keeps_or_observes_never_condemns_a_session(
    addition: Callable[[Rule], Rule],
    sessions: list[Session],
    slots: Slots,
    policy: Policy,
    data: st.DataObject,
) -> None:
    other = data.draw(POLICIES)
    index = data.draw(st.integers(0, len(policy.rules)))
    rule = addition(data.draw(st.sampled_from(policy.rules + other.rules)))
    more = replace(policy, rules=(*policy.rules[:index], rule, *policy.rules[index:]))
    assert_condemns_no_other_session(sessions, slots, policy, more)
    if rule.is_observe_only:
        before, after = (decide(sessions, slots, each).decisions for each in (policy, more))
        assert [d for d in after if d.rule is not rule] == [
            first for first, second in zip(before, after, strict=True) if second.rule is not rule
        ]


@given(several_sessions(), SLOTS, POLICIES)
def test_keep_and_observe_only_rules_count_in_no_limit_until_or_breaker(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    decided = decide(sessions, slots, policy)
    left = {d.pid for d in decided.decisions if not d.rule or not d.rule.may_condemn}
    rest = [session for session in sessions if session.identity.pid not in left]
    alone = decide(rest, slots, policy)
    assert alone.breaker == decided.breaker
    assert alone.decisions == tuple(d for d in decided.decisions if d.pid not in left)


@given(several_sessions(), SLOTS, POLICIES)
def test_what_the_snapshot_leaves_out_changes_no_decision(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    whole, part = (
        decide(each, slots, policy) for each in (sessions, select_visible(sessions, policy))
    )
    assert list_matched(part) == list_matched(whole)
    assert list_victims(part) == list_victims(whole)
    assert part.breaker == whole.breaker
    assert {d.pid for d in part.having(Verdict.OBSERVE)} == {
        d.pid for d in whole.having(Verdict.OBSERVE)
    }


@given(POLICIES)
def test_a_keep_rule_adds_no_sessions_to_the_snapshot(policy: Policy) -> None:
    acting = tuple(rule for rule in policy.rules if rule.action is not Action.KEEP)
    assert policy.scope().idle_floors == replace(policy, rules=acting).scope().idle_floors


@given(several_sessions(), SLOTS, POLICIES, st.data())
def test_a_higher_threshold_never_condemns_more_sessions(
    sessions: list[Session], slots: Slots, policy: Policy, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(policy.rules) - 1))
    rule = policy.rules[index]
    assume(rule.action is not Action.KEEP)
    thresholds = [
        name
        for name in (
            "idle_for",
            "transaction_for",
            "connected_for",
            "query_for",
            "blocks",
            "blocks_for",
            "pins_vacuum_by",
        )
        if getattr(rule.match, name) is not None
    ]
    name = data.draw(st.sampled_from(thresholds))
    higher = getattr(rule.match, name) + data.draw(st.sampled_from([1, 60, 10**6]))
    raised = replace(rule, match=replace(rule.match, **{name: higher}))
    rules = (*policy.rules[:index], raised, *policy.rules[index + 1 :])
    patient = replace(policy, rules=rules)
    assert list_matched(decide(sessions, slots, patient)) <= list_matched(
        decide(sessions, slots, policy)
    )
    without, with_it = remove_limits(policy), remove_limits(patient)
    assert list_victims(decide(sessions, slots, with_it)) <= list_victims(
        decide(sessions, slots, without)
    )


@given(several_sessions(), SLOTS, POLICIES)
def test_an_added_condition_never_makes_a_rule_match_more_sessions(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    first = policy.rules[0]
    narrow = replace(first, match=replace(first.match, pins_vacuum_by=7))
    if first.match.pins_vacuum_by is None:
        before = decide(sessions, slots, replace(policy, rules=(first,)))
        after = decide(sessions, slots, replace(policy, rules=(narrow,)))
        assert list_matched(after) <= list_matched(before)


@given(several_sessions(), SLOTS, POLICIES)
def test_limits_are_never_exceeded(sessions: list[Session], slots: Slots, policy: Policy) -> None:
    decided = decide(sessions, slots, policy)
    going = [d for d in decided.having(Verdict.CONDEMN) if d.session.signalable]
    limits = policy.limits
    assert len(going) <= limits.max_terminations
    if limits.max_per_application is not None:
        by_application = Counter(d.session.application for d in going)
        assert max(by_application.values(), default=0) <= limits.max_per_application
    if limits.max_condemned is not None:
        assert len(list_victims(decided)) <= limits.max_condemned
    if decided.breaker:
        assert list_victims(decided) == set()
    elif limits.max_share is not None and slots.used >= limits.min_sessions:
        assert 100 * len(list_victims(decided)) <= limits.max_share * slots.used
    ending = [d for d in going if d.rule and d.rule.action is Action.TERMINATE]
    for index, rule in enumerate(policy.rules):
        if rule.until is not None:
            mine = [d for d in ending if d.rule is rule]
            earlier = policy.rules[:index]
            other = [d for d in ending if d.rule in earlier or (d.rule and not d.rule.until)]
            assert not mine or len(mine) + len(other) <= rule.until.excess(slots)


@given(several_sessions(), SLOTS, POLICIES, st.integers(1, 5))
def test_a_lower_limit_never_adds_a_victim(
    sessions: list[Session], slots: Slots, policy: Policy, most: int
) -> None:
    lower = replace(policy.limits, max_terminations=min(most, policy.limits.max_terminations))
    careful = replace(policy, limits=lower)
    assert list_victims(decide(sessions, slots, careful)) <= list_victims(
        decide(sessions, slots, policy)
    )


@given(several_sessions(), SLOTS, POLICIES, st.randoms(use_true_random=False))
def test_the_order_of_the_sessions_does_not_matter(
    sessions: list[Session],
    slots: Slots,
    policy: Policy,
    random: Any,  # noqa: ANN401 -- hypothesis's own
) -> None:
    shuffled = list(sessions)
    random.shuffle(shuffled)
    assert decide(shuffled, slots, policy) == decide(sessions, slots, policy)


@given(several_sessions(), SLOTS, POLICIES)
def test_decide_is_deterministic(sessions: list[Session], slots: Slots, policy: Policy) -> None:
    assert decide(sessions, slots, policy) == decide(sessions, slots, policy)


@given(several_sessions(), SLOTS, POLICIES)
def test_max_terminations_spares_only_the_last_sessions_in_order(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    reasons = [
        "limits.max_terminations" in d.reason
        for d in decide(sessions, slots, policy).decisions
        if d.verdict is Verdict.CONDEMN or "limits.max_terminations" in d.reason
    ]
    assert reasons == sorted(reasons)


@given(sessions_of(1), SLOTS, POLICIES)
def test_without_limits_a_decision_does_not_depend_on_other_sessions(
    session: Session, slots: Slots, policy: Policy
) -> None:
    others = [a_session(pid=pid, idle_seconds=1e9, role="app") for pid in range(2, 5)]
    alone = decide([session], slots, remove_limits(policy)).decisions[0]
    among = decide([session, *others], slots, remove_limits(policy)).decisions
    assert alone in among


CLOCKS: dict[str, Callable[[float], dict[str, Any]]] = {
    "idle_for": lambda age: {"idle_seconds": age},
    "transaction_for": lambda age: {"transaction_seconds": age},
    "connected_for": lambda age: {"connected_seconds": age},
    "query_for": lambda age: {"query_seconds": age},
}


@pytest.mark.parametrize("clock", CLOCKS)
@given(age=st.floats(0, 1e6), milliseconds=st.integers(0, 10**9))
def test_a_clock_matches_exactly_from_its_threshold_on(
    clock: str, age: float, milliseconds: int
) -> None:
    policy = a_policy(a_rule(state="active", **{clock: f"{milliseconds}ms"}))
    session = a_session(state="active", **{"query_seconds": None} | CLOCKS[clock](age))
    (decision,) = decide([session], Slots(max=9, reserved=0, used=1), policy).decisions
    threshold = getattr(policy.rules[0].match, clock)
    assert (decision.verdict is Verdict.CONDEMN) == (age >= threshold)


@given(several_sessions(), SLOTS, POLICIES)
def test_until_spares_no_session_before_enough_slots_are_freed(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    decided = decide(sessions, slots, policy)
    if decided.breaker:
        return
    freed = sum(
        d.session.signalable and d.rule is not None and d.rule.action is Action.TERMINATE
        for d in decided.having(Verdict.CONDEMN)
    )
    for decision in decided.having(Verdict.SPARE):
        if decision.rule and decision.held_by == f"not needed to reach {decision.rule.until}":
            assert decision.rule.until is not None
            assert freed >= decision.rule.until.excess(slots)


@given(several_sessions(), SLOTS, POLICIES)
def test_a_rule_whose_until_is_reached_condemns_no_session(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    """Not even sessions that our role may not signal."""
    for decision in decide(sessions, slots, policy).having(Verdict.CONDEMN):
        if decision.rule and decision.rule.until:
            assert decision.rule.until.excess(slots) > 0


@given(several_sessions(), SLOTS, POLICIES)
def test_explain_calls_condemned_what_a_run_condemns_and_explains_every_session(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    decided = decide(sessions, slots, policy)
    explained = list(explain(decided, policy))
    assert [each.decision for each in explained] == list(decided.decisions)
    for each in explained:
        assert each.reason
        verdict, is_protected = each.decision.verdict, each.decision.protection is not None
        assert (each.outcome == "condemned") == (verdict is Verdict.CONDEMN)
        assert (each.outcome == "spared") == (verdict is Verdict.SPARE)
        assert (each.outcome == "kept") == (verdict is Verdict.KEEP)
        if each.outcome in ("protected", "left"):
            assert (each.outcome == "protected") == is_protected


def query_text(query: str) -> str:
    return strip_for_matching(redact_for_matching(query))


@given(several_sessions(), SLOTS, POLICIES)
def test_a_rule_misses_a_session_if_and_only_if_it_does_not_match(
    sessions: list[Session], slots: Slots, policy: Policy
) -> None:
    """A miss is found by other code than a match, so both must agree on every condition."""
    for rule in policy.rules:
        alone = replace(
            remove_limits(policy),
            rules=(replace(rule, when=None, until=None, mode=None),),
            protect=Protect(),
        )
        for decision in decide(sessions, slots, alone).decisions:
            if decision.protection is None:
                misses = list_misses(alone.rules[0], decision.session, query_text)
                assert (decision.rule is None) == bool(misses)
