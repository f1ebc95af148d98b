"""Conditions on the harm that a session does, and the order of termination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Verdict
from session_reaper.sessions.lock_chains import Waiter

from tests.builders import a_policy, a_rule, a_session, some_slots

if TYPE_CHECKING:
    from session_reaper.sessions.session import Session

LEAVE, CONDEMN = Verdict.LEAVE, Verdict.CONDEMN


def verdict_on(session: Session, **match: object) -> Verdict:
    conditions = {"state": "idle in transaction", "idle_for": "1ms"} | match
    return decide([session], some_slots(), a_policy(a_rule("r", **conditions))).decisions[0].verdict


def reason_of(session: Session, **match: object) -> str:
    conditions = {"state": "idle in transaction", "idle_for": "1ms"} | match
    return decide([session], some_slots(), a_policy(a_rule("r", **conditions))).decisions[0].reason


HELD: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set()),
    ({"xid_age": 0}, {"xid"}),
    ({"xid_age": 7}, {"xid"}),
    ({"xmin_age": 0}, {"xmin"}),
    ({"locks": 0}, set()),
    ({"locks": 1}, {"locks"}),
    ({"xid_age": 1, "xmin_age": 1, "locks": 3}, {"xid", "xmin", "locks"}),
]


@pytest.mark.parametrize(("session", "held"), HELD)
@pytest.mark.parametrize(
    "holds", [["xid"], ["xmin"], ["locks"], ["xid", "xmin"], ["xmin", "locks"]]
)
def test_holds_matches_a_session_that_holds_one_of_the_resources(
    session: dict[str, Any], held: set[str], holds: list[str]
) -> None:
    """A writer has an xid but no xmin, a repeatable reader an xmin but no xid, a reader locks."""
    wanted = CONDEMN if held & set(holds) else LEAVE
    assert verdict_on(a_session(**session), holds=holds) is wanted


def test_the_reason_names_the_resources_held() -> None:
    session = a_session(xid_age=1, locks=2)
    assert reason_of(session, holds=["xmin", "locks", "xid"]).endswith(
        ", holds locks, xid (holds: xmin, locks, xid)"
    )


@pytest.mark.parametrize(
    ("ages", "verdict"),
    [
        ({}, LEAVE),
        ({"xid_age": 999_999}, LEAVE),
        ({"xid_age": 1_000_000}, CONDEMN),
        ({"xmin_age": 1_000_000}, CONDEMN),
        ({"xid_age": 5, "xmin_age": 1_000_000}, CONDEMN),
        ({"xid_age": 1_000_000, "xmin_age": 5}, CONDEMN),
    ],
)
def test_the_older_of_xid_and_xmin_holds_vacuum_back(
    ages: dict[str, int], verdict: Verdict
) -> None:
    assert verdict_on(a_session(**ages), pins_vacuum_by=1_000_000) is verdict


def test_the_reason_says_by_how_much_vacuum_is_held_back() -> None:
    assert reason_of(a_session(xmin_age=1_234_567), pins_vacuum_by=1_000_000).endswith(
        ", holds vacuum back by 1,234,567 transactions (pins_vacuum_by: 1,000,000)"
    )


# -- wedged -----------------------------------------------------------------------------------------


def a_wedged_session(**overrides: object) -> Session:
    session = {"state": "active", "query_seconds": 901.0, "waiting_for_client": True}
    return a_session(**{**session, "query": "UPDATE orders SET paid = $1"} | overrides)


def decide_wedged(session: Session, *, waiting: bool = True) -> Verdict:
    rule = a_rule("wedged", state="active", query_for="15m", waiting_for_client=waiting)
    return decide([session], some_slots(), a_policy(rule)).decisions[0].verdict


def test_waiting_for_client_separates_wedged_sessions_from_working_ones() -> None:
    works = a_wedged_session(waiting_for_client=False)
    assert decide_wedged(a_wedged_session()) is CONDEMN
    assert decide_wedged(works) is LEAVE
    assert decide_wedged(a_wedged_session(), waiting=False) is LEAVE
    assert decide_wedged(works, waiting=False) is CONDEMN
    assert decide_wedged(a_wedged_session(query_seconds=899.9)) is LEAVE


@pytest.mark.parametrize(
    ("query", "verdict"),
    [
        ("COPY orders FROM STDIN", LEAVE),
        ("copy orders (id) from stdin with (format csv)", LEAVE),
        ("/* load */ Copy\n orders FROM STDIN", LEAVE),
        ("BEGIN; COPY orders FROM STDIN; COMMIT", LEAVE),
        ("SELECT copy FROM books", LEAVE),  # unclear, so it is left alone
        ("TABLE orders; " * 40 + "COPY orders FROM STDIN", LEAVE),
        (r"SELECT 'C:\'; COPY orders FROM STDIN", LEAVE),  # the end of the literal is unclear
        ("SELECT * FROM copyright", CONDEMN),
        ("SELECT * FROM audit WHERE action = 'copy'", CONDEMN),
        ("/* route: copy */ SELECT 1", CONDEMN),
        ("TABLE orders; " * 40 + "SELECT 'copy'", CONDEMN),
        ("SELECT photocopy FROM books", CONDEMN),
        ("SELECT a_copy FROM books", CONDEMN),
    ],
)
def test_a_copy_that_waits_for_rows_is_not_wedged(query: str, verdict: Verdict) -> None:
    assert decide_wedged(a_wedged_session(query=query)) is verdict


def test_the_reason_says_that_it_waits_for_its_client() -> None:
    rule = a_rule("wedged", state="active", query_for="15m", waiting_for_client=True)
    decision = decide([a_wedged_session()], some_slots(), a_policy(rule)).decisions[0]
    assert decision.reason == (
        "query running for 15m 1s (query_for: 15m), waits for its client (waiting_for_client: true)"
    )


def test_the_reason_says_that_the_query_is_to_be_cancelled() -> None:
    rule = a_rule("slow", state="active", query_for="15m") | {"action": "cancel"}
    decision = decide([a_wedged_session()], some_slots(), a_policy(rule)).decisions[0]
    assert decision.reason == "query running for 15m 1s (query_for: 15m), to be cancelled"


# -- order ----------------------------------------------------------------------------------------


def some_waiters(number: int) -> tuple[Waiter, ...]:
    return tuple(Waiter(pid=n, role="app", application="", seconds=1) for n in range(number))


def order_of(order: str | None, *sessions: Session) -> list[int]:
    limits = {"order": order} if order else {}
    decided = decide(sessions, some_slots(), a_policy(limits=limits))
    return [decision.pid for decision in decided.having(CONDEMN)]


@pytest.mark.parametrize(
    ("order", "pids"),
    [(None, [2, 3, 1]), ("longest", [2, 3, 1]), ("newest", [1, 3, 2])],
)
def test_sessions_are_signalled_in_the_order_of_the_policy(
    order: str | None, pids: list[int]
) -> None:
    ages = {1: 400, 2: 900, 3: 500}
    sessions = [a_session(pid=pid, idle_seconds=age) for pid, age in ages.items()]
    assert order_of(order, *sessions) == pids


@pytest.mark.parametrize("order", ["longest", "newest", "most_harmful"])
def test_equal_sessions_are_ordered_by_pid(order: str) -> None:
    assert order_of(order, *(a_session(pid=pid) for pid in (3, 1, 2))) == [1, 2, 3]


def test_most_harmful_compares_waiters_then_snapshot_age_then_locks() -> None:
    sessions = [
        a_session(pid=1, idle_seconds=400),
        a_session(pid=2, idle_seconds=500),
        a_session(pid=3, locks=1, idle_seconds=350),
        a_session(pid=4, locks=9),
        a_session(pid=5, xid_age=10, locks=99),
        a_session(pid=6, xmin_age=11),
        a_session(pid=7, waiters=some_waiters(1), locks=0),
        a_session(pid=8, waiters=some_waiters(2)),
    ]
    assert order_of("most_harmful", *sessions) == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_limit_keeps_the_first_sessions_in_order() -> None:
    policy = a_policy(limits={"order": "newest", "max_terminations": 1})
    sessions = [a_session(pid=1, idle_seconds=900), a_session(pid=2, idle_seconds=301)]
    decided = decide(sessions, some_slots(), policy)
    assert [d.pid for d in decided.having(CONDEMN)] == [2]
