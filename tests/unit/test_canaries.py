"""No literal of a query and no markup from outside is in any output of a run."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.report.document import to_document, to_recordings
from session_reaper.report.model import Outcome, Report
from session_reaper.sessions.session import State
from session_reaper.summary.console_links import FunctionLocation
from session_reaper.summary.digest import digest_report
from session_reaper.summary.message import summarize

from tests.builders import a_report, a_result, a_session, a_snapshot, a_target_report
from tests.canary_queries import (
    BACKSLASHED,
    COMMENTED,
    CUT_OFF,
    DOLLARS,
    LITERALS,
    MISQUOTED,
    VALUES,
    leaks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = FunctionLocation(
    region="eu-west-1", function="reaper", log_group="/aws/lambda/reaper", dashboard="d"
)
CONTROLS = "\0\t\r\x1b\x7f\x85\u200b\u202e\u2028\ufeff"
MARKUP = "<!channel> <@U1> <http://evil|here> `*b*`"
QUERIES = [
    *(f"call f(a, {literal}, b)" for literal in LITERALS),
    *COMMENTED,
    *CUT_OFF,
    *BACKSLASHED,
    *DOLLARS,
    *MISQUOTED,
    *(query for query, _ in VALUES),
]


def outputs(report: Report) -> list[str]:
    """Return every text of a run's summary."""
    return list(_texts(summarize(digest_report(report, PLACE), 1_768_464_000.0)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        if value.startswith("{"):  # JSON: its readers see the decoded text
            yield from _texts(json.loads(value))
    elif is_dataclass(value):
        yield from _texts([getattr(value, each.name) for each in fields(value)])
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def a_story(**session: Any) -> Report:  # noqa: ANN401 -- a session's fields
    """Return a run with one such session for each state and outcome, each on its own target."""
    return a_report(
        *(
            a_target_report(a_result(outcome, state=state, **session), name=f"{state} {outcome}")
            for state in State
            for outcome in Outcome
        )
    )


@pytest.mark.parametrize("query", QUERIES)
def test_no_part_of_a_literal_is_in_any_output(query: str) -> None:
    report = a_story(query=query)
    recorded = a_report(a_target_report(recorded=a_snapshot(a_session(query=query))))
    documents = [json.dumps(to_document(report)), json.dumps(to_recordings(recorded))]
    found = [text for text in [*documents, *outputs(report)] if leaks(text)]
    assert not found


def test_the_canary_would_be_found() -> None:
    report = a_story(query="select canary from t")
    assert leaks(json.dumps(to_document(report)))
    assert any(map(leaks, outputs(report)))


@pytest.mark.parametrize("field", ["application", "role", "database", "query"])
def test_no_name_or_query_brings_control_characters_or_markup(field: str) -> None:
    report = a_story(**{field: f"x{CONTROLS}{MARKUP}y"})
    texts = outputs(report)
    assert not [text for text in texts if not text.replace("\n", "").isprintable()]
    chats = [text for text in texts if "&lt;" in text]
    assert chats or field == "database"  # which no summary names
    assert not [text for text in chats if re.search(r"<(?!https://)", text)]
