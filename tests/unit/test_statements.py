"""Properties that our SQL must have on every server."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import takewhile

import pytest
from session_reaper.postgres.rows import SESSION_COLUMNS

QUERIES = files("session_reaper.postgres") / "queries"
NAMES = sorted(path.name for path in QUERIES.iterdir())


def statement(name: str) -> str:
    text = (QUERIES / name).read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


def test_the_signal_function_is_not_in_a_condition() -> None:
    """In WHERE it could run before the other conditions, and terminate every session."""
    selected, rest = statement("signal.sql").split("\nFROM ")
    assert selected.count("{function}") == 1
    assert "{function}" not in rest


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_neither_begins_nor_ends_a_transaction(name: str) -> None:
    """A transaction block would freeze pg_stat_activity and `now()`."""
    words = set(re.findall(r"[a-z_]+", statement(name).lower()))
    assert not words & {"begin", "commit", "rollback", "savepoint"}
    assert statement(name).count(";") == 0


@pytest.mark.parametrize("name", NAMES)
def test_ages_do_not_use_the_clock_of_the_transaction(name: str) -> None:
    assert not re.search(r"\bnow\(\)|current_timestamp", statement(name).lower())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_either_a_bind_parameter_or_replaced_by_text(
    name: str,
) -> None:
    bound = set(re.findall(r"(?<!:):([a-z_]+)", statement(name)))
    filled_in = set(re.findall(r"\{([a-z_]+)\}", statement(name)))
    assert not bound & filled_in
    lines = (QUERIES / name).read_text("utf-8").splitlines()
    comments = "".join(takewhile(lambda line: line.startswith("--"), lines))
    assert all("{" + each + "}" in comments for each in filled_in)


def test_the_snapshot_selects_the_columns_that_are_read() -> None:
    columns = re.findall(r"\bAS ([a-z_]+),$", statement("session_columns.sql"), re.MULTILINE)
    assert tuple(columns) == SESSION_COLUMNS
