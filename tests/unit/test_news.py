from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from session_reaper.policy.enums import Mode
from session_reaper.report.headline import write_summary_line
from session_reaper.report.known_issues import (
    KnownIssue,
    StateUpdate,
    compare_with_known,
    remember_undelivered,
    to_stable_key,
)
from session_reaper.report.model import (
    Failure,
    Outcome,
    Recovery,
    Report,
    TargetReport,
    TargetStatus,
)
from session_reaper.targets.target import TargetKey

from tests.builders import a_fate, a_report, a_target_report, some_slots

NOW = 1_795_600_000.0
HOUR = 3600.0
FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:session-reaper"
SECRETS = "arn:aws:secretsmanager:eu-west-1:123456789012:secret"

compare = partial(compare_with_known, now=NOW, remind_after=HOUR, whole=True, function_arn=FUNCTION)


def key_of(name: str, instance: str = "") -> TargetKey:
    """The key under which a secret of the function's own account and region is remembered."""
    return TargetKey(f"{SECRETS}:{name}", instance)


ORDERS = key_of("orders")


def stock(report: TargetReport) -> TargetReport:
    return replace(report, name="stock", key=key_of("stock"))


def in_trouble(status: TargetStatus, code: str = "timeout", **overrides: object) -> TargetReport:
    failure = Failure(code=code, message="it is so", hint="mend it")
    values: dict[str, object] = {"name": "orders", "key": ORDERS, "status": status}
    values["error"] = failure
    return TargetReport(**values | overrides)  # type: ignore[arg-type] # a table


def well(*outcomes: Outcome, **overrides: object) -> TargetReport:
    fates = [a_fate(outcome, pid=pid) for pid, outcome in enumerate(outcomes, start=1)]
    return a_target_report(
        *fates, **{"key": ORDERS, "slots": some_slots(used=40), "used_after": 39} | overrides
    )


def told(kind: str, ago: float = 60.0, *, since: float | None = None) -> KnownIssue:
    return KnownIssue(key=ORDERS, kind=kind, since=NOW - (since or ago), at=NOW - ago)


def after(
    target: TargetReport, *known: KnownIssue, mode: Mode = Mode.ENFORCE
) -> tuple[Report, StateUpdate]:
    return compare(a_report(target, mode=mode), known)


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
    "exhausted": a_target_report(key=ORDERS),
}
PASSING = {"would_terminate idle-in-transaction app", "spared", "denied"}


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_trouble_is_news_when_it_begins_and_remembered_from_then_on(kind: str) -> None:
    report, learned = after(TROUBLES[kind])
    assert report.should_notify
    assert learned.told == (KnownIssue(key=ORDERS, kind=kind, since=NOW, at=NOW),)


@pytest.mark.parametrize("kind", TROUBLES)
def test_the_same_trouble_is_no_news_until_it_is_time_to_remind(kind: str) -> None:
    report, learned = after(TROUBLES[kind], told(kind, HOUR - 1))
    assert not report.should_notify
    assert learned.told == learned.over == ()


@pytest.mark.parametrize("kind", TROUBLES)
def test_after_a_while_the_same_trouble_is_news_again_and_still_as_old(kind: str) -> None:
    report, learned = after(TROUBLES[kind], told(kind, HOUR, since=5 * HOUR))
    assert report.should_notify
    assert learned.told == (KnownIssue(key=ORDERS, kind=kind, since=NOW - 5 * HOUR, at=NOW),)


@pytest.mark.parametrize("kind", sorted(TROUBLES.keys() - PASSING))
def test_the_end_of_a_trouble_is_news_and_then_forgotten(kind: str) -> None:
    known = told(kind, 60, since=1503)
    report, learned = after(well(), known)
    assert report.targets[0].recovered == (Recovery(kind=kind, seconds=1503.0),)
    assert report.should_notify
    assert learned.over == (known,)


@pytest.mark.parametrize("kind", sorted(PASSING))
def test_that_nothing_matches_any_more_is_no_news(kind: str) -> None:
    report, learned = after(well(), told(kind))
    assert not report.should_notify
    assert learned.over == ()


def test_the_end_of_a_trouble_is_told_even_if_it_was_told_long_ago() -> None:
    report, _ = after(well(), told("full", 3 * HOUR, since=9 * HOUR))
    assert report.targets[0].recovered == (Recovery(kind="full", seconds=9 * HOUR),)


def test_another_trouble_of_the_same_target_is_news() -> None:
    report, _ = after(in_trouble(TargetStatus.FAILED, "28P01"), told("failed timeout"))
    assert report.should_notify


def test_the_same_trouble_of_another_target_is_news() -> None:
    report, _ = after(stock(FAILED), told("failed timeout"))
    assert report.should_notify


@pytest.mark.parametrize("outcome", [Outcome.TERMINATED, Outcome.CANCELLED])
def test_what_was_done_is_news_every_time(outcome: Outcome) -> None:
    report, learned = after(well(outcome), told(outcome.value))
    assert report.should_notify
    assert learned.told == ()


def test_a_lingering_session_that_was_told_does_not_hide_a_termination() -> None:
    report, _ = after(well(Outcome.LINGERING, Outcome.TERMINATED), told("lingering 1"))
    assert report.should_notify


def test_that_a_session_escaped_is_no_news() -> None:
    report, learned = after(well(Outcome.ESCAPED))
    assert not report.should_notify
    assert learned.told == ()


@pytest.mark.parametrize("kind", ["lingering 7", "denied", "breaker", "failed 28P01", "fallback"])
def test_of_a_target_that_was_not_reached_nothing_is_over(kind: str) -> None:
    report, learned = after(FAILED, told(kind), told("failed timeout"))
    assert not report.should_notify
    assert learned.over == ()


def test_behind_a_breaker_no_session_is_known_to_be_gone() -> None:
    _, learned = after(TROUBLES["breaker"], told("lingering 7"))
    assert learned.over == ()


def test_a_session_that_is_condemned_again_is_not_gone() -> None:
    _, learned = after(well(Outcome.SPARED), told("lingering 1"))
    assert learned.over == ()


def test_another_session_that_lingers_is_news() -> None:
    report, _ = after(well(Outcome.LINGERING), told("lingering 7"))
    assert report.should_notify
    assert [each.kind for each in report.targets[0].recovered] == ["lingering 7"]


def test_another_rules_leak_is_news_in_observe_mode() -> None:
    report, _ = after(well(Outcome.WOULD_TERMINATE), told("would_terminate blockers app"))
    assert report.should_notify


def test_a_server_on_the_brink_is_not_told_of_in_every_run() -> None:
    brink = well(slots=some_slots(used=96), used_after=96)
    report, learned = after(brink, told("exhausted"))
    assert not report.should_notify
    assert learned.over == ()


def test_the_end_of_a_secrets_trouble_is_told_of_the_target_that_it_describes() -> None:
    known = KnownIssue(key=key_of("prod/orders"), kind="failed secret", since=NOW - 60, at=NOW)
    report, learned = compare(a_report(well(key=key_of("prod/orders", "orders-1"))), [known])
    assert (
        write_summary_line(report)
        == "orders: recovered (failed secret for 1m), slots 40/97 → 39/97"
    )
    assert learned.over == (known,)


def test_of_two_targets_of_one_secret_the_well_one_does_not_speak_for_the_other() -> None:
    report, learned = compare(a_report(FAILED, well()), [told("failed timeout")])
    assert not report.should_notify
    assert learned.over == ()


def test_what_is_no_target_any_more_is_forgotten_without_a_word() -> None:
    other = KnownIssue(key=key_of("stock"), kind="full", since=NOW, at=NOW)
    report, learned = after(well(), other)
    assert not report.should_notify
    assert learned.over == (other,)


def test_a_summary_that_did_not_go_out_is_told_by_the_next() -> None:
    lost = remember_undelivered(a_report(well(Outcome.TERMINATED)), NOW)
    report, learned = after(well(), *lost.told)
    assert report.should_notify
    assert report.undelivered == ("orders: 1 session terminated, slots 40/97 → 39/97",)
    assert write_summary_line(report).endswith("; 1 not delivered before")
    assert learned.over == lost.told


def test_what_was_told_in_the_future_hides_nothing() -> None:
    report, _ = after(FAILED, told("failed timeout", -3600))
    assert report.should_notify


def test_in_observe_mode_no_lingering_session_is_known_to_be_gone() -> None:
    _, learned = after(well(), told("lingering 1"), mode=Mode.OBSERVE)
    assert learned.over == ()


def test_who_gets_in_again_behind_a_breaker_has_recovered_from_what_kept_him_out() -> None:
    report, _ = after(TROUBLES["breaker"], told("full"), told("breaker"))
    assert [each.kind for each in report.targets[0].recovered] == ["full"]


def test_several_troubles_that_end_together_are_one_piece_of_news() -> None:
    report, learned = after(well(), told("full"), told("failed timeout"))
    assert (
        write_summary_line(report)
        == "orders: recovered (full for 1m, failed timeout for 1m), slots 40/97 → 39/97"
    )
    assert len(learned.over) == 2


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    later = KnownIssue(key=ORDERS, kind="full", since=NOW + 60, at=NOW + 60)
    report, _ = after(well(), later)
    assert report.targets[0].recovered == (Recovery(kind="full", seconds=0.0),)


def test_targets_that_nobody_asked_for_are_left_as_they_were() -> None:
    other = KnownIssue(key=key_of("stock"), kind="full", since=NOW, at=NOW)
    report, learned = compare(a_report(well()), [other], whole=False)
    assert not report.should_notify
    assert learned.over == ()


def test_the_summary_of_a_run_counts_what_was_told_before() -> None:
    report = a_report(
        well(Outcome.TERMINATED), stock(FAILED), well(name="quiet", key=key_of("quiet"))
    )
    known = KnownIssue(key=key_of("stock"), kind="failed timeout", since=NOW, at=NOW)
    found, _ = compare(report, [known])
    assert (
        write_summary_line(found)
        == "orders: 1 session terminated, slots 40/97 → 39/97; 1 told before; 1 quiet"
    )


def test_without_news_the_summary_says_what_is_still_wrong() -> None:
    report, _ = after(FAILED, told("failed timeout"))
    assert write_summary_line(report) == "orders: failed, it is so"


def test_what_was_told_before_makes_other_news_no_worse() -> None:
    full = stock(TROUBLES["full"])
    report = a_report(well(Outcome.TERMINATED), full)
    told_before, _ = compare(
        report, [KnownIssue(key=key_of("stock"), kind="full", since=NOW, at=NOW)]
    )
    assert (report.severity, told_before.severity) == ("critical", "info")


def test_a_target_that_takes_the_name_of_another_hides_no_trouble_of_it() -> None:
    thief = in_trouble(TargetStatus.FULL, "53300", key=key_of("thief"))
    _, learned = compare(a_report(thief), ())
    report, _ = compare(a_report(in_trouble(TargetStatus.FULL, "53300")), learned.told)
    assert report.should_notify
    assert report.is_critical


def test_a_target_keeps_its_memory_when_its_name_changes() -> None:
    report, _ = after(replace(FAILED, name="renamed"), told("failed timeout"))
    assert not report.should_notify


def test_each_instance_of_a_secret_has_its_own_memory() -> None:
    first, second = (well(key=key_of("orders", each)) for each in ("orders-1", "orders-2"))
    full = replace(TROUBLES["full"], key=key_of("orders", "orders-2"))
    known = KnownIssue(key=key_of("orders", "orders-1"), kind="full", since=NOW - 60, at=NOW)
    assert compare(a_report(first, full), [known])[0].is_critical
    found, _ = compare(a_report(first, second), [known])
    assert [len(target.recovered) for target in found.targets] == [1, 0]


def test_the_memory_of_an_instance_outlasts_a_secret_that_cannot_be_read() -> None:
    known = KnownIssue(key=key_of("orders", "orders-1"), kind="full", since=NOW - 60, at=NOW)
    unreadable = in_trouble(TargetStatus.FAILED, "secret", key=TargetKey("orders"))
    report, learned = after(unreadable, known)
    assert report.should_notify
    assert learned.over == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("orders", f"{SECRETS}:orders-A1b2C3"),
        (f"{SECRETS}:orders", f"{SECRETS}:orders-A1b2C3"),
        ("orders-backup", f"{SECRETS}:orders-backup-A1b2C3"),
        ("rds!db-1234", f"{SECRETS}:rds!db-1234-A1b2C3"),
    ],
)
def test_a_secret_is_the_same_by_its_name_and_by_its_arn(one: str, other: str) -> None:
    assert to_stable_key(TargetKey(one), FUNCTION) == to_stable_key(TargetKey(other), FUNCTION)
    known = KnownIssue(
        key=to_stable_key(TargetKey(one), FUNCTION), kind="failed secret", since=NOW - 60, at=NOW
    )
    report, _ = after(well(key=TargetKey(other)), known)
    assert [each.kind for each in report.targets[0].recovered] == ["failed secret"]


@pytest.mark.parametrize(
    "other",
    [
        f"{SECRETS.replace('123456789012', '210987654321')}:orders-A1b2C3",
        f"{SECRETS.replace('eu-west-1', 'us-east-1')}:orders-A1b2C3",
        f"{SECRETS.replace('arn:aws:', 'arn:aws-cn:')}:orders-A1b2C3",
        f"{SECRETS}:orders-backup-A1b2C3",
    ],
)
def test_secrets_of_other_accounts_regions_and_names_are_told_apart(other: str) -> None:
    assert to_stable_key(TargetKey("orders"), FUNCTION) != to_stable_key(TargetKey(other), FUNCTION)
