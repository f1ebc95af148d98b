"""What the messages of a stack change in what a hub knows of it."""

from __future__ import annotations

import json
import time

import pytest
from session_reaper.errors import ConfigurationError
from session_reaper.fleet.message import read_spoke_report
from session_reaper.fleet.state import SILENT_AFTER, SpokeNews, SpokeState, add_message, conclude
from session_reaper.report.model import StackProblem

from tests.builders import a_target_report
from tests.fleet import a_message, an_origin


def some_news(body: str, arrived_at: float) -> SpokeNews:
    report = read_spoke_report(body)
    news = SpokeNews(state=SpokeState(spoke=report.spoke))
    add_message(news, report, arrived_at, "handle")
    return news


def test_a_stack_is_not_silent_while_messages_are_waiting() -> None:
    now = time.time()
    news = some_news(a_message(an_origin(sent_at=now, next_by=now + 300)), now)
    late = now + 300 + SILENT_AFTER + 1
    assert conclude(news, late, 3600, is_complete=False).targets == ()
    assert conclude(news, late - 2, 3600, is_complete=True).targets == ()
    (stack,) = conclude(news, late, 3600, is_complete=True).targets
    assert stack.stack_problem is StackProblem.SILENT


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_the_next_message_is_due_by_the_clock_of_the_queue(ahead: float) -> None:
    now = time.time()
    origin = an_origin(sent_at=now + ahead, next_by=now + ahead + 300)
    assert some_news(a_message(origin), now).state.expected_by == pytest.approx(now + 300)


def test_a_run_on_some_targets_announces_no_next_one() -> None:
    now = time.time()
    news = some_news(a_message(an_origin(is_usual=False), a_target_report()), now)
    assert news.latest is None
    assert news.state.expected_by == 0
    assert conclude(news, now, 3600, is_complete=True).targets == ()


@pytest.mark.parametrize("place", ["account", "targets", "totals"])
def test_a_message_without_a_part_is_refused_with_its_name(place: str) -> None:
    document = json.loads(a_message(an_origin(), a_target_report()))
    del document[place]
    with pytest.raises(ConfigurationError, match=f"^{place}: is required"):
        read_spoke_report(json.dumps(document))
