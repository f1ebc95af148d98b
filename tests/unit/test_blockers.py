"""Who waits on whom, and the rules on that."""

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
        ([a_wait(2, 1), a_wait(3, 2)], {1: [2, 3]}),  # a waiter is no root
        ([a_wait(3, 2), a_wait(2, 1)], {1: [2, 3]}),
        ([a_wait(2, 1), a_wait(3, 1, 2)], {1: [2, 3]}),  # soft blocks, ahead in the queue
        ([a_wait(4, 3), a_wait(3, 2), a_wait(2, 1)], {1: [2, 3, 4]}),
        ([a_wait(3, 1, 2)], {1: [3], 2: [3]}),  # two roots
        ([a_wait(3, 1, 2), a_wait(2, 4)], {1: [3], 4: [2, 3]}),  # one near, one far
        ([a_wait(3, 1, 1)], {1: [3]}),  # the server may name one twice
        ([a_wait(2)], {}),  # by the time it was asked, nobody was in the way
        ([a_wait(1, 2), a_wait(2, 1)], {}),  # a deadlock, which the server resolves itself
        ([a_wait(1, 2), a_wait(2, 1), a_wait(3, 1, 4)], {4: [3]}),
        ([a_wait(1, 1)], {}),
        ([a_wait(2, 0)], {0: [2]}),  # a prepared transaction: nobody's session
    ],
)
def test_whoever_waits_counts_for_the_root_of_its_chain(
    waits: list[Wait], roots: dict[int, list[int]]
) -> None:
    assert chains(*waits) == roots


def test_a_worker_that_waits_is_a_link_of_a_chain_but_no_waiter() -> None:
    autovacuum = a_wait(2, 1, is_session=False)
    assert chains(autovacuum) == {}
    assert chains(autovacuum, a_wait(3, 2)) == {1: [3]}


def test_processes_of_one_parallel_query_wait_as_one_session() -> None:
    workers = [a_wait(2, 1, seconds=5), a_wait(2, 3, seconds=9), a_wait(2, 1, seconds=7)]
    found = map_waiters_by_root(workers)
    assert {root: [(w.pid, w.seconds) for w in all_] for root, all_ in found.items()} == {
        1: [(2, 9)],
        3: [(2, 9)],
    }


def test_those_who_waited_longest_come_first() -> None:
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
        ((30, 29.9), {"blocks": 2, "blocks_for": "30s"}, LEAVE),  # two have, but one not so long
        ((31, 30), {"blocks": 2, "blocks_for": "30s"}, CONDEMN),
        ((31, 30, 1), {"blocks": 2, "blocks_for": "30s"}, CONDEMN),
        ((31, 30), {"blocks": 1, "blocks_for": "30s", "idle_for": "1h"}, LEAVE),
        ((), {"blocks_for": "0s"}, LEAVE),
    ],
)
def test_a_blocker_is_condemned_when_so_many_have_waited_so_long(
    waits: tuple[float, ...], match: dict[str, Any], verdict: Verdict
) -> None:
    assert verdict_on(a_blocker(*waits), **match) is verdict


def test_a_waiter_is_left_alone_whatever_it_holds() -> None:
    """It blocks others, too, but its waiters count for the root."""
    waiter = a_session(state="active", waiters=())
    policy = a_policy(a_rule(state=["active", "idle in transaction"], blocks_for="1s"))
    assert decide([waiter], some_slots(), policy).having(CONDEMN) == ()


def reason_of(session: Session, **match: object) -> str:
    policy = a_policy(a_rule("blockers", state="idle in transaction", **match))
    return decide([session], some_slots(), policy).decisions[0].reason


def test_the_reason_names_who_was_waiting() -> None:
    assert reason_of(a_blocker(65, 31), blocks=2, blocks_for="30s") == (
        "2 waiting on it (blocks: 2), waited for 31s (blocks_for: 30s),"
        " waiting: api-100 as app for 1m 5s; api-101 as app for 31s"
    )


def test_three_waiters_are_named_the_others_counted() -> None:
    three = "waiting: api-100 as app for 34s; api-101 as app for 33s; api-102 as app for 32s"
    assert reason_of(a_blocker(34, 33, 32), blocks_for="30s").endswith(three)
    assert reason_of(a_blocker(34, 33, 32, 31), blocks_for="30s").endswith(f"{three}; 1 more")
    assert reason_of(a_blocker(34, 33, 32, 31, 31), blocks_for="30s").endswith(f"{three}; 2 more")


def test_a_waiter_without_application_name_is_named_by_its_pid() -> None:
    session = a_session(waiters=(a_waiter(4712, 40, application="", role="etl"),))
    assert reason_of(session, blocks_for="30s").endswith("waiting: pid 4712 as etl for 40s")


def test_who_was_waiting_is_told_by_other_rules_too_if_it_is_known() -> None:
    assert "waiting: api-100 as app for 5s" in reason_of(a_blocker(5), idle_for="1m")
