"""Lock chains, and the rules on blockers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Verdict
from session_reaper.sessions.lock_chains import Wait, Waiter, map_waiters_by_root

from tests.builders import a_policy, a_rule, a_session, some_slots

if TYPE_CHECKING:
    from session_reaper.sessions.session import Session

LEAVE, CONDEMN = Verdict.LEAVE, Verdict.CONDEMN


def a_waiter(pid: int, seconds: float = 31.0, **names: str) -> Waiter:
    return Waiter(pid=pid, seconds=seconds, **{"role": "app", "application": f"api-{pid}"} | names)


def a_wait(pid: int, *blocked_by: int, seconds: float = 31.0, is_session: bool = True) -> Wait:
    return Wait(waiter=a_waiter(pid, seconds), is_session=is_session, blocked_by=blocked_by)


def chains(*waits: Wait) -> dict[int, list[int]]:
    return {root: [w.pid for w in found] for root, found in map_waiters_by_root(waits).items()}


# -- the root of a chain ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waits", "roots"),
    [
        ([], {}),
        ([a_wait(2, 1)], {1: [2]}),
        ([a_wait(2, 1), a_wait(3, 2)], {1: [2, 3]}),  # a waiter is not a root
        ([a_wait(3, 2), a_wait(2, 1)], {1: [2, 3]}),
        ([a_wait(2, 1), a_wait(3, 1, 2)], {1: [2, 3]}),  # waits also for one ahead in the queue
        ([a_wait(4, 3), a_wait(3, 2), a_wait(2, 1)], {1: [2, 3, 4]}),
        ([a_wait(3, 1, 2)], {1: [3], 2: [3]}),  # two roots
        (
            [a_wait(3, 1, 2), a_wait(2, 4)],
            {1: [3], 4: [2, 3]},
        ),  # one direct, one through another waiter
        ([a_wait(3, 1, 1)], {1: [3]}),  # the server may list a pid twice
        ([a_wait(2)], {}),  # its blocker ended before pg_blocking_pids ran
        ([a_wait(1, 2), a_wait(2, 1)], {}),  # a deadlock
        ([a_wait(1, 2), a_wait(2, 1), a_wait(3, 1, 4)], {4: [3]}),
        ([a_wait(1, 1)], {}),
        ([a_wait(2, 0)], {0: [2]}),  # a prepared transaction has no session
    ],
)
def test_every_waiter_counts_for_the_root_of_its_chain(
    waits: list[Wait], roots: dict[int, list[int]]
) -> None:
    assert chains(*waits) == roots


def test_a_background_worker_links_a_chain_but_is_not_a_waiter() -> None:
    autovacuum = a_wait(2, 1, is_session=False)
    assert chains(autovacuum) == {}
    assert chains(autovacuum, a_wait(3, 2)) == {1: [3]}


def test_the_processes_of_a_parallel_query_count_as_one_waiter() -> None:
    workers = [a_wait(2, 1, seconds=5), a_wait(2, 3, seconds=9), a_wait(2, 1, seconds=7)]
    found = map_waiters_by_root(workers)
    assert {root: [(w.pid, w.seconds) for w in all_] for root, all_ in found.items()} == {
        1: [(2, 9)],
        3: [(2, 9)],
    }


def test_the_longest_waiters_come_first() -> None:
    waits = [a_wait(2, 1, seconds=5), a_wait(4, 1, seconds=7), a_wait(3, 1, seconds=7)]
    assert chains(*waits) == {1: [3, 4, 2]}


# -- rules ------------------------------------------------------------------------------------------


def a_blocker(*seconds: float, **session: object) -> Session:
    waiters = tuple(a_waiter(100 + n, age) for n, age in enumerate(seconds))
    return a_session(waiters=waiters, **session)


def verdict_on(session: Session, **match: object) -> Verdict:
    policy = a_policy(a_rule("blockers", state="idle in transaction", **match))
    return decide([session], some_slots(), policy).decisions[0].verdict


@pytest.mark.parametrize(
    ("waits", "match", "verdict"),
    [
        ((), {"blocks": 1, "idle_for": "1ms"}, LEAVE),
        ((1,), {"blocks": 1, "idle_for": "1ms"}, CONDEMN),
        ((1,), {"blocks": 2, "idle_for": "1ms"}, LEAVE),
        ((1, 1), {"blocks": 2, "idle_for": "1ms"}, CONDEMN),
        ((), {"blocks_for": "30s"}, LEAVE),
        ((29.9,), {"blocks_for": "30s"}, LEAVE),
        ((30,), {"blocks_for": "30s"}, CONDEMN),
        ((30, 1), {"blocks_for": "30s"}, CONDEMN),
        (
            (30, 29.9),
            {"blocks": 2, "blocks_for": "30s"},
            LEAVE,
        ),  # two wait, one of them not long enough
        ((31, 30), {"blocks": 2, "blocks_for": "30s"}, CONDEMN),
        ((31, 30, 1), {"blocks": 2, "blocks_for": "30s"}, CONDEMN),
        ((31, 30), {"blocks": 1, "blocks_for": "30s", "idle_for": "1h"}, LEAVE),
        ((), {"blocks_for": "0s"}, LEAVE),
    ],
)
def test_a_blocker_is_condemned_if_enough_sessions_have_waited_long_enough(
    waits: tuple[float, ...], match: dict[str, Any], verdict: Verdict
) -> None:
    assert verdict_on(a_blocker(*waits), **match) is verdict


def test_a_waiter_that_blocks_others_is_left_alone() -> None:
    """Its waiters count for the root of the chain."""
    waiter = a_session(state="active", waiters=())
    policy = a_policy(a_rule(state=["active", "idle in transaction"], blocks_for="1s"))
    assert decide([waiter], some_slots(), policy).having(CONDEMN) == ()


def reason_of(session: Session, **match: object) -> str:
    policy = a_policy(a_rule("blockers", state="idle in transaction", **match))
    return decide([session], some_slots(), policy).decisions[0].reason


def test_the_reason_names_the_waiters() -> None:
    assert reason_of(a_blocker(65, 31), blocks=2, blocks_for="30s") == (
        "2 waiting on it (blocks: 2), waited for 31s (blocks_for: 30s),"
        " waiting: api-100 as app for 1m 5s; api-101 as app for 31s"
    )


def test_the_reason_names_three_waiters_and_counts_the_rest() -> None:
    three = "waiting: api-100 as app for 34s; api-101 as app for 33s; api-102 as app for 32s"
    assert reason_of(a_blocker(34, 33, 32), blocks_for="30s").endswith(three)
    assert reason_of(a_blocker(34, 33, 32, 31), blocks_for="30s").endswith(f"{three}; 1 more")
    assert reason_of(a_blocker(34, 33, 32, 31, 31), blocks_for="30s").endswith(f"{three}; 2 more")


def test_a_waiter_without_application_name_is_named_by_its_pid() -> None:
    session = a_session(waiters=(a_waiter(4712, 40, application="", role="etl"),))
    assert reason_of(session, blocks_for="30s").endswith("waiting: pid 4712 as etl for 40s")


def test_the_reasons_of_other_rules_name_known_waiters_too() -> None:
    assert "waiting: api-100 as app for 5s" in reason_of(a_blocker(5), idle_for="1m")


@pytest.mark.parametrize(("idle_seconds", "verdict"), [(29.0, LEAVE), (30.0, CONDEMN)])
def test_a_session_is_not_blamed_for_waits_from_before_its_state(
    idle_seconds: float, verdict: Verdict
) -> None:
    """In a queue, the lock passes from one healthy transaction to the next."""
    blocker = a_blocker(3600, idle_seconds=idle_seconds)
    assert verdict_on(blocker, blocks_for="30s") is verdict
    assert "api-100 as app for 29s" in reason_of(
        a_blocker(3600, idle_seconds=29.0), blocks=1, idle_for="1s"
    )
