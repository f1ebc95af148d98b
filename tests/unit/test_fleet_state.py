"""The messages of a stack change its state in the hub."""

from __future__ import annotations

import json
import time

import pytest
from session_reaper.errors import ConfigurationError
from session_reaper.fleet.message import Spoke, read_spoke_report
from session_reaper.fleet.state import SILENT_AFTER, SpokeNews, SpokeState, add_message, conclude
from session_reaper.report.model import Outcome, StackProblem

from tests.builders import a_target_report, some_results
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
    assert some_news(a_message(origin), now).state.expected_by == pytest.approx(now + 300, abs=1)


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


def test_a_message_of_another_version_is_refused_with_the_account_that_it_names() -> None:
    body = json.dumps({"version": 2, "account": "000000000007"})
    with pytest.raises(ConfigurationError, match=r"^version: must be 1, not 2 .*000000000007"):
        read_spoke_report(body)


def test_a_stack_whose_clock_was_set_back_is_not_silent() -> None:
    now = time.time()
    news = some_news(a_message(an_origin(sent_at=now, next_by=now + 300), run="a"), now)
    earlier = an_origin(sent_at=now - 3300, next_by=now - 3000)
    add_message(news, read_spoke_report(a_message(earlier, run="b")), now + 300, "handle")
    assert news.state.expected_by == pytest.approx(now + 600, abs=1)
    assert news.state.sent_at == pytest.approx(now, abs=1)


def test_all_messages_of_a_digest_are_recognized_if_none_could_be_deleted() -> None:
    now = time.time()
    results = some_results(1, Outcome.TERMINATED)
    reports = [
        read_spoke_report(
            a_message(
                an_origin(sent_at=now - 300 * age), a_target_report(*results), run=f"run-{age}"
            )
        )
        for age in range(300)
    ]
    news = SpokeNews(state=SpokeState(spoke=reports[0].spoke))
    state = news.state
    for ended in (300, 0, 0):
        news = SpokeNews(state=state)
        for number, report in enumerate(reports):
            add_message(news, report, now, str(number))
        result = conclude(news, now, 3600, is_complete=True)
        assert sum(target.count(Outcome.TERMINATED) for target in result.targets) == ended
        assert len(news.handles) == 300
        state = conclude(SpokeNews(state=result.state), now, 3600, is_complete=True).state
    later = a_message(an_origin(sent_at=now + 300), run="later")
    news = SpokeNews(state=state)
    add_message(news, read_spoke_report(later), now + 300, "later")
    assert len(conclude(news, now, 3600, is_complete=True).state.runs) == 100


def test_a_stack_that_was_never_heard_is_silent_from_the_moment_that_it_was_expected() -> None:
    now = time.time()
    expected = SpokeState(spoke=Spoke("1", "eu-west-1", "reaper"), expected_by=now)
    late = now + SILENT_AFTER + 60
    assert conclude(SpokeNews(state=expected), late - 120, 3600, is_complete=True).targets == ()
    result = conclude(SpokeNews(state=expected), late, 3600, is_complete=True)
    (stack,) = result.targets
    assert stack.error is not None
    assert stack.error.cause == "no report has ever arrived"
    assert result.state.is_silent
