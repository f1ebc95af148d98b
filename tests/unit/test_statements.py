"""What our SQL must not do, whatever a server makes of it."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

QUERIES = files("session_reaper.postgres") / "queries"


def statement(name: str) -> str:
    text = (QUERIES / name).read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


def test_the_function_that_signals_is_not_in_a_condition() -> None:
    """In WHERE it may run before the other conditions, and end everybody."""
    selected, rest = statement("signal.sql").split("\nFROM ")
    assert selected.count("{function}") == 1
    assert "{function}" not in rest


@pytest.mark.parametrize("name", sorted(path.name for path in QUERIES.iterdir()))
def test_a_statement_begins_no_transaction_and_ends_none(name: str) -> None:
    """A transaction block would freeze pg_stat_activity, and `now()` with it."""
    words = set(re.findall(r"[a-z_]+", statement(name).lower()))
    assert not words & {"begin", "commit", "rollback", "savepoint"}
    assert statement(name).count(";") == 0


@pytest.mark.parametrize("name", sorted(path.name for path in QUERIES.iterdir()))
def test_ages_are_not_by_a_clock_that_stands_still_in_a_transaction(name: str) -> None:
    assert not re.search(r"\bnow\(\)|current_timestamp", statement(name).lower())
