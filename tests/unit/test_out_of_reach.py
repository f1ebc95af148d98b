"""Root blockers that a rule would end, and that the run cannot end."""

from __future__ import annotations

from typing import Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.out_of_reach import UnreachableBlocker, find_unreachable_blockers
from session_reaper.sessions.lock_chains import Waiter

from tests.builders import a_policy, a_rule, a_session, some_slots

WAITERS = tuple(
    Waiter(pid=n, role="app", application="api", seconds=seconds)
    for n, seconds in enumerate((90.0, 60.0, 30.0, 0.5), start=1)
)
BLOCKERS = a_rule("blockers", state="idle in transaction", blocks_for="1m")


def find(
    *rules: dict[str, Any], prepared: tuple[Waiter, ...] = (), **session: object
) -> list[UnreachableBlocker]:
    sessions = [a_session(waiters=WAITERS, **session)]
    decided = decide(sessions, some_slots(used=42), a_policy(*rules))
    return [*find_unreachable_blockers(decided, prepared)]


@pytest.mark.parametrize("match", [{"blocks": 2, "idle_for": "5m"}, {"blocks_for": "30s"}])
def test_a_protected_session_that_a_rule_on_blockers_would_condemn_is_found(
    match: dict[str, Any],
) -> None:
    rule = a_rule("blockers", state="idle in transaction", **match)
    (blocker,) = find(rule, superuser=True)
    assert blocker.rule.name == "blockers"
    assert blocker.by == "superuser"
    assert blocker.decision is not None
    assert blocker.decision.pid == 4711
    assert blocker.waiters == WAITERS


def test_a_blocker_that_is_not_protected_or_that_no_rule_on_blockers_matches_is_not_found() -> None:
    assert find(BLOCKERS) == []
    assert find(a_rule(), superuser=True) == []


def test_a_blocker_that_an_earlier_rule_matches_too_is_found() -> None:
    """As a leak it is matched some minutes later than as a blocker; it goes on to block."""
    (blocker,) = find(a_rule(), BLOCKERS, BLOCKERS | {"name": "second"}, superuser=True)
    assert blocker.rule.name == "blockers"
    assert find(a_rule() | {"action": "keep"}, BLOCKERS, superuser=True) == []


@pytest.mark.parametrize(
    "match",
    [
        {"blocks_for": "90s"},
        {"blocks": 1, "blocks_for": "90s"},
        {"blocks": 2, "blocks_for": "1m"},
        {"blocks": 3, "idle_for": "5m"},
        {"blocks": 4, "idle_for": "5m"},
    ],
)
def test_a_prepared_transaction_is_found_if_enough_sessions_have_waited_for_it_long_enough(
    match: dict[str, Any],
) -> None:
    rule = a_rule("blockers", state="idle in transaction", **match)
    (blocker,) = find(a_rule(), rule, rule | {"name": "second"}, prepared=WAITERS)
    assert blocker.rule.name == "blockers"
    assert blocker.by == "prepared transaction"
    assert blocker.decision is None
    assert blocker.waiters == WAITERS


@pytest.mark.parametrize(
    ("match", "keys"),
    [
        ({"blocks_for": "91s"}, {}),
        ({"blocks": 2, "blocks_for": "61s"}, {}),
        ({"blocks": 5, "idle_for": "5m"}, {}),
        ({"idle_for": "5m"}, {}),
        ({"blocks_for": "1m"}, {"mode": "observe"}),
        ({"blocks_for": "1m"}, {"action": "keep"}),
        ({"blocks_for": "1m"}, {"when": {"slots_used": "99%"}}),
    ],
)
def test_a_prepared_transaction_is_not_found_by_a_rule_that_would_not_end_it(
    match: dict[str, Any], keys: dict[str, Any]
) -> None:
    rule = a_rule("blockers", state="idle in transaction", **match) | keys
    assert find(rule, prepared=WAITERS) == []


def test_without_waiters_no_prepared_transaction_is_found() -> None:
    assert find(BLOCKERS) == []
