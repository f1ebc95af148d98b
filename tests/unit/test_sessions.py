"""Whether a session in a second snapshot continues the one in the first."""

from __future__ import annotations

from typing import Any

import pytest
from session_reaper.sessions.session import State

from tests.builders import a_session, an_identity

LATER = "2026-01-15T09:30:00.000001+00:00"


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"state_change": LATER},
        {"query_start": LATER},
        {"state": State.ACTIVE},
        {"state": State.IDLE_IN_TRANSACTION_ABORTED, "state_change": LATER, "query_start": LATER},
    ],
)
def test_a_transaction_continues_after_further_statements(changed: dict[str, Any]) -> None:
    assert an_identity(**changed).continues(an_identity())


@pytest.mark.parametrize(
    "changed", [{"pid": 1}, {"backend_start": LATER}, {"xact_start": LATER}, {"xact_start": None}]
)
def test_another_transaction_or_session_does_not_continue_it(changed: dict[str, Any]) -> None:
    assert not an_identity(**changed).continues(an_identity())


IDLE = {"xact_start": None, "state": State.IDLE}


def test_outside_a_transaction_every_field_must_be_unchanged() -> None:
    idle = an_identity(**IDLE)
    assert idle.continues(an_identity(**IDLE))
    for name in ("state_change", "query_start"):
        assert not an_identity(**IDLE | {name: LATER}).continues(idle), name
    assert not an_identity().continues(idle)


def test_a_query_is_redacted_once_for_all_that_show_it() -> None:
    session = a_session(query="SELECT 'CANARY'")
    assert session.redacted_query == "SELECT ?"
    assert session.redacted_query is session.redacted_query
    assert "CANARY" not in repr(session)
