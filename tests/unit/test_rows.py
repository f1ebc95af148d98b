"""Answers that are small on the wire and large, or slow, in the reaper."""

from __future__ import annotations

import json
from typing import Any

import pytest
from session_reaper.errors import TargetError
from session_reaper.postgres.rows import read_grants, read_snapshot

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


MOMENT = "2026-01-15T08:00:00.000001+00:00"
ROW = [1, MOMENT, None, MOMENT, MOMENT, "idle", "app", "db", "api", None, "x", None, None]
ROW += [1, None, 1, None, False, None, None, None, False, False, False, True]


def test_a_session_that_is_there_twice_is_invalid() -> None:
    read(sessions=[ROW, [2, *ROW[1:]]])
    with pytest.raises(TargetError, match="sessions: pid"):
        read(sessions=[ROW, ROW])
