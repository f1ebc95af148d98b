from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from session_reaper.policy.enums import Mode
from session_reaper.report.headline import write_summary_line
from session_reaper.report.known_issues import (
    MOST_UNDELIVERED,
    KnownIssue,
    StateUpdate,
    compare_with_known,
    mark_undelivered,
    to_stable_key,
    with_stable_keys,
)
from session_reaper.report.model import (
    FailedSecret,
    Failure,
    IssueKey,
    IssueKind,
    Outcome,
    Recovery,
    Report,
    SessionResult,
    TargetReport,
    TargetStatus,
)
from session_reaper.targets.target import TargetKey

from tests.builders import a_decision, a_report, a_result, a_session, a_target_report, some_slots

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

NOW = 1_795_600_000.0
HOUR = 3600.0
FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:session-reaper"
SECRETS = "arn:aws:secretsmanager:eu-west-1:123456789012:secret"


def compare(
    report: Report, known: Collection[KnownIssue], *, now: float = NOW, covers_all: bool = True
) -> tuple[Report, StateUpdate]:
    stable = with_stable_keys(report, FUNCTION)
    return compare_with_known(stable, known, now, HOUR, covers_all=covers_all)


def key_of(name: str, instance: str = "") -> TargetKey:
    """The key under which a secret of the function's own account and region is stored."""
    return TargetKey(f"{SECRETS}:{name}", instance)


ORDERS = key_of("orders")


def stock(report: TargetReport) -> TargetReport:
    return replace(report, name="stock", key=key_of("stock"))


def make_failure(status: TargetStatus, code: str = "timeout", **overrides: object) -> TargetReport:
    failure = Failure(code=code, cause="it is so", hint="fix it")
    values: dict[str, object] = {"name": "orders", "key": ORDERS, "status": status}
    values["error"] = failure
    return TargetReport(**values | overrides)  # type: ignore[arg-type] # a table


def make_healthy(*outcomes: Outcome, **overrides: object) -> TargetReport:
    results = [a_result(outcome, pid=pid) for pid, outcome in enumerate(outcomes, start=1)]
    return a_target_report(
        *results, **{"key": ORDERS, "slots": some_slots(used=40), "used_after": 39} | overrides
    )


def issue(kind: IssueKind, *detail: str) -> IssueKey:
    return IssueKey(kind, detail)


TIMEOUT = issue(IssueKind.FAILED, "timeout")
UNREADABLE = issue(IssueKind.FAILED, "secret")
LINGERING_7 = issue(IssueKind.LINGERING, "7")
FULL = issue(IssueKind.FULL)


def make_known_issue(
    key: IssueKey,
    ago: float = 60.0,
    *,
    since: float | None = None,
    target: TargetKey = ORDERS,
) -> KnownIssue:
    return KnownIssue(target=target, key=key, since=NOW - (since or ago), reported_at=NOW - ago)


def run_after(
    target: TargetReport, *known: KnownIssue, mode: Mode = Mode.ENFORCE
) -> tuple[Report, StateUpdate]:
    return compare(a_report(target, mode=mode), known)


FAILED = make_failure(TargetStatus.FAILED)
BREAKER = make_failure(TargetStatus.BREAKER, "breaker", slots=some_slots(used=40))
OBSERVED = issue(IssueKind.WOULD_TERMINATE, "idle-in-transaction", "app")
ISSUES = {
    TIMEOUT: FAILED,
    FULL: make_failure(TargetStatus.FULL, "53300"),
    issue(IssueKind.BLIND): make_failure(
        TargetStatus.BLIND, "42501", slots=some_slots(used=40), used_after=40
    ),
    issue(IssueKind.BREAKER): BREAKER,
    issue(IssueKind.LINGERING, "1"): make_healthy(Outcome.LINGERING),
    issue(IssueKind.DENIED): make_healthy(Outcome.DENIED),
    OBSERVED: make_healthy(Outcome.WOULD_TERMINATE),
    issue(IssueKind.SPARED): make_healthy(Outcome.SPARED),
    issue(IssueKind.FALLBACK): make_healthy(fallback_secret="master"),  # noqa: S106 -- a name
    issue(IssueKind.EXHAUSTED): a_target_report(key=ORDERS),
}
PASSING = [OBSERVED, issue(IssueKind.SPARED), issue(IssueKind.DENIED)]
LASTING = [key for key in ISSUES if key not in PASSING]


def ids(key: IssueKey) -> str:
    return key.kind


@pytest.mark.parametrize("key", ISSUES, ids=ids)
def test_an_issue_is_news_when_it_begins_and_is_known_from_then_on(key: IssueKey) -> None:
    report, update = run_after(ISSUES[key])
    assert report.should_notify
    assert update.reported == (KnownIssue(target=ORDERS, key=key, since=NOW, reported_at=NOW),)


@pytest.mark.parametrize("key", ISSUES, ids=ids)
def test_a_known_issue_is_not_news_until_it_is_time_to_remind(key: IssueKey) -> None:
    report, update = run_after(ISSUES[key], make_known_issue(key, HOUR - 1))
    assert not report.should_notify
    assert update.reported == update.ended == ()


@pytest.mark.parametrize("key", ISSUES, ids=ids)
def test_a_known_issue_is_news_again_after_a_while_and_keeps_its_age(key: IssueKey) -> None:
    report, update = run_after(ISSUES[key], make_known_issue(key, HOUR, since=5 * HOUR))
    assert report.should_notify
    assert update.reported == (
        KnownIssue(
            target=ORDERS,
            key=key,
            since=NOW - 5 * HOUR,
            reported_at=NOW,
            previously=NOW - HOUR,
        ),
    )


@pytest.mark.parametrize("key", LASTING, ids=ids)
def test_the_end_of_an_issue_is_news_once(key: IssueKey) -> None:
    known = make_known_issue(key, 60, since=1503)
    report, update = run_after(make_healthy(), known)
    assert report.targets[0].recovered == (Recovery(issue=key, seconds=1503.0),)
    assert report.should_notify
    assert update.ended == (known,)


@pytest.mark.parametrize("key", PASSING, ids=ids)
def test_that_no_session_matches_any_more_is_not_news(key: IssueKey) -> None:
    report, update = run_after(make_healthy(), make_known_issue(key))
    assert not report.should_notify
    assert update.ended == ()


@pytest.mark.parametrize(
    ("rule", "role", "other_rule", "other_role"),
    [
        ("a b", "c", "a", "b c"),
        ("a", "b", "a", "c"),
        ("a", "b", "c", "b"),
        ("a%20b", "c", "a b", "c"),
    ],
)
def test_an_observed_rule_and_role_do_not_hide_another_rule_and_role(
    rule: str, role: str, other_rule: str, other_role: str
) -> None:
    decision = a_decision(a_session(role=role), rule=rule)
    result = SessionResult(decision=decision, outcome=Outcome.WOULD_TERMINATE)
    target = replace(make_healthy(), results=(result,))
    known = make_known_issue(issue(IssueKind.WOULD_TERMINATE, other_rule, other_role))
    assert run_after(target, known)[0].should_notify
    same = make_known_issue(issue(IssueKind.WOULD_TERMINATE, rule, role))
    assert not run_after(target, same)[0].should_notify


def test_the_end_of_an_issue_is_news_even_if_it_was_reported_long_ago() -> None:
    report, _ = run_after(make_healthy(), make_known_issue(FULL, 3 * HOUR, since=9 * HOUR))
    assert report.targets[0].recovered == (Recovery(issue=FULL, seconds=9 * HOUR),)


def test_another_issue_of_the_same_target_is_news() -> None:
    report, _ = run_after(make_failure(TargetStatus.FAILED, "28P01"), make_known_issue(TIMEOUT))
    assert report.should_notify


def test_the_same_issue_of_another_target_is_news() -> None:
    report, _ = run_after(stock(FAILED), make_known_issue(TIMEOUT))
    assert report.should_notify


@pytest.mark.parametrize("outcome", [Outcome.TERMINATED, Outcome.CANCELLED])
def test_terminated_and_cancelled_sessions_are_always_news(outcome: Outcome) -> None:
    report, update = run_after(make_healthy(outcome), make_known_issue(issue(IssueKind.DENIED)))
    assert report.should_notify
    assert update.reported == ()


def test_a_known_lingering_session_does_not_hide_a_termination() -> None:
    report, _ = run_after(
        make_healthy(Outcome.LINGERING, Outcome.TERMINATED),
        make_known_issue(issue(IssueKind.LINGERING, "1")),
    )
    assert report.should_notify


def test_an_escaped_session_is_not_news() -> None:
    report, update = run_after(make_healthy(Outcome.ESCAPED))
    assert not report.should_notify
    assert update.reported == ()


@pytest.mark.parametrize(
    "key",
    [
        issue(IssueKind.LINGERING, "7"),
        issue(IssueKind.DENIED),
        issue(IssueKind.BREAKER),
        issue(IssueKind.FAILED, "28P01"),
        issue(IssueKind.FALLBACK),
    ],
    ids=ids,
)
def test_no_issue_ends_while_the_target_is_not_reached(key: IssueKey) -> None:
    report, update = run_after(FAILED, make_known_issue(key), make_known_issue(TIMEOUT))
    assert not report.should_notify
    assert update.ended == ()


def test_while_the_breaker_is_tripped_no_session_is_known_to_be_gone() -> None:
    _, update = run_after(BREAKER, make_known_issue(LINGERING_7))
    assert update.ended == ()


def test_a_session_that_is_condemned_again_is_not_gone() -> None:
    _, update = run_after(
        make_healthy(Outcome.SPARED), make_known_issue(issue(IssueKind.LINGERING, "1"))
    )
    assert update.ended == ()


def test_another_lingering_session_is_news() -> None:
    report, _ = run_after(make_healthy(Outcome.LINGERING), make_known_issue(LINGERING_7))
    assert report.should_notify
    assert [each.issue for each in report.targets[0].recovered] == [LINGERING_7]


def test_a_leak_under_another_rule_is_news_in_observe_mode() -> None:
    report, _ = run_after(
        make_healthy(Outcome.WOULD_TERMINATE),
        make_known_issue(issue(IssueKind.WOULD_TERMINATE, "blockers", "app")),
    )
    assert report.should_notify


def test_a_secret_that_fails_with_another_error_has_not_recovered() -> None:
    known = make_known_issue(issue(IssueKind.SECRET, "backup", "28P01"))
    failure = Failure(code="timeout", cause="it is so", hint="fix it")
    failing = make_healthy(failed_secrets=(FailedSecret("backup", failure),))
    report, update = run_after(failing, known)
    assert report.targets[0].recovered == ()
    assert update.ended == ()
    report, _ = run_after(make_healthy(failed_secrets=(FailedSecret("other", failure),)), known)
    assert [each.issue for each in report.targets[0].recovered] == [known.key]


def test_a_server_that_stays_almost_full_is_not_reported_in_every_run() -> None:
    brink = make_healthy(slots=some_slots(used=96), used_after=96)
    report, update = run_after(brink, make_known_issue(issue(IssueKind.EXHAUSTED)))
    assert not report.should_notify
    assert update.ended == ()


def test_the_end_of_a_secret_s_issue_is_reported_for_its_target() -> None:
    known = make_known_issue(UNREADABLE, target=key_of("prod/orders"))
    report, update = compare(a_report(make_healthy(key=key_of("prod/orders", "orders-1"))), [known])
    assert (
        write_summary_line(report) == "orders: recovered (error secret for 1m), slots 40/97 → 39/97"
    )
    assert update.ended == (known,)


def test_an_issue_of_a_secret_lasts_while_any_of_its_targets_has_it() -> None:
    report, update = compare(a_report(FAILED, make_healthy()), [make_known_issue(TIMEOUT)])
    assert not report.should_notify
    assert update.ended == ()


def test_issues_of_a_removed_target_are_forgotten_silently() -> None:
    other = make_known_issue(FULL, target=key_of("stock"))
    report, update = run_after(make_healthy(), other)
    assert not report.should_notify
    assert update.ended == (other,)


def test_an_undelivered_summary_is_reported_by_the_next_run() -> None:
    lost = mark_undelivered(a_report(make_healthy(Outcome.TERMINATED)), (), NOW)
    report, update = run_after(make_healthy(), *lost.reported)
    assert report.should_notify
    assert report.undelivered == ("orders: 1 session terminated, slots 40/97 → 39/97",)
    assert write_summary_line(report).endswith("; 1 undelivered from earlier runs")
    assert update.ended == lost.reported


def run_failed_publishes(reports: Sequence[Report]) -> set[KnownIssue]:
    """Return the state after these runs, none of which could publish its summary."""
    known: set[KnownIssue] = set()
    for number, report in enumerate(reports):
        now = NOW + 300 * number
        found, _ = compare(replace(report, run_id=f"r{number}"), known, now=now)
        update = mark_undelivered(found, known, now)
        known = known.difference(update.ended).union(update.reported)
    return known


def test_however_many_publishes_fail_the_state_keeps_the_newest_few_and_their_number() -> None:
    number = 2_000
    lost = [a_report(make_healthy(Outcome.TERMINATED, name=f"t{n}")) for n in range(number)]
    known = run_failed_publishes(lost)
    assert len(known) == MOST_UNDELIVERED
    report, update = run_after(make_healthy(), *known)
    names = [line.partition(":")[0] for line in report.undelivered]
    assert names == ["t1999", "t1998", "t1997", "t1996", "t1995"]
    assert write_summary_line(report).endswith(f"; {number} undelivered from earlier runs")
    assert set(update.ended) == known


def test_items_that_an_earlier_release_left_are_forgotten_once_a_newer_one_counts_them() -> None:
    left = {
        make_known_issue(
            issue(IssueKind.UNDELIVERED, "orders: …"), ago, target=TargetKey(f"run {ago}")
        )
        for ago in range(1, 1_101)
    }
    update = mark_undelivered(a_report(make_healthy(Outcome.TERMINATED)), left, NOW)
    known = left.difference(update.ended).union(update.reported)
    assert len(known) == MOST_UNDELIVERED
    report, _ = run_after(make_healthy(), *known)
    assert write_summary_line(report).endswith("; 1101 undelivered from earlier runs")


def test_quiet_runs_that_cannot_publish_do_not_replace_a_termination() -> None:
    runs = [make_healthy(Outcome.TERMINATED), *[make_healthy()] * 20]
    report, _ = run_after(make_healthy(), *run_failed_publishes([a_report(run) for run in runs]))
    assert report.undelivered == ("orders: 1 session terminated, slots 40/97 → 39/97",)
    assert report.undelivered_before == 0


@pytest.mark.parametrize("detail", [(), ("",), ("a", "b"), ("a", "²"), ("a", "-1")])
def test_an_undelivered_item_of_another_form_is_reported_and_forgotten(
    detail: tuple[str, ...],
) -> None:
    known = make_known_issue(issue(IssueKind.UNDELIVERED, *detail))
    report, update = run_after(make_healthy(), known)
    assert len(report.undelivered) == 1
    assert update.ended == (known,)
    assert mark_undelivered(report, [known], NOW).ended == ()


def test_an_issue_reported_in_the_future_hides_nothing() -> None:
    report, _ = run_after(FAILED, make_known_issue(TIMEOUT, -3600))
    assert report.should_notify


def test_in_observe_mode_no_lingering_session_is_known_to_be_gone() -> None:
    _, update = run_after(
        make_healthy(), make_known_issue(issue(IssueKind.LINGERING, "1")), mode=Mode.OBSERVE
    )
    assert update.ended == ()


def test_a_connection_ends_issues_with_connecting_even_if_the_breaker_trips() -> None:
    report, _ = run_after(
        BREAKER, make_known_issue(FULL), make_known_issue(issue(IssueKind.BREAKER))
    )
    assert [each.issue for each in report.targets[0].recovered] == [FULL]


def test_issues_that_end_together_are_reported_together() -> None:
    report, update = run_after(make_healthy(), make_known_issue(FULL), make_known_issue(TIMEOUT))
    assert (
        write_summary_line(report)
        == "orders: recovered (server full for 1m, error timeout for 1m), slots 40/97 → 39/97"
    )
    assert len(update.ended) == 2


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    later = make_known_issue(FULL, -60)
    report, _ = run_after(make_healthy(), later)
    assert report.targets[0].recovered == (Recovery(issue=FULL, seconds=0.0),)


def test_a_run_on_some_targets_leaves_the_issues_of_others() -> None:
    other = make_known_issue(FULL, target=key_of("stock"))
    report, update = compare(a_report(make_healthy()), [other], covers_all=False)
    assert not report.should_notify
    assert update.ended == ()


def test_the_summary_counts_targets_with_known_issues() -> None:
    report = a_report(
        make_healthy(Outcome.TERMINATED),
        stock(FAILED),
        make_healthy(name="quiet", key=key_of("quiet")),
    )
    known = make_known_issue(TIMEOUT, target=key_of("stock"))
    found, _ = compare(report, [known])
    assert (
        write_summary_line(found)
        == "orders: 1 session terminated, slots 40/97 → 39/97; 1 with known issues; 1 quiet"
    )


def test_without_news_the_summary_has_the_known_issues() -> None:
    report, _ = run_after(FAILED, make_known_issue(TIMEOUT))
    assert write_summary_line(report) == "orders: failed, it is so"


def test_known_issues_do_not_raise_the_severity_of_other_news() -> None:
    full = stock(ISSUES[FULL])
    report = a_report(make_healthy(Outcome.TERMINATED), full)
    repeated, _ = compare(report, [make_known_issue(FULL, target=key_of("stock"))])
    assert (report.severity, repeated.severity) == ("critical", "info")


def test_a_target_that_takes_another_s_name_hides_none_of_its_issues() -> None:
    thief = make_failure(TargetStatus.FULL, "53300", key=key_of("thief"))
    _, update = compare(a_report(thief), ())
    report, _ = compare(a_report(make_failure(TargetStatus.FULL, "53300")), update.reported)
    assert report.should_notify
    assert report.is_critical


def test_a_renamed_target_keeps_its_known_issues() -> None:
    report, _ = run_after(replace(FAILED, name="renamed"), make_known_issue(TIMEOUT))
    assert not report.should_notify


def test_each_instance_of_a_secret_has_its_own_issues() -> None:
    first, second = (make_healthy(key=key_of("orders", each)) for each in ("orders-1", "orders-2"))
    full = replace(ISSUES[FULL], key=key_of("orders", "orders-2"))
    known = make_known_issue(FULL, target=key_of("orders", "orders-1"))
    assert compare(a_report(first, full), [known])[0].is_critical
    found, _ = compare(a_report(first, second), [known])
    assert [len(target.recovered) for target in found.targets] == [1, 0]


def test_issues_of_an_instance_last_while_its_secret_cannot_be_read() -> None:
    known = make_known_issue(FULL, target=key_of("orders", "orders-1"))
    unreadable = make_failure(TargetStatus.FAILED, "secret", key=TargetKey("orders"))
    report, update = run_after(unreadable, known)
    assert report.should_notify
    assert update.ended == ()


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
    known = make_known_issue(UNREADABLE, target=to_stable_key(TargetKey(one), FUNCTION))
    report, _ = run_after(make_healthy(key=TargetKey(other)), known)
    assert [each.issue for each in report.targets[0].recovered] == [UNREADABLE]


@pytest.mark.parametrize(
    "other",
    [
        f"{SECRETS.replace('123456789012', '210987654321')}:orders-A1b2C3",
        f"{SECRETS.replace('eu-west-1', 'us-east-1')}:orders-A1b2C3",
        f"{SECRETS.replace('arn:aws:', 'arn:aws-cn:')}:orders-A1b2C3",
        f"{SECRETS}:orders-backup-A1b2C3",
    ],
)
def test_secrets_of_other_accounts_regions_and_names_are_different(other: str) -> None:
    assert to_stable_key(TargetKey("orders"), FUNCTION) != to_stable_key(TargetKey(other), FUNCTION)


def test_an_issue_that_two_secrets_of_one_server_had_recovers_once() -> None:
    both = [
        KnownIssue(target=target, key=issue(IssueKind.FULL), since=NOW - age, reported_at=NOW - age)
        for target, age in ((ORDERS, 60.0), (key_of("billing"), 90.0))
    ]
    merged = make_healthy(also=("billing",), also_keys=(key_of("billing"),))
    report, update = compare(a_report(merged), both)
    assert report.targets[0].recovered == (Recovery(issue=issue(IssueKind.FULL), seconds=90.0),)
    assert update.ended == tuple(both)
