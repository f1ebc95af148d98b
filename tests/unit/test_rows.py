"""A server's answers are validated at every place, and read in bounded time and memory."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
from session_reaper.errors import TargetError
from session_reaper.postgres.rows import (
    memory_of,
    read_facts,
    read_grants,
    read_snapshot,
    read_verification,
)

from tests.answers import (
    BAD_VALUES,
    EMPTY_SNAPSHOT,
    FACTS,
    IDLE_ROW,
    SNAPSHOT,
    VERIFICATION,
    is_allowed,
    list_places,
    replace_at,
)
from tests.hang_guard import fail_after

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_reaper.postgres.driver import Row

READERS: dict[str, Callable[[Row], object]] = {
    "snapshot": partial(read_snapshot, ours=(), backend_pid=1),
    "verification": read_verification,
    "facts": partial(read_facts, tls=None),
}
ANSWERS = {"snapshot": SNAPSHOT, "verification": VERIFICATION, "facts": FACTS}


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
        [json.dumps({**EMPTY_SNAPSHOT, **changes}).encode()], ours=(), backend_pid=1
    )


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
def test_an_answer_of_more_values_than_any_server_has_is_not_parsed(filler: object) -> None:
    with pytest.raises(TargetError, match="its size"):
        read(junk=[filler] * 1_500_000)


def test_commas_in_queries_do_not_count_as_values() -> None:
    read(junk=["," * 1000 + '"[{' * 100] * 1500)


def missing(**changes: object) -> Row:
    answer = {"missing_functions": None, "missing_relations": None} | changes
    return [json.dumps(answer).encode()]


def test_missing_grants_are_written_for_used_objects_and_our_own_role() -> None:
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
def test_anything_else_in_a_list_of_grants_is_invalid(changes: dict[str, object]) -> None:
    with pytest.raises(TargetError, match="missing_"):
        read_grants(missing(**changes), "session_reaper")


def test_a_session_listed_twice_is_invalid() -> None:
    read(sessions=[IDLE_ROW, [2, *IDLE_ROW[1:]]])
    with pytest.raises(TargetError, match="sessions: pid"):
        read(sessions=[IDLE_ROW, IDLE_ROW])


@pytest.mark.parametrize(
    ("number", "used", "most", "place"),
    [(6, 5, 100, "sessions"), (20_001, 30_000, 30_000, "sessions"), (1, 201, 100, "used")],
)
def test_more_sessions_than_the_server_itself_counts_or_allows_are_invalid(
    number: int, used: int, most: int, place: str
) -> None:
    sessions = [[pid, *IDLE_ROW[1:]] for pid in range(1, number + 1)]
    with pytest.raises(TargetError, match=f"invalid value at {place}$"):
        read(sessions=sessions, used=used, max=most)


def test_more_states_than_the_server_itself_counts_are_invalid() -> None:
    with pytest.raises(TargetError, match=r"invalid value at states$"):
        read(states=["idle"] * 6)


def test_a_server_may_show_a_few_more_backends_than_it_allows() -> None:
    """One that ends and one that begins may both be there while the server reads its list."""
    read(sessions=[[pid, *IDLE_ROW[1:]] for pid in range(1, 106)], used=105, states=["idle"] * 105)


def test_an_unterminated_string_is_invalid_after_a_single_pass() -> None:
    with fail_after(60), pytest.raises(TargetError, match="its JSON"):
        read_snapshot([b'{"a":"' + rb"\"" * 4_800_000], ours=(), backend_pid=1)


def test_a_row_is_emptied_when_it_is_read() -> None:
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
    rows = [[pid, *IDLE_ROW[1:10], "x" * 2000, *IDLE_ROW[11:]] for pid in range(1, 5)]
    waits = [[pid, True, "app", "api", 0.5, [1]] for pid in range(5, 105)]
    look = read_snapshot(
        [json.dumps({**EMPTY_SNAPSHOT, "sessions": rows, "waits": waits}).encode()],
        ours=(),
        backend_pid=1,
    )
    assert 4 * 2000 + 100 * 64 < memory_of(look) < 4 * 4000 + 100 * 200
