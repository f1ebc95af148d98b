"""A server's answers are validated at every place, and read in bounded time and memory."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
from session_reaper.errors import TargetError
from session_reaper.postgres.rows import read_facts, read_grants, read_snapshot, read_verification

from tests.answers import (
    BAD_VALUES,
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

READERS: dict[str, Callable[[list[bytes]], object]] = {
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
        row = [replace_at(answer, place, BAD_VALUES[name])]
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
        row = [json.dumps({k: v for k, v in answer.items() if k != key}).encode()]
        with pytest.raises(TargetError, match=rf"\b{key}\b"):
            read(row)


def read(**changes: object) -> object:
    return read_snapshot([json.dumps({**SNAPSHOT, **changes}).encode()], ours=(), backend_pid=1)


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


def missing(**changes: object) -> list[bytes]:
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


def test_a_session_that_is_there_twice_is_invalid() -> None:
    read(sessions=[IDLE_ROW, [2, *IDLE_ROW[1:]]], waits=None)
    with pytest.raises(TargetError, match="sessions: pid"):
        read(sessions=[IDLE_ROW, IDLE_ROW], waits=None)
