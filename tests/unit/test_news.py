from __future__ import annotations

from dataclasses import replace

import pytest
from session_reaper.news import Learned, Told, compared, not_delivered
from session_reaper.policy import Mode
from session_reaper.report import (
    Failure,
    Outcome,
    Recovery,
    Report,
    TargetReport,
    TargetStatus,
)

from tests.builders import a_fate, a_report, a_target_report, some_slots

NOW = 1_795_600_000.0
HOUR = 3600.0


def in_trouble(status: TargetStatus, code: str = "timeout", **overrides: object) -> TargetReport:
    failure = Failure(code=code, message="it is so", hint="mend it")
    values: dict[str, object] = {"name": "orders", "status": status, "error": failure}
    return TargetReport(**values | overrides)  # type: ignore[arg-type] # a table


def well(*outcomes: Outcome, **overrides: object) -> TargetReport:
    fates = [a_fate(outcome, pid=pid) for pid, outcome in enumerate(outcomes, start=1)]
    return a_target_report(*fates, **{"slots": some_slots(used=40), "used_after": 39} | overrides)


def told(kind: str, ago: float = 60.0, *, since: float | None = None) -> Told:
    return Told(target="orders", kind=kind, since=NOW - (since or ago), at=NOW - ago)


def after(target: TargetReport, *known: Told, mode: Mode = Mode.ENFORCE) -> tuple[Report, Learned]:
    return compared(a_report(target, mode=mode), known, NOW, HOUR, whole=True)


FAILED = in_trouble(TargetStatus.FAILED)
TROUBLES = {
    "failed timeout": FAILED,
    "full": in_trouble(TargetStatus.FULL, "53300"),
    "blind": in_trouble(TargetStatus.BLIND, "42501", slots=some_slots(used=40), used_after=40),
    "breaker": in_trouble(TargetStatus.BREAKER, "breaker", slots=some_slots(used=40)),
    "lingering 1": well(Outcome.LINGERING),
    "denied": well(Outcome.DENIED),
    "would_terminate idle-in-transaction app": well(Outcome.WOULD_TERMINATE),
    "spared": well(Outcome.SPARED),
    "fallback": well(fallback_secret="master"),  # noqa: S106 -- a name
    "exhausted": a_target_report(),
}
PASSING = {"would_terminate idle-in-transaction app", "spared", "denied"}


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_trouble_is_news_when_it_begins_and_remembered_from_then_on(kind: str) -> None:
    report, learned = after(TROUBLES[kind])
    assert report.is_news
    assert learned.told == (Told(target="orders", kind=kind, since=NOW, at=NOW),)


@pytest.mark.parametrize("kind", TROUBLES)
def test_the_same_trouble_is_no_news_until_it_is_time_to_remind(kind: str) -> None:
    report, learned = after(TROUBLES[kind], told(kind, HOUR - 1))
    assert not report.is_news
    assert learned.told == learned.over == ()


@pytest.mark.parametrize("kind", TROUBLES)
def test_after_a_while_the_same_trouble_is_news_again_and_still_as_old(kind: str) -> None:
    report, learned = after(TROUBLES[kind], told(kind, HOUR, since=5 * HOUR))
    assert report.is_news
    assert learned.told == (Told(target="orders", kind=kind, since=NOW - 5 * HOUR, at=NOW),)


@pytest.mark.parametrize("kind", TROUBLES.keys() - PASSING)
def test_the_end_of_a_trouble_is_news_and_then_forgotten(kind: str) -> None:
    known = told(kind, 60, since=1503)
    report, learned = after(well(), known)
    assert report.targets[0].recovered == (Recovery(kind=kind, seconds=1503.0),)
    assert report.is_news
    assert learned.over == (known,)


@pytest.mark.parametrize("kind", PASSING)
def test_that_nothing_matches_any_more_is_no_news(kind: str) -> None:
    report, learned = after(well(), told(kind))
    assert not report.is_news
    assert learned.over == ()


def test_the_end_of_a_trouble_is_told_even_if_it_was_told_long_ago() -> None:
    report, _ = after(well(), told("full", 3 * HOUR, since=9 * HOUR))
    assert report.targets[0].recovered == (Recovery(kind="full", seconds=9 * HOUR),)


def test_another_trouble_of_the_same_target_is_news() -> None:
    report, _ = after(in_trouble(TargetStatus.FAILED, "28P01"), told("failed timeout"))
    assert report.is_news


def test_the_same_trouble_of_another_target_is_news() -> None:
    report, _ = after(replace(FAILED, name="stock"), told("failed timeout"))
    assert report.is_news


@pytest.mark.parametrize("outcome", [Outcome.TERMINATED, Outcome.CANCELLED])
def test_what_was_done_is_news_every_time(outcome: Outcome) -> None:
    report, learned = after(well(outcome), told(outcome.value))
    assert report.is_news
    assert learned.told == ()


def test_a_lingering_session_that_was_told_does_not_hide_a_termination() -> None:
    report, _ = after(well(Outcome.LINGERING, Outcome.TERMINATED), told("lingering 1"))
    assert report.is_news


def test_that_a_session_escaped_is_no_news() -> None:
    report, learned = after(well(Outcome.ESCAPED))
    assert not report.is_news
    assert learned.told == ()


@pytest.mark.parametrize("kind", ["lingering 7", "denied", "breaker", "failed 28P01", "fallback"])
def test_of_a_target_that_was_not_reached_nothing_is_over(kind: str) -> None:
    report, learned = after(FAILED, told(kind), told("failed timeout"))
    assert not report.is_news
    assert learned.over == ()


def test_behind_a_breaker_no_session_is_known_to_be_gone() -> None:
    _, learned = after(TROUBLES["breaker"], told("lingering 7"))
    assert learned.over == ()


def test_a_session_that_is_condemned_again_is_not_gone() -> None:
    _, learned = after(well(Outcome.SPARED), told("lingering 1"))
    assert learned.over == ()


def test_another_session_that_lingers_is_news() -> None:
    report, _ = after(well(Outcome.LINGERING), told("lingering 7"))
    assert report.is_news
    assert [each.kind for each in report.targets[0].recovered] == ["lingering 7"]


def test_another_rules_leak_is_news_in_observe_mode() -> None:
    report, _ = after(well(Outcome.WOULD_TERMINATE), told("would_terminate blockers app"))
    assert report.is_news


def test_a_server_on_the_brink_is_not_told_of_in_every_run() -> None:
    brink = well(slots=some_slots(used=96), used_after=96)
    report, learned = after(brink, told("exhausted"))
    assert not report.is_news
    assert learned.over == ()


def test_the_end_of_a_secrets_trouble_is_told_of_the_target_that_it_describes() -> None:
    known = Told(target="prod/orders", kind="failed secret", since=NOW - 60, at=NOW)
    report, learned = compared(a_report(well(secret="prod/orders")), [known], NOW, HOUR, whole=True)  # noqa: S106 -- a name
    assert report.summary == "orders: recovered (failed secret for 1m), slots 40/97 → 39/97"
    assert learned.over == (known,)


def test_of_two_targets_of_one_name_the_well_one_does_not_speak_for_the_other() -> None:
    report, learned = compared(
        a_report(FAILED, well()), [told("failed timeout")], NOW, HOUR, whole=True
    )
    assert not report.is_news
    assert learned.over == ()


def test_what_is_no_target_any_more_is_forgotten_without_a_word() -> None:
    other = Told(target="stock", kind="full", since=NOW, at=NOW)
    report, learned = after(well(), other)
    assert not report.is_news
    assert learned.over == (other,)


def test_a_summary_that_did_not_go_out_is_told_by_the_next() -> None:
    lost = not_delivered(a_report(well(Outcome.TERMINATED)), NOW)
    report, learned = after(well(), *lost.told)
    assert report.is_news
    assert report.untold == ("orders: 1 session terminated, slots 40/97 → 39/97",)
    assert report.summary.endswith("; 1 not delivered before")
    assert learned.over == lost.told


def test_what_was_told_in_the_future_hides_nothing() -> None:
    report, _ = after(FAILED, told("failed timeout", -3600))
    assert report.is_news


def test_in_observe_mode_no_lingering_session_is_known_to_be_gone() -> None:
    _, learned = after(well(), told("lingering 1"), mode=Mode.OBSERVE)
    assert learned.over == ()


def test_who_gets_in_again_behind_a_breaker_has_recovered_from_what_kept_him_out() -> None:
    report, _ = after(TROUBLES["breaker"], told("full"), told("breaker"))
    assert [each.kind for each in report.targets[0].recovered] == ["full"]


def test_several_troubles_that_end_together_are_one_piece_of_news() -> None:
    report, learned = after(well(), told("full"), told("failed timeout"))
    assert (
        report.summary
        == "orders: recovered (full for 1m, failed timeout for 1m), slots 40/97 → 39/97"
    )
    assert len(learned.over) == 2


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    later = Told(target="orders", kind="full", since=NOW + 60, at=NOW + 60)
    report, _ = after(well(), later)
    assert report.targets[0].recovered == (Recovery(kind="full", seconds=0.0),)


def test_targets_that_nobody_asked_for_are_left_as_they_were() -> None:
    other = Told(target="stock", kind="full", since=NOW, at=NOW)
    report, learned = compared(a_report(well()), [other], NOW, HOUR, whole=False)
    assert not report.is_news
    assert learned.over == ()


def test_the_summary_of_a_run_counts_what_was_told_before() -> None:
    report = a_report(well(Outcome.TERMINATED), replace(FAILED, name="stock"), well(name="quiet"))
    known = Told(target="stock", kind="failed timeout", since=NOW, at=NOW)
    found, _ = compared(report, [known], NOW, HOUR, whole=True)
    assert (
        found.summary == "orders: 1 session terminated, slots 40/97 → 39/97; 1 told before; 1 quiet"
    )


def test_without_news_the_summary_says_what_is_still_wrong() -> None:
    report, _ = after(FAILED, told("failed timeout"))
    assert report.summary == "orders: failed, it is so"


def test_what_was_told_before_makes_other_news_no_worse() -> None:
    full = replace(TROUBLES["full"], name="stock")
    report = a_report(well(Outcome.TERMINATED), full)
    told_before, _ = compared(
        report, [Told(target="stock", kind="full", since=NOW, at=NOW)], NOW, HOUR, whole=True
    )
    assert (report.severity, told_before.severity) == ("critical", "info")
