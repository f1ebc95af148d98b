"""The messages of a stack change its state in the hub."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from session_reaper.aws.fleet_table import to_item
from session_reaper.errors import ConfigurationError
from session_reaper.fleet.digest import digest_fleet, report_on_fleet
from session_reaper.fleet.message import Spoke, read_spoke_report
from session_reaper.fleet.state import SILENT_AFTER, SpokeNews, SpokeState, add_message, conclude
from session_reaper.report.fleet_document import MAX_BYTES
from session_reaper.report.model import (
    Failure,
    Outcome,
    StackProblem,
    TargetReport,
    TargetStatus,
)
from session_reaper.summary.message import summarize

from tests.builders import a_result, a_target_report, some_results
from tests.fleet import a_message, an_origin

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def leaks_of_many_applications(number: int, name: str) -> TargetReport:
    fates = [
        fate
        for n in range(number)
        for fate in some_results(2, Outcome.TERMINATED, application=f"{name}-app-{n}")
    ]
    return a_target_report(*fates, name=name)


@pytest.mark.parametrize(("targets", "applications"), [(1, 60), (30, 60), (3000, 3)])
def test_the_sessions_of_a_report_that_was_cut_are_all_counted(
    targets: int, applications: int
) -> None:
    now = time.time()
    names = (f"{n}-{'x' * 40}" for n in range(targets))
    body = a_message(an_origin(), *(leaks_of_many_applications(applications, n) for n in names))
    assert len(body) <= MAX_BYTES
    result = conclude(some_news(body, now), now, 3600, is_complete=True)
    ended = sum(target.counts[Outcome.TERMINATED] for target in result.targets)
    assert ended == 2 * targets * applications
    assert result.state.targets == targets


def fails(name: str) -> TargetReport:
    error = Failure(code="timeout", cause="x" * 200, hint="")
    return TargetReport(name=name, status=TargetStatus.FAILED, error=error)


def test_an_issue_of_a_target_that_a_report_leaves_out_has_not_ended() -> None:
    now = time.time()
    names = [f"{n:04}-{'x' * 60}" for n in range(300)]
    first = some_news(a_message(an_origin(sent_at=now), *map(fails, names), run="a"), now)
    result = conclude(first, now, 3600, is_complete=True)
    assert len(result.state.known) == 300
    more = [fails(f"0-{n:04}-{'x' * 60}") for n in range(400)]
    large = a_message(an_origin(sent_at=now + 1), *more, *map(fails, names), run="b")
    assert json.loads(large)["targets_left_out"] > 0
    whole = a_message(an_origin(sent_at=now + 2), *map(fails, names), run="c")
    for body in (large, whole):
        news = SpokeNews(state=result.state)
        add_message(news, read_spoke_report(body), now + 2, "handle")
        result = conclude(news, now + 2, 3600, is_complete=True)
    assert not any(target.new_issues or target.recovered for target in result.targets)


def test_one_of_the_quiet_targets_of_a_stack_stands_for_all() -> None:
    now = time.time()
    quiet = [a_target_report(name=f"db-{n}", used_after=10) for n in range(1000)]
    news = some_news(a_message(an_origin(sent_at=now), fails("ill"), *quiet), now)
    result = conclude(news, now, 3600, is_complete=True)
    assert len(result.targets) == 2
    assert result.state.targets == 1001
    news = SpokeNews(state=result.state)
    well = a_target_report(name="ill", used_after=10)
    message = a_message(an_origin(sent_at=now + 300), well, *quiet, run="b")
    add_message(news, read_spoke_report(message), now + 300, "handle")
    result = conclude(news, now + 300, 3600, is_complete=True)
    assert [bool(target.recovered) for target in result.targets] == [True, False]


def test_a_session_that_lingers_is_known_by_its_pid_although_a_report_is_cut() -> None:
    now = time.time()
    lingering = some_results(3, Outcome.LINGERING, application="slow")
    others = [a_result(application=f"app-{n}") for n in range(60) for _ in range(4)]
    runs = (lingering, (*lingering, *others), lingering[1:], ())
    news = some_news(a_message(an_origin(sent_at=now - 9), a_target_report(), run="first"), now)
    state = news.state
    ended = []
    for number, fates in enumerate(runs):
        origin = an_origin(sent_at=now + number)
        report = read_spoke_report(a_message(origin, a_target_report(*fates), run=str(number)))
        news = SpokeNews(state=state)
        add_message(news, report, now + number, "handle")
        result = conclude(news, now + number, 3600, is_complete=True)
        state = result.state
        ended.append([each.issue.detail for t in result.targets for each in t.recovered])
    assert ended == [[], [], [("1",)], [("2",), ("3",)]]


@pytest.mark.parametrize("place", ["account", "targets", "totals"])
def test_a_message_without_a_part_is_refused_with_its_name(place: str) -> None:
    document = json.loads(a_message(an_origin(), a_target_report()))
    del document[place]
    with pytest.raises(ConfigurationError, match=f"^{place}: is required"):
        read_spoke_report(json.dumps(document))


def test_keys_of_a_newer_stack_are_ignored() -> None:
    document = json.loads(a_message(an_origin(), a_target_report(a_result())))
    usual = read_spoke_report(json.dumps(document))
    (target,) = document["targets"]
    for mapping in (document, document["totals"], target, target["slots"], target["groups"][0]):
        mapping["invented_later"] = {"x": [1]}
    assert read_spoke_report(json.dumps(document)) == usual


_DEEP = 900 * "[" + 900 * "]"
_INVALID = (
    *("null", "true", "-1", "1.5", "1e400", "NaN", "1e-320", 30 * "9", 5000 * "9", _DEEP),
    *("[]", "{}", "[[]]", "[[[]]]", '""', r'"\ud800"', r'"\u0000"', f'"{10_000 * "x"}"'),
    *('[["lingering"]]', r'[["lingering", "\u00b2"]]', '[["protected"]]', '[["undelivered", "1"]]'),
)


def list_places(
    value: object, place: tuple[str | int, ...] = ()
) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each value in a JSON document."""
    yield place
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from list_places(item, (*place, key))


@pytest.mark.parametrize("invalid", _INVALID, ids=range(len(_INVALID)))
def test_any_value_at_any_place_of_a_message_is_read_or_refused(invalid: str) -> None:
    now = time.time()
    results = (a_result(), *some_results(2, Outcome.LINGERING, application="slow"))
    body = a_message(an_origin(), a_target_report(*results), fails("ill"))
    for first, *path in filter(None, list_places(json.loads(body))):
        document = json.loads(body)
        parent, last = document, first
        for key in path:
            parent, last = parent[last], key
        parent[last] = "HERE"
        changed = json.dumps(document).replace('"HERE"', invalid)
        try:
            news = some_news(changed, now)
        except ConfigurationError:
            continue
        fleet = report_on_fleet("run-1", {news.state.spoke: news}, (), now, 3600, is_complete=True)
        summary = summarize(digest_fleet(fleet, None), now)
        json.dumps([*summary, *map(to_item, fleet.states.values())], ensure_ascii=False).encode()


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
        assert sum(target.counts[Outcome.TERMINATED] for target in result.targets) == ended
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
