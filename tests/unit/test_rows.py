"""Answers that are small on the wire and large, or slow, in the reaper."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.errors import TargetError
from session_reaper.postgres.rows import memory_of, read_grants, read_signal, read_snapshot

if TYPE_CHECKING:
    from session_reaper.postgres.driver import Row

from tests.hang_guard import fail_after

SNAPSHOT: dict[str, Any] = {
    "role": "session_reaper",
    "pid": 1,
    "started": 1,
    "checkpointer": 2,
    "checkpointer_started": 1,
    "taken_at": 2,
    "server_version": 180000,
    "inherits": True,
    "reader": False,
    "max": 100,
    "reserved": 3,
    "used": 5,
    "can_see": True,
    "can_signal": True,
    "untracked": 0,
    "states": None,
    "oldest_idle_in_transaction": 0,
    "sessions": [],
    "lock_waiters": None,
    "waits": None,
}


def read(**changes: object) -> object:
    return read_snapshot([json.dumps(SNAPSHOT | changes).encode()], ours=(), backend_pid=1)


def chain(links: int) -> list[list[object]]:
    return [[pid, True, "app", "api", 1.5, [pid - 1]] for pid in range(2, links + 2)]


def test_a_chain_of_waiters_longer_than_any_server_has_is_walked_to_its_end() -> None:
    """One second's work; it would be hours' if each waiter looked at all the others."""
    with fail_after(60):
        read(waits=chain(100_000))


def test_a_graph_of_waiters_that_would_take_seconds_is_invalid() -> None:
    many = [[pid, True, "app", "api", 1.5, [*range(10_000, 13_000)]] for pid in range(1, 100)]
    with pytest.raises(TargetError, match="waits"):
        read(waits=many)


@pytest.mark.parametrize("filler", [{}, [], 1, "x"], ids=["objects", "lists", "numbers", "texts"])
def test_an_answer_of_more_values_than_any_server_has_is_not_made(filler: object) -> None:
    with pytest.raises(TargetError, match="its size"):
        read(junk=[filler] * 1_500_000)


def test_commas_in_queries_are_no_values() -> None:
    read(junk=["," * 1000 + '"[{' * 100] * 1500)


def missing(**changes: object) -> Row:
    answer = {"missing_functions": None, "missing_relations": None} | changes
    return [json.dumps(answer).encode()]


def test_grants_are_written_for_what_is_used_here_and_for_our_own_role() -> None:
    functions = [["pg_terminate_backend", "integer, bigint"]]
    row = missing(missing_functions=functions, missing_relations=["pg_roles"])
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
def test_nothing_else_passes_for_a_grant(changes: dict[str, object]) -> None:
    with pytest.raises(TargetError, match="missing_"):
        read_grants(missing(**changes), "session_reaper")


MOMENT = "2026-01-15T08:00:00.000001+00:00"
ROW = [1, MOMENT, None, MOMENT, MOMENT, "idle", "app", "db", "api", None, "x", None, None]
ROW += [1, None, 1, None, False, None, None, None, False, False, False, True, None, None]


def test_a_session_waits_for_a_lock_if_it_leads_a_process_that_does() -> None:
    rows = [[*ROW[:-2], "Client", "ClientRead"], [2, *ROW[1:]]]
    look = read_snapshot(
        [json.dumps(SNAPSHOT | {"sessions": rows, "lock_waiters": [2, 2, 99]}).encode()],
        ours=(),
        backend_pid=1,
    )
    first, second = look.sessions
    assert (first.wait_event_type, first.wait_event) == ("Client", "ClientRead")
    assert (first.waits_for_lock, second.waits_for_lock) == (False, True)
    assert (second.wait_event_type, second.wait_event) == (None, None)
    wrong: object
    for wrong in ([0], ["1"], [None], 1, {}, [2**31]):
        with pytest.raises(TargetError, match="lock_waiters"):
            read(lock_waiters=wrong, sessions=[ROW])
    with pytest.raises(TargetError, match="sessions: wait_event"):
        read(sessions=[[*ROW[:-1], "x" * 256]])


@pytest.mark.parametrize(
    ("answer", "signal"), [(b"t", "t"), (b"f", "f"), (b"waits", "waits"), (None, None)]
)
def test_reads_what_became_of_a_signal(answer: bytes | None, signal: str | None) -> None:
    assert read_signal([answer]) == signal
    wrong: list[Row] = [[], [b"true"], [b""], [answer, answer]]
    for row in wrong:
        with pytest.raises(TargetError, match="signalled"):
            read_signal(row)


def test_a_session_that_is_there_twice_is_invalid() -> None:
    read(sessions=[ROW, [2, *ROW[1:]]])
    with pytest.raises(TargetError, match="sessions: pid"):
        read(sessions=[ROW, ROW])


@pytest.mark.parametrize(
    ("number", "used", "most", "place"),
    [(6, 5, 100, "sessions"), (20_001, 30_000, 30_000, "sessions"), (1, 201, 100, "used")],
)
def test_more_sessions_than_the_server_itself_counts_or_allows_are_invalid(
    number: int, used: int, most: int, place: str
) -> None:
    sessions = [[pid, *ROW[1:]] for pid in range(1, number + 1)]
    with pytest.raises(TargetError, match=f"invalid value at {place}$"):
        read(sessions=sessions, used=used, max=most)


def test_more_states_than_the_server_itself_counts_are_invalid() -> None:
    with pytest.raises(TargetError, match=r"invalid value at states$"):
        read(states=["idle"] * 6)


def test_a_server_may_show_a_few_more_backends_than_it_allows() -> None:
    """One that ends and one that begins may both be there while the server reads its list."""
    read(sessions=[[pid, *ROW[1:]] for pid in range(1, 106)], used=105, states=["idle"] * 105)


def test_a_text_that_does_not_end_is_refused_without_reading_it_again_and_again() -> None:
    with fail_after(60), pytest.raises(TargetError, match="its JSON"):
        read_snapshot([b'{"a":"' + rb"\"" * 4_800_000], ours=(), backend_pid=1)


def test_what_was_read_is_not_kept_in_the_row() -> None:
    row: Row = [json.dumps(SNAPSHOT).encode()]
    read_snapshot(row, ours=(), backend_pid=1)
    assert row == []


def test_more_waiters_than_fit_into_memory_are_invalid() -> None:
    roots = [*range(1, 1001)]
    waits = [[5000, True, "app", "api", 9.5, roots]]
    waits += [[pid, True, "app", "api", 9.5, [5000]] for pid in range(5001, 8001)]
    with pytest.raises(TargetError, match="waits"):
        read(waits=waits)
    read(waits=waits[:1400])


def test_the_memory_of_a_snapshot_counts_its_queries_and_waiters() -> None:
    rows = [[pid, *ROW[1:10], "x" * 2000, *ROW[11:]] for pid in range(1, 5)]
    waits = [[pid, True, "app", "api", 0.5, [1]] for pid in range(5, 105)]
    look = read_snapshot(
        [json.dumps(SNAPSHOT | {"sessions": rows, "waits": waits}).encode()],
        ours=(),
        backend_pid=1,
    )
    assert 4 * 2000 + 100 * 64 < memory_of(look) < 4 * 4000 + 100 * 200
