"""Invalid answers, and answers that would take much memory or time to read."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
from session_reaper.errors import TargetError
from session_reaper.postgres.rows import (
    estimate_memory,
    read_facts,
    read_grants,
    read_holders,
    read_signal,
    read_snapshot,
    read_verification,
)
from session_reaper.postgres.signals import Signal
from session_reaper.sessions.session import Slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_reaper.postgres.driver import Row

from tests.answers import (
    BAD_VALUES,
    EMPTY_SNAPSHOT,
    FACTS,
    HOLDERS,
    SNAPSHOT,
    VERIFICATION,
    is_allowed,
    list_places,
    replace_at,
    session_row,
)
from tests.hang_guard import fail_after

SLOTS = Slots(max=100, reserved=3, used=80)

READERS: dict[str, Callable[[Row], object]] = {
    "snapshot": partial(read_snapshot, own_roles=(), backend_pid=1),
    "holders": partial(read_holders, slots=SLOTS),
    "verification": read_verification,
    "facts": partial(read_facts, tls=None),
}
ANSWERS = {
    "snapshot": SNAPSHOT,
    "holders": HOLDERS,
    "verification": VERIFICATION,
    "facts": FACTS,
}


@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("kind", READERS)
def test_every_place_of_an_answer_is_validated(kind: str, name: str) -> None:
    read, answer = READERS[kind], ANSWERS[kind]
    read([json.dumps(answer).encode()])
    for place in list_places(answer):
        row: Row = [replace_at(answer, place, BAD_VALUES[name])]
        if is_allowed(kind, place, name):
            read(row)
            continue
        with pytest.raises(TargetError) as raised:
            read(row)
        assert raised.value.code == "answer", place
        is_unreadable = "JSON" in str(raised.value)
        assert is_unreadable or str(place[0]) in str(raised.value), (place, raised.value)


@pytest.mark.parametrize("kind", READERS)
def test_an_answer_without_one_of_its_keys_is_invalid(kind: str) -> None:
    read, answer = READERS[kind], ANSWERS[kind]
    for key in answer:
        row: Row = [json.dumps({k: v for k, v in answer.items() if k != key}).encode()]
        with pytest.raises(TargetError, match=rf"\b{key}\b"):
            read(row)


def read(**changes: object) -> object:
    return read_snapshot(
        [json.dumps({**EMPTY_SNAPSHOT, **changes}).encode()], own_roles=(), backend_pid=1
    )


def chain(links: int) -> list[list[object]]:
    return [[pid, True, "app", "api", 1.5, [pid - 1]] for pid in range(2, links + 2)]


@pytest.mark.thorough
def test_a_chain_of_100_000_waiters_is_read_in_time() -> None:
    """It takes a second; comparing each waiter with all the others would take hours."""
    with fail_after(60):
        read(waits=chain(100_000))


def test_lock_waits_that_were_not_requested_are_refused() -> None:
    answer = json.dumps({**EMPTY_SNAPSHOT, "waits": chain(1)}).encode()
    read_snapshot([answer], own_roles=(), backend_pid=1)
    with pytest.raises(TargetError, match=r"invalid value at waits$"):
        read_snapshot([answer], own_roles=(), backend_pid=1, has_waits=False)


def test_a_thousand_readers_that_block_one_queue_are_valid() -> None:
    """Every reader blocks the first of the queue, so the search is done once for all of them."""
    readers = range(10_000, 11_000)
    queue = [[pid, True, "app", "api", 1.5, [2]] for pid in range(3, 1003)]
    read(waits=[[2, True, "app", "api", 1.5, [*readers]], *queue])


def test_many_blockers_of_different_sessions_in_one_chain_are_refused() -> None:
    """60 KB of this took a second of processor time that no deadline interrupts."""
    many = [[pid, True, "app", "api", 1.5, [pid + 1, pid + 10_000]] for pid in range(2, 1_900)]
    with pytest.raises(TargetError, match=r"invalid value at waits$"):
        read(waits=many)


@pytest.mark.parametrize("filler", [{}, [], 1, "x"], ids=["objects", "lists", "numbers", "texts"])
def test_an_answer_with_too_many_values_is_refused_before_decoding(filler: object) -> None:
    with pytest.raises(TargetError, match="its size"):
        read(junk=[filler] * 1_500_000)


def test_commas_in_queries_do_not_count_as_values() -> None:
    read(junk=["," * 1000 + '"[{' * 100] * 1500)


def make_row_missing(**changes: object) -> Row:
    answer = {"missing_functions": None, "missing_relations": None} | changes
    return [json.dumps(answer).encode()]


def test_grants_name_the_used_functions_and_relations_and_our_role() -> None:
    functions = [["pg_terminate_backend", "integer, bigint"]]
    row = make_row_missing(missing_functions=functions, missing_relations=["pg_roles"])
    assert read_grants(row, 'a"b') == (
        'GRANT EXECUTE ON FUNCTION pg_catalog.pg_terminate_backend(integer, bigint) TO "a""b";',
        'GRANT SELECT ON pg_catalog.pg_roles TO "a""b";',
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"missing_relations": ["pg_authid"]},
        {"missing_relations": ["pg_class TO x \\! touch /tmp/pwned #"]},
        {"missing_functions": [["pg_read_file", "text"]]},
        {"missing_functions": [["age", "xid) TO PUBLIC; \\! sh"]]},
        {"missing_functions": [["age", None]]},
        {"missing_functions": ["age"]},
        {"missing_relations": [["pg_roles"]]},
    ],
)
def test_a_grant_on_anything_else_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TargetError, match="missing_"):
        read_grants(make_row_missing(**changes), "session_reaper")


def test_a_session_waits_for_a_lock_if_it_leads_a_process_that_does() -> None:
    rows = [
        session_row(wait_event_type="Client", wait_event="ClientRead"),
        session_row(pid=2),
    ]
    answer = {**EMPTY_SNAPSHOT, "sessions": rows, "lock_waiters": [2, 2, 99]}
    first, second = read_snapshot(
        [json.dumps(answer).encode()], own_roles=(), backend_pid=1
    ).sessions
    assert (first.wait_event_type, first.wait_event) == ("Client", "ClientRead")
    assert (first.waits_for_lock, second.waits_for_lock) == (False, True)
    assert (second.wait_event_type, second.wait_event) == (None, None)


@pytest.mark.parametrize("pids", [[0], ["1"], [None], 1, {}, [2**31]])
def test_an_invalid_list_of_lock_waiters_is_refused(pids: object) -> None:
    with pytest.raises(TargetError, match="lock_waiters"):
        read(lock_waiters=pids, sessions=[session_row()])


@pytest.mark.parametrize(
    ("answer", "signal"),
    [
        (b"t", Signal.SENT),
        (b"f", Signal.ESCAPED),
        (b"waits", Signal.WAITING),
        (None, Signal.HIDDEN),
    ],
)
def test_the_answer_to_a_signal_is_validated(answer: bytes | None, signal: Signal) -> None:
    assert read_signal([answer]) is signal
    invalid: list[Row] = [[], [b"true"], [b""], [answer, answer]]
    for row in invalid:
        with pytest.raises(TargetError, match="signalled"):
            read_signal(row)


@pytest.mark.parametrize(
    ("invalid", "column"),
    [
        ({"wait_event": 1}, "wait_event"),
        ({"wait_event": 1, "client": "x"}, "client"),
        ({"superuser": 1, "locks": -1}, "locks"),
        ({"query_start": "now", "state": None}, "query_start"),
        ({"backend_start": None, "query_start": "now", "state": None}, "backend_start"),
    ],
)
def test_the_first_column_with_an_invalid_value_is_named(
    invalid: dict[str, object], column: str
) -> None:
    with pytest.raises(TargetError, match=f"sessions: {column} *$"):
        read(sessions=[session_row(), session_row(pid=2, **invalid)])


def test_a_duplicate_session_is_refused() -> None:
    read(sessions=[session_row(), session_row(pid=2)])
    with pytest.raises(TargetError, match="sessions: pid"):
        read(sessions=[session_row(), session_row()])


@pytest.mark.parametrize(
    ("number", "used", "most", "place"),
    [(6, 5, 100, "sessions"), (20_001, 30_000, 30_000, "sessions"), (1, 201, 100, "used")],
)
def test_more_sessions_than_the_server_counts_or_allows_are_refused(
    number: int, used: int, most: int, place: str
) -> None:
    sessions = [session_row(pid=pid) for pid in range(1, number + 1)]
    with pytest.raises(TargetError, match=f"invalid value at {place}$"):
        read(sessions=sessions, used=used, max=most)


def test_more_states_than_the_server_counts_are_refused() -> None:
    with pytest.raises(TargetError, match=r"invalid value at states$"):
        read(states=["idle"] * 6)


def test_a_server_may_show_a_few_more_backends_than_it_allows() -> None:
    """While the server reads its list, a backend may end and its successor may begin."""
    read(sessions=[session_row(pid=pid) for pid in range(1, 106)], used=105, states=["idle"] * 105)


def test_an_unterminated_string_is_refused_in_linear_time() -> None:
    with fail_after(60), pytest.raises(TargetError, match="its JSON"):
        read_snapshot([b'{"a":"' + rb"\"" * 4_800_000], own_roles=(), backend_pid=1)


@pytest.mark.parametrize(("number", "is_accepted"), [(81, True), (5000, False)])
def test_holders_may_have_grown_since_the_snapshot(number: int, *, is_accepted: bool) -> None:
    group = ["api", "app", None, "idle", number, 7.5, False, False, False]
    row: Row = [json.dumps({"holders": [group]}).encode()]
    if is_accepted:
        assert [holder.count for holder in read_holders(row, SLOTS)] == [number]
    else:
        with pytest.raises(TargetError, match=r"list of holders has an invalid value at holders$"):
            read_holders(row, SLOTS)


def test_reading_a_snapshot_empties_the_row() -> None:
    row: Row = [json.dumps(SNAPSHOT).encode()]
    read_snapshot(row, own_roles=(), backend_pid=1)
    assert row == []


def test_more_waiters_than_fit_into_memory_are_refused() -> None:
    roots = [*range(1, 1001)]
    waits = [[5000, True, "app", "api", 9.5, roots]]
    waits += [[pid, True, "app", "api", 9.5, [5000]] for pid in range(5001, 8001)]
    with pytest.raises(TargetError, match="waits"):
        read(waits=waits)
    read(waits=waits[:1400])


def test_the_blockers_of_one_queue_share_its_waiters() -> None:
    """A thousand sessions that block a thousand others would else take a million objects."""
    rows = [session_row(pid=pid, idle_seconds=1.0) for pid in range(1, 5)]
    waits = [[5, True, "app", "api", 9.5, [1, 2, 3, 4]], [6, True, "app", "api", 9.5, [5]]]
    snapshot = read_snapshot(
        [json.dumps({**EMPTY_SNAPSHOT, "sessions": rows, "waits": waits}).encode()],
        own_roles=(),
        backend_pid=1,
    )
    first, *others = (session.waiters for session in snapshot.sessions)
    assert [waiter.pid for waiter in first] == [5, 6]
    assert all(waiters is first for waiters in others)


def test_the_memory_estimate_counts_queries_and_waiters() -> None:
    rows = [session_row(pid=pid, query="x" * 2000) for pid in range(1, 5)]
    waits = [[pid, True, "app", "api", 0.5, [1]] for pid in range(5, 105)]
    snapshot = read_snapshot(
        [json.dumps({**EMPTY_SNAPSHOT, "sessions": rows, "waits": waits}).encode()],
        own_roles=(),
        backend_pid=1,
    )
    memory = sum(map(estimate_memory, snapshot.sessions))
    assert 4 * 2000 + 100 * 64 < memory < 4 * 4000 + 100 * 200
