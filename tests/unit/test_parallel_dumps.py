"""A parallel dump under a name of its own: recognised by the snapshot that its sessions share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Verdict
from session_reaper.decision.parallel_dumps import find_parallel_dumps
from session_reaper.sessions.session import State

from tests.builders import a_policy, a_rule, a_session, some_slots
from tests.visible import list_matched, select_visible

if TYPE_CHECKING:
    from session_reaper.policy.model import Policy, Rule
    from session_reaper.sessions.session import Session

# The last query of a session that reads large objects, up to 15, in 16, and from 17 on.
READ_LARGE_OBJECTS = (
    "FETCH 1000 IN bloboid",
    "FETCH 1000 IN looid",
    "select proname, oid from pg_catalog.pg_proc where proname in ('lo_open', 'lo_close'",
)
COPY = "COPY public.orders (id, note) TO stdout;"


def leader(**overrides: object) -> Session:
    """The session that exports the snapshot, 15 minutes ago."""
    values = {
        "pid": 1,
        "application": "nightly-backup",
        "state": "idle in transaction",
        "query": "SELECT pg_catalog.pg_export_snapshot()",
        "xmin_age": 4200,
        "connected_seconds": 906.0,
        "transaction_seconds": 905.0,
    }
    return a_session(**values | overrides)


def worker(**overrides: object) -> Session:
    """A session that copies a table, and began a second after the leader."""
    values = {
        "pid": 2,
        "application": "nightly-backup",
        "state": "active",
        "query": COPY,
        "xmin_age": 4200,
        "connected_seconds": 904.0,
        "transaction_seconds": 903.9,
        "idle_seconds": 1.0,
        "query_seconds": 1.0,
    }
    return a_session(**values | overrides)


def test_the_leader_and_its_workers_are_recognised() -> None:
    waiting = worker(pid=3, state="idle in transaction", idle_seconds=600.0)
    other = a_session(pid=9, application="nightly-backup")
    assert find_parallel_dumps([leader(), worker(), waiting, other]) == {1, 2, 3}
    assert find_parallel_dumps([other, waiting, worker(), leader()]) == {1, 2, 3}


@pytest.mark.parametrize(
    "difference",
    [
        {"role": "etl"},
        {"database": "billing"},
        {"application": "api"},
        {"client": "10.0.0.8"},
        {"client": None},
        {"xmin_age": 4201},
        {"xmin_age": None},
        {"xid_age": 1},
        {"query": "SELECT 1"},
        {"query": "copy_everything()"},
        {"query": "COPY public.orders (id, note) FROM stdin;"},
        {"state": "idle in transaction", "idle_seconds": 10.0},
        {"state": "idle in transaction (aborted)"},
        *(
            {"state": "idle in transaction", "idle_seconds": 10.0, "query": query}
            for query in READ_LARGE_OBJECTS
        ),
        *({"query": query} for query in READ_LARGE_OBJECTS),
        {"state": "idle in transaction", "query": "FETCH 1000 IN looids"},
        {"connected_seconds": 905.0},  # before the leader began its transaction
        {"connected_seconds": 4000.0},
    ],
    ids=str,
)
def test_a_session_that_differs_is_no_worker(difference: dict[str, Any]) -> None:
    assert find_parallel_dumps([leader(), worker(**difference)]) == frozenset()


@pytest.mark.parametrize(
    "difference",
    [
        {"state": "active"},
        {"state": "idle in transaction (aborted)"},
        {"xmin_age": None},
        {"xid_age": 0},
        {"transaction_seconds": None},
        {"transaction_seconds": 904.0},
    ],
    ids=str,
)
def test_a_session_that_differs_is_no_leader(difference: dict[str, Any]) -> None:
    assert find_parallel_dumps([leader(**difference), worker()]) == frozenset()


@pytest.mark.parametrize(
    "work",
    [
        {"query": "COPY (SELECT id FROM public.orders WHERE id > 7) TO STDOUT"},
        {"query": "COPY public.wide (column_1, column_2"},  # the server cut it
        {"query": "LOCK TABLE public.orders IN ACCESS SHARE MODE NOWAIT"},
        {"state": "idle in transaction", "idle_seconds": 9.9},  # between two tables
        {"state": "fastpath function call", "query": "SELECT 1"},  # a large object
        {"query": f"\n  {COPY.lower()}"},
        *({"state": "idle in transaction", "query": query} for query in READ_LARGE_OBJECTS),
    ],
    ids=str,
)
def test_a_worker_may_do_any_work_of_a_dump(work: dict[str, Any]) -> None:
    assert find_parallel_dumps([leader(), worker(**work)]) == {1, 2}


def test_two_dumps_at_once_are_recognised_both() -> None:
    younger = leader(pid=11, connected_seconds=300.0, transaction_seconds=299.0)
    its_worker = worker(pid=12, connected_seconds=298.0, transaction_seconds=297.0)
    sessions = [leader(), worker(), younger, its_worker]
    assert find_parallel_dumps(sessions) == {1, 2, 11, 12}


def test_a_leak_of_an_older_connection_in_the_same_snapshot_is_not_recognised() -> None:
    leak = leader(pid=9, connected_seconds=4000.0, transaction_seconds=800.0)
    assert find_parallel_dumps([leader(), worker(), leak]) == {1, 2}


def test_an_older_leak_in_the_same_snapshot_does_not_hide_the_leader() -> None:
    """A pooler had opened the leader's connection before."""
    pooled = leader(connected_seconds=4000.0, transaction_seconds=300.0)
    its_worker = worker(connected_seconds=298.0, transaction_seconds=297.0)
    leak = leader(pid=9, connected_seconds=5000.0, transaction_seconds=905.0)
    assert find_parallel_dumps([pooled, its_worker]) == {1, 2}
    assert find_parallel_dumps([pooled, its_worker, leak]) == {1, 2, 9}


def test_a_dump_without_a_worker_is_not_recognised() -> None:
    assert find_parallel_dumps([leader()]) == frozenset()
    assert find_parallel_dumps([worker()]) == frozenset()
    assert find_parallel_dumps([worker(), worker(pid=3)]) == frozenset()
    assert find_parallel_dumps([]) == frozenset()


def test_no_rule_matches_a_parallel_dump() -> None:
    policy = a_policy(a_rule(state=list(State), connected_for="1s"))
    decided = decide([leader(), worker(), a_session(pid=9)], some_slots(), policy)
    verdicts = {decision.pid: decision.verdict for decision in decided.decisions}
    assert verdicts == {1: Verdict.LEAVE, 2: Verdict.LEAVE, 9: Verdict.CONDEMN}
    reasons = {decision.pid: decision.reason for decision in decided.decisions}
    assert reasons[1] == reasons[2] == "protected: a parallel dump (built in)"


def test_a_dump_is_recognised_by_sessions_that_are_not_decided() -> None:
    policy = a_policy(a_rule(state=list(State), connected_for="1s"))
    for among, verdict in (([leader()], Verdict.CONDEMN), ([leader(), worker()], Verdict.LEAVE)):
        (decision,) = decide([leader()], some_slots(), policy, among=among).decisions
        assert decision.verdict is verdict


def test_a_dump_of_a_dropped_role_is_recognised() -> None:
    assert find_parallel_dumps([leader(role=None), worker(role=None)]) == {1, 2}
    assert find_parallel_dumps([leader(role=None), worker()]) == frozenset()


def test_a_literal_role_does_not_lift_the_protection_of_a_parallel_dump() -> None:
    policy = a_policy(a_rule(state=list(State), connected_for="1s", role=["copier"]))
    sessions = [each(role="copier", replication=True) for each in (leader, worker)]
    other = a_session(pid=9, role="copier", replication=True)
    decided = decide([*sessions, other], some_slots(), policy)
    verdicts = {decision.pid: decision.verdict for decision in decided.decisions}
    assert verdicts == {1: Verdict.LEAVE, 2: Verdict.LEAVE, 9: Verdict.CONDEMN}
    protections = [decision.protection for decision in decided.decisions if decision.protection]
    assert [protection.by for protection in protections] == ["built in: pg_dump"] * 2


def test_a_protection_by_name_is_named_first() -> None:
    policy = a_policy(protect={"roles": ["app"]})
    decided = decide([leader(), worker()], some_slots(), policy)
    assert {each.reason for each in decided.decisions} == {"protected: role app"}


# -- properties ------------------------------------------------------------------------------------

AGES = st.sampled_from([1.0, 100.0, 200.0, 300.0, 400.0])


@st.composite
def sessions_with_pid(draw: st.DrawFn, pid: int) -> Session:
    """A session of the snapshot; a transaction is never older than its connection."""
    idle, transaction, connected = sorted(draw(AGES) for _ in range(3))
    return leader(
        pid=pid,
        state=draw(st.sampled_from(["active", "idle in transaction"])),
        query=draw(st.sampled_from([COPY, "SELECT 1"])),
        idle_seconds=idle,
        query_seconds=draw(AGES),
        transaction_seconds=transaction,
        connected_seconds=connected,
    )


@st.composite
def sessions_of_one_snapshot(draw: st.DrawFn) -> list[Session]:
    """Sessions that differ only in the values that distinguish a dump from leaks."""
    return [draw(sessions_with_pid(pid)) for pid in range(1, draw(st.integers(2, 5)) + 1)]


@st.composite
def rules_on_time(draw: st.DrawFn) -> Rule:
    state = draw(st.sampled_from(["active", "idle in transaction", "idle"]))
    clock = draw(st.sampled_from(["idle_for", "query_for"])) if state == "active" else "idle_for"
    document = {"name": "r", "match": {"state": [state], clock: f"{draw(AGES):g}s"}}
    return a_policy(document).rules[0]


POLICIES = st.lists(rules_on_time(), min_size=1, max_size=3).map(
    lambda rules: replace(
        a_policy(), rules=tuple(replace(rule, name=f"r{n}") for n, rule in enumerate(rules))
    )
)
MANY = settings(max_examples=20 * settings().max_examples)


@MANY
@given(sessions_of_one_snapshot(), st.data())
def test_more_sessions_never_end_the_protection_of_a_dump(
    sessions: list[Session], data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.sampled_from(sessions), unique_by=id))
    assert find_parallel_dumps(some) <= find_parallel_dumps(sessions)


@MANY
@given(sessions_of_one_snapshot(), POLICIES)
def test_the_snapshot_has_all_that_shows_a_dump(sessions: list[Session], policy: Policy) -> None:
    whole, part = (
        decide(each, some_slots(), policy) for each in (sessions, select_visible(sessions, policy))
    )
    assert list_matched(part) == list_matched(whole)


class CountedSeconds(float):
    """Counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: float) -> bool:
        CountedSeconds.comparisons += 1
        return float(self) < other


def test_thousands_of_sessions_with_one_snapshot_are_compared_once_each() -> None:
    number = 500
    workers = [worker(pid=n, connected_seconds=CountedSeconds(2000.0)) for n in range(number)]
    idle = [leader(pid=number + n) for n in range(number)]
    assert find_parallel_dumps([*workers, *idle]) == frozenset()
    assert CountedSeconds.comparisons <= 4 * number
