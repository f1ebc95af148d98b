"""Keys of a rule beyond names and clocks, and the errors for them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Action, HeldResource, Mode, Order
from session_reaper.policy.model import Rule, Threshold, read_policy
from session_reaper.sessions.session import State

from tests.builders import a_document, a_policy, a_rule

RUNNING = {"state": ["active"], "query_for": "15m"}
LEAKED = {"state": ["idle in transaction"], "idle_for": "1m"}


def a_rule_with(match: dict[str, Any] = LEAKED, **keys: object) -> dict[str, Any]:
    return {"name": "r", "match": match, **keys}


def the_rule(match: dict[str, Any] = LEAKED, **keys: object) -> Rule:
    (rule,) = a_policy(a_rule_with(match, **keys)).rules
    return rule


def the_problem(document: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_policy(document)
    return str(caught.value)


# -- valid rules -----------------------------------------------------------------------------------


def test_reads_every_kind_of_rule() -> None:
    policy = a_policy(
        {
            "name": "under-pressure",
            "when": {"slots_used": "85%"},
            "until": {"slots_used": "70%"},
            "match": {"state": ["idle in transaction"], "idle_for": "1m"},
        },
        {
            "name": "wedged",
            "match": {"state": ["active"], "waiting_for_client": True, "query_for": "15m"},
        },
        {
            "name": "blockers",
            "match": {"state": ["idle in transaction"], "blocks": 1, "blocks_for": "30s"},
        },
        {
            "name": "runaway-reports",
            "match": {"state": ["active"], "role": ["reporting"], "query_for": "30m"},
            "action": "cancel",
            "escalate_after": "10s",
        },
        {
            "name": "harmful",
            "match": {
                "state": "idle in transaction",
                "holds": ["xid", "xmin", "locks"],
                "pins_vacuum_by": 1_000_000,
                "transaction_for": "10m",
            },
            "confirm_after": "2s",
        },
        limits={
            "max_terminations": 50,
            "max_per_application": 10,
            "max_per_run": 200,
            "max_share": "50%",
            "min_sessions": 4,
            "order": "most_harmful",
        },
    )
    pressure, wedged, blockers, reports, harmful = policy.rules
    assert pressure.when == Threshold(
        slots_used=pressure.when.slots_used if pressure.when else None
    )
    assert (str(pressure.when), str(pressure.until)) == ("slots_used: 85%", "slots_used: 70%")
    assert wedged.match.waiting_for_client is True
    assert (blockers.match.blocks, blockers.match.blocks_for) == (1, 30)
    assert (reports.action, reports.escalate_after) == (Action.CANCEL, 10)
    assert harmful.match.holds == (HeldResource.XID, HeldResource.XMIN, HeldResource.LOCKS)
    assert harmful.match.pins_vacuum_by == 1_000_000
    assert harmful.confirm_after == 2
    limits = policy.limits
    assert (limits.max_terminations, limits.max_per_application, limits.max_per_run) == (
        50,
        10,
        200,
    )
    assert (limits.max_share, limits.min_sessions, limits.order) == (
        Decimal(50),
        4,
        Order.MOST_HARMFUL,
    )


def test_defaults_of_a_rule_are_the_careful_values() -> None:
    rule = the_rule()
    assert rule.action is Action.TERMINATE
    assert (rule.when, rule.until, rule.confirm_after, rule.escalate_after) == (None,) * 4
    match = rule.match
    assert (match.waiting_for_client, match.blocks, match.blocks_for) == (None, None, None)
    assert (match.holds, match.pins_vacuum_by) == ((), None)
    limits = a_policy().limits
    assert (limits.max_per_application, limits.max_per_run) == (None, None)
    assert (limits.min_sessions, limits.order) == (1, Order.LONGEST)


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ({"slots_used": "85%"}, "slots_used: 85%"),
        ({"slots_used": "84.50%"}, "slots_used: 84.50%"),
        ({"slots_used": "100%"}, "slots_used: 100%"),
        ({"slots_free": 5}, "slots_free: 5"),
        ({"slots_free": 0}, "slots_free: 0"),
    ],
)
def test_a_threshold_is_shown_as_it_is_written(mark: dict[str, Any], text: str) -> None:
    assert str(the_rule(when=mark).when) == text


@pytest.mark.parametrize("clock", ["idle_for", "transaction_for", "connected_for", "blocks_for"])
def test_one_clock_is_enough(clock: str) -> None:
    assert getattr(the_rule({"state": "idle in transaction", clock: "0s"}).match, clock) == 0


@pytest.mark.parametrize(
    "marks",
    [
        {"until": {"slots_used": "70%"}},
        {"when": {"slots_used": "70%"}, "until": {"slots_used": "69.9%"}},
        {"when": {"slots_free": 5}, "until": {"slots_free": 6}},
        {
            "when": {"slots_free": 5},
            "until": {"slots_used": "99%"},
        },  # comparable only for a known server
        {"when": {"slots_used": "85%"}, "until": {"slots_free": 1}},
    ],
)
def test_until_below_when_is_accepted(marks: dict[str, Any]) -> None:
    the_rule(**marks)


@pytest.mark.parametrize("state", ["active", "fastpath function call"])
def test_running_states_can_be_cancelled(state: str) -> None:
    rule = the_rule({"state": [state], "idle_for": "1m"}, action="cancel")
    assert rule.escalate_after is None


def test_the_longest_pause_is_five_minutes() -> None:
    assert the_rule(confirm_after="5m").confirm_after == 300
    assert the_rule(RUNNING, action="cancel", escalate_after="5m").escalate_after == 300


# -- scope of the snapshot -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "limits", "waits", "locks"),
    [
        ({}, {}, False, False),
        ({"blocks": 1}, {}, True, False),
        ({"blocks_for": "0s"}, {}, True, False),
        ({"holds": ["xid", "xmin"]}, {}, False, False),
        ({"holds": "locks"}, {}, False, True),
        ({"pins_vacuum_by": 5}, {}, False, False),
        ({}, {"order": "newest"}, False, False),
        ({}, {"order": "most_harmful"}, True, True),
    ],
)
def test_lock_data_is_in_scope_only_if_the_policy_needs_it(
    match: dict[str, Any], limits: dict[str, Any], *, waits: bool, locks: bool
) -> None:
    scope = a_policy(a_rule("first"), a_rule_with(LEAKED | match), limits=limits).scope()
    assert (scope.waits, scope.locks) == (waits, locks)


# -- invalid rules --------------------------------------------------

CLOCKS = "idle_for, transaction_for, connected_for, query_for, blocks_for"
STATES = "active, idle, idle in transaction, idle in transaction (aborted), fastpath function call"
EXACTLY_ONE = "must have exactly one of slots_used, slots_free"


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            a_rule_with({"state": "active", "waiting_for_client": True}),
            f"rules[0].match: needs at least one of {CLOCKS}",
        ),
        (
            a_rule_with({"state": "idle", "query_for": "5m"}),
            "rules[0].match.query_for: applies to active sessions only; add active to state",
        ),
        *(
            (
                a_rule_with({"state": state, "waiting_for_client": waiting, "idle_for": "1m"}),
                (
                    "rules[0].match.waiting_for_client: applies to active sessions only;"
                    " write state: active"
                ),
            )
            for state in ("idle", ["active", "idle in transaction"])
            for waiting in (True, False)
        ),
        (
            a_rule_with({**RUNNING, "waiting_for_client": "yes"}),
            "rules[0].match.waiting_for_client: must be true or false, not 'yes'",
        ),
        (
            a_rule_with({**RUNNING, "waiting_for_client": 1}),
            "rules[0].match.waiting_for_client: must be true or false, not 1",
        ),
        (
            a_rule_with({**LEAKED, "blocks": 0}),
            "rules[0].match.blocks: must be a whole number of at least 1, not 0",
        ),
        (
            a_rule_with({**LEAKED, "blocks": True}),
            "rules[0].match.blocks: must be a whole number of at least 1, not True",
        ),
        (
            a_rule_with({**LEAKED, "blocks_for": 30}),
            "rules[0].match.blocks_for: 30 has no unit; write 30s or 5m",
        ),
        (
            a_rule_with({**LEAKED, "blocks_for": "soon"}),
            "rules[0].match.blocks_for: invalid duration 'soon'; write 30s, 5m, 1h30m or 2d",
        ),
        (
            a_rule_with({**LEAKED, "holds": []}),
            "rules[0].match.holds: is an empty list; fill it in or remove it",
        ),
        (
            a_rule_with({**LEAKED, "holds": ["xid", "lock"]}),
            ("rules[0].match.holds[1]: invalid value 'lock'; valid: xid, xmin, locks"),
        ),
        (
            a_rule_with({**LEAKED, "pins_vacuum_by": "1000000"}),
            "rules[0].match.pins_vacuum_by: must be a whole number of at least 1, not '1000000'",
        ),
        (
            a_rule_with({**LEAKED, "state": "idel"}),
            f"rules[0].match.state: invalid value 'idel'; valid: {STATES}",
        ),
        (a_rule_with(when={}), f"rules[0].when: {EXACTLY_ONE}"),
        (a_rule_with(until={}), f"rules[0].until: {EXACTLY_ONE}"),
        (
            a_rule_with(when={"slots_used": "85%", "slots_free": 5}),
            f"rules[0].when: {EXACTLY_ONE}",
        ),
        (a_rule_with(when="85%"), "rules[0].when: must be a mapping of keys to values, not '85%'"),
        (
            a_rule_with(when={"slots": "85%"}),
            "rules[0].when.slots: unknown key; known: slots_used, slots_free",
        ),
        (
            a_rule_with(when={"slots_used": 85}),
            "rules[0].when.slots_used: invalid percentage 85; write a value such as 50%, above 0%",
        ),
        (
            a_rule_with(when={"slots_free": "5"}),
            "rules[0].when.slots_free: must be a whole number of at least 0, not '5'",
        ),
        (
            a_rule_with(when={"slots_free": -1}),
            "rules[0].when.slots_free: must be a whole number of at least 0, not -1",
        ),
        (
            a_rule_with(when={"slots_used": "70%"}, until={"slots_used": "70.0%"}),
            (
                "rules[0].until: must leave fewer slots used than when (slots_used: 70%), not slots_used: 70.0%"
            ),
        ),
        (
            a_rule_with(when={"slots_free": 5}, until={"slots_free": 5}),
            (
                "rules[0].until: must leave fewer slots used than when (slots_free: 5), not slots_free: 5"
            ),
        ),
        (
            a_rule_with(when={"slots_free": 5}, until={"slots_free": 4}),
            (
                "rules[0].until: must leave fewer slots used than when (slots_free: 5), not slots_free: 4"
            ),
        ),
        (
            a_rule_with(when={"slots_used": "70%"}, until={"slots_used": "85%"}),
            (
                "rules[0].until: must leave fewer slots used than when (slots_used: 70%), not slots_used: 85%"
            ),
        ),
        (
            a_rule_with(action="kill"),
            "rules[0].action: invalid value 'kill'; valid: terminate, cancel, keep",
        ),
        *(
            (
                a_rule_with({"state": state, "idle_for": "1m"}, action="cancel"),
                (
                    "rules[0].action: cancel does nothing to a session without a query;"
                    " write state: active or action: terminate"
                ),
            )
            for state in ("idle", "idle in transaction (aborted)", ["active", "idle"])
        ),
        (
            a_rule_with({**RUNNING, "waiting_for_client": True}, action="cancel"),
            (
                "rules[0].action: cancel does nothing to a session waiting for its client;"
                " write action: terminate"
            ),
        ),
        (
            a_rule_with(RUNNING, action="cancel", until={"slots_free": 5}),
            "rules[0].until: a cancel frees no slots; write action: terminate or remove until",
        ),
        (
            a_rule_with(RUNNING, escalate_after="10s"),
            "rules[0].escalate_after: requires action: cancel; add that, or remove escalate_after",
        ),
        (
            a_rule_with(RUNNING, action="terminate", escalate_after="0s"),
            "rules[0].escalate_after: requires action: cancel; add that, or remove escalate_after",
        ),
        (
            a_rule_with(RUNNING, action="cancel", escalate_after="301s"),
            "rules[0].escalate_after: '301s' is too long; at most 5m",
        ),
        (
            a_rule_with(confirm_after="1h"),
            "rules[0].confirm_after: '1h' is too long; at most 5m",
        ),
        (
            a_rule_with(confirm_after=2),
            "rules[0].confirm_after: 2 has no unit; write 2s or 5m",
        ),
        (
            a_rule_with({**RUNNING, "wait_event_type": ["IO", "lock"]}),
            "rules[0].match.wait_event_type[1]: 'lock' matches no wait event type; write Lock",
        ),
        (
            a_rule_with({**RUNNING, "wait_event_type": "cl?ENT"}, action="keep"),
            "rules[0].match.wait_event_type: 'cl?ENT' matches no wait event type; write Client",
        ),
        (
            a_rule_with({**RUNNING, "wait_event_type": "ClientRead"}),
            (
                "rules[0].match.wait_event_type: 'ClientRead' matches no wait event type; valid:"
                " Activity, BufferPin, Client, Extension, InjectionPoint, IO, IPC, Lock, LWLock,"
                " Timeout"
            ),
        ),
        *(
            (
                a_rule_with({**RUNNING, "wait_event": wrong}),
                (
                    f"rules[0].match.wait_event: {wrong!r} matches no wait event, because case"
                    f" matters; write {right}"
                ),
            )
            for wrong, right in (("clientwrite", "ClientWrite"), ("Relation", "relation"))
        ),
        (
            a_rule_with(order="newest"),
            (
                "rules[0].order: unknown key; known: name, match, when, until, confirm_after,"
                " action, escalate_after, mode"
            ),
        ),
    ],
)
def test_an_invalid_rule_is_an_error_with_its_place_and_remedy(
    rule: dict[str, Any], problem: str
) -> None:
    assert the_problem(a_document(rule)) == problem


@pytest.mark.parametrize("glob", ["Lock", "L*", "[!L]*", "I?", "LWLock", "BufferPin", "*"])
def test_a_wait_event_type_may_be_any_glob_that_matches_one(glob: str) -> None:
    policy = a_policy(a_rule_with({**RUNNING, "wait_event_type": glob}))
    assert policy.rules[0].match.wait_event_type == (glob,)


@pytest.mark.parametrize("glob", ["ClientWrite", "relation", "clientwrit?", "BufferMapping", "x"])
def test_a_wait_event_may_be_one_that_only_an_extension_or_a_later_version_has(glob: str) -> None:
    policy = a_policy(a_rule_with({**RUNNING, "wait_event": glob}))
    assert policy.rules[0].match.wait_event == (glob,)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("until", {"slots_used": "70%"}),
        ("confirm_after", "2s"),
        ("escalate_after", "10s"),
        ("mode", "observe"),
        ("mode", "enforce"),
    ],
)
def test_keep_takes_match_and_when_only(key: str, value: object) -> None:
    rule = a_rule_with({"state": "idle"}, action="keep", **{key: value})
    problem = "a rule with action: keep takes match and when only; remove it"
    assert the_problem(a_document(rule)) == f"rules[0].{key}: {problem}"


def test_keep_needs_a_state_and_no_clock() -> None:
    rule = the_rule({"state": "active"}, action="keep", when={"slots_free": 5})
    assert (rule.action, rule.match.state) == (Action.KEEP, (State.ACTIVE,))
    problem = the_problem(a_document(a_rule_with({"role": "batch"}, action="keep")))
    assert problem == "rules[0].match.state: is required"


@pytest.mark.parametrize(
    ("mode", "read"),
    [("observe", Mode.OBSERVE), ("enforce", Mode.ENFORCE), ("off", Mode.OFF), (False, Mode.OFF)],
)
def test_a_rule_has_a_mode(mode: object, read: Mode) -> None:
    assert the_rule(mode=mode).mode is read
    assert the_problem(a_document(a_rule_with(mode="kill"))).startswith("rules[0].mode: ")


def test_a_keep_rule_and_a_rule_that_is_off_add_no_sessions_to_the_scope() -> None:
    others = [
        a_rule_with({"state": ["idle", "idle in transaction"], "role": "batch"}, action="keep"),
        {
            "name": "off",
            "match": {"state": "active", "query_for": "1m", "blocks": 1},
            "mode": "off",
        },
    ]
    assert a_policy(*others, a_rule("last")).scope() == a_policy(a_rule("last")).scope()
    # Such a session could not be kept if the snapshot did not have what the rule asks for.
    blockers = a_rule_with({"state": "idle in transaction", "blocks": 1}, action="keep")
    assert a_policy(blockers, a_rule("last")).scope().waits
    elsewhere = a_rule_with({"state": "active", "blocks": 1}, action="keep")
    assert not a_policy(elsewhere, a_rule("last")).scope().waits


def test_the_ends_of_queries_are_in_scope_only_if_the_policy_shows_comment_tags() -> None:
    assert a_policy().scope().query_ends is False
    assert a_policy(comment_tags="route").scope().query_ends is True


def test_a_cancel_may_name_every_running_state() -> None:
    rule = the_rule(
        {"state": ["active", "fastpath function call"], "query_for": "1m"}, action="cancel"
    )
    assert rule.match.state == (State.ACTIVE, State.FASTPATH)


def test_an_observe_only_rule_has_its_sessions_in_the_scope() -> None:
    warning = a_rule_with({"state": "idle in transaction", "idle_for": "10s"}, mode="observe")
    assert a_policy(warning, a_rule("last")).scope().idle_floors == {State.IDLE_IN_TRANSACTION: 10}


def test_cancel_is_accepted_with_waiting_for_client_false() -> None:
    rule = the_rule({**RUNNING, "waiting_for_client": False}, action="cancel")
    assert rule.match.state == (State.ACTIVE,)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (
            {"order": "oldest"},
            "limits.order: invalid value 'oldest'; valid: longest, most_harmful, newest",
        ),
        (
            {"max_per_application": 0},
            "limits.max_per_application: must be a whole number of at least 1, not 0",
        ),
        ({"max_per_run": "5"}, "limits.max_per_run: must be a whole number of at least 1, not '5'"),
        (
            {"max_condemned": 0},
            "limits.max_condemned: must be a whole number of at least 1, not 0",
        ),
        ({"min_sessions": 0}, "limits.min_sessions: must be a whole number of at least 1, not 0"),
        (
            {"max_share": 50},
            "limits.max_share: invalid percentage 50; write a value such as 50%, above 0%",
        ),
        (
            {"max": 5},
            (
                "limits.max: unknown key; known: max_terminations, max_per_application,"
                " max_per_run, max_share, max_condemned, min_sessions, order"
            ),
        ),
    ],
)
def test_an_invalid_limit_is_an_error_with_its_place(limits: dict[str, Any], problem: str) -> None:
    assert the_problem(a_document(limits=limits)) == problem


# -- mistakes of similar tools ----------------------------------------------------


@pytest.mark.parametrize("glob", ["*", "?*", "**"])
def test_a_query_glob_that_matches_every_query_is_refused(glob: str) -> None:
    problem = the_problem(a_document(a_rule_with(LEAKED | {"query": glob})))
    assert problem == (
        f"rules[0].match.query: '{glob}' matches every query; remove it or make it more specific"
    )


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (a_document(protects={"roles": ["deploy"]}), "protects"),
        (a_document(protect={"rolls": ["deploy"]}), "protect.rolls"),
        (a_document(a_rule_with(LEAKED | {"rol": "app"})), "rules[0].match.rol"),
        (a_document(a_rule_with(whem={"slots_used": "85%"})), "rules[0].whem"),
        (a_document(a_rule_with(when={"slots_usd": "85%"})), "rules[0].when.slots_usd"),
        (a_document(limits={"max_termination": 1}), "limits.max_termination"),
    ],
)
def test_a_misspelled_key_is_an_error(document: object, place: str) -> None:
    assert the_problem(document).startswith(f"{place}: unknown key; known: ")


def test_a_given_mode_is_not_overridden_by_a_default() -> None:
    assert str(a_policy(mode="enforce").mode) == "enforce"


def test_cancel_is_refused_where_it_would_have_no_effect() -> None:
    for match in (LEAKED, {**RUNNING, "waiting_for_client": True}):
        assert "cancel does nothing" in the_problem(a_document(a_rule_with(match, action="cancel")))
