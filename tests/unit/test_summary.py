from __future__ import annotations

import json
import re
from itertools import count

import pytest
from session_reaper.policy import Mode
from session_reaper.report import Advice, Failure, Fate, Outcome, TargetReport, TargetStatus
from session_reaper.sessions import Waiter
from session_reaper.summary import MAX_SUBJECT, summarize

from tests.builders import a_decision, a_fate, a_report, a_session, a_target_report, some_slots

SNS_BYTES = 262_144
LONGEST_NAME = "名" * 21  # 63 bytes, all that PostgreSQL keeps of a name
HOSTILE = "\n\r\t\0\x1b\x7f\x85\u00a0\u200b\u202e\u2028\ud800"


def message_bytes(body: str) -> int:
    """What SNS counts of a body, as sns.py sends it."""
    return len(json.dumps({"default": body}, ensure_ascii=False).encode())


def unreached(name: str, status: TargetStatus = TargetStatus.FAILED) -> TargetReport:
    return a_target_report(
        name=name,
        slots=None,
        used_after=None,
        status=status,
        error=Failure(
            code="28P01",
            message='signing in to db:5432: password authentication failed for user "reaper"',
            hint="Check username and password in the secret; after a rotation both must be new.",
        ),
    )


def leaking(name: str, applications: int, *, application: str = "app") -> TargetReport:
    pids = count(1)
    fates = (
        a_fate(Outcome.TERMINATED, pid=next(pids), application=f"{application}{n}")
        for n in range(applications)
    )
    return a_target_report(*fates, name=name, used_after=97 - applications)


# -- three situations, to the letter ----------------------------------------------------------------


def test_a_leak_that_was_ended_reads_like_this() -> None:
    def fate(pid: int, application: str, idle: float, outcome: Outcome) -> Fate:
        return a_fate(outcome, pid=pid, application=application, idle_seconds=idle)

    target = a_target_report(
        fate(1, "api", 901.2, Outcome.TERMINATED),
        fate(2, "api", 3600, Outcome.TERMINATED),
        fate(3, "", 400, Outcome.TERMINATED),
        fate(4, "worker", 302, Outcome.ESCAPED),
        used_after=94,
        advice=(
            Advice(
                code="grant-signal-backend",
                message="Role reaper can terminate sessions only of roles it is a member of.",
                sql='GRANT pg_signal_backend TO "reaper";',
            ),
        ),
    )
    summary = summarize(a_report(target))
    first = "orders: 3 sessions terminated, 1 escaped, slots 97/97 → 94/97"
    assert summary.subject == first
    assert summary.body == (
        f"{first}\n"
        "\n"
        "     2 terminated: api as app, rule idle-in-transaction\n"
        "       idle in transaction for 15m 1s to 1h, connected for 1h 6m\n"
        "     1 terminated: (no application name) as app, rule idle-in-transaction\n"
        "       idle in transaction for 6m 40s, connected for 1h 6m\n"
        "     1 escaped: worker as app, rule idle-in-transaction\n"
        "       idle in transaction for 5m 2s, connected for 1h 6m\n"
        "  advice  Role reaper can terminate sessions only of roles it is a member of.\n"
        '          GRANT pg_signal_backend TO "reaper";\n'
        "\n"
        "Run 4f6c, mode enforce.\n"
    )


def test_a_run_over_three_targets_of_which_one_failed_reads_like_this() -> None:
    observed = a_target_report(a_fate(Outcome.WOULD_TERMINATE), name="orders")
    quiet = a_target_report(name="stock", slots=some_slots(used=7), used_after=7)
    report = a_report(quiet, observed, unreached("billing"), mode=Mode.OBSERVE)
    message = 'signing in to db:5432: password authentication failed for user "reaper"'
    assert summarize(report).body == (
        f"billing: failed, {message};"
        " orders: 1 session would be terminated, slots 97/97; 1 quiet\n"
        "\n"
        f"billing: failed, {message}\n"
        "  remedy  Check username and password in the secret; after a rotation both must be new.\n"
        "\n"
        "orders: 1 session would be terminated, slots 97/97\n"
        "     1 would terminate: api as app, rule idle-in-transaction\n"
        "       idle in transaction for 15m 1s, connected for 1h 6m\n"
        "\n"
        "stock: nothing to terminate, slots 7/97\n"
        "\n"
        "Run 4f6c, mode observe.\n"
    )


def test_a_blocker_under_pressure_reads_like_this() -> None:
    waiter = Waiter(pid=7, role="shop", application="checkout", seconds=31)
    session = a_session(waiters=(waiter,), application="import")
    reason = "waited for 31s (blocks_for: 30s), waiting: checkout as shop for 31s"
    decision = a_decision(session, rule="blockers", reason=reason)
    target = a_target_report(
        a_fate(application="import", pid=1),
        Fate(decision=decision, outcome=Outcome.TERMINATED),
        Fate(decision=decision, outcome=Outcome.TERMINATED),
        pressure=("rule tier in force at slots 97/97 (when slots_free: 5): 1 condemned",),
    )
    assert summarize(a_report(target)).body.splitlines()[2:-2] == [
        "  rule tier in force at slots 97/97 (when slots_free: 5): 1 condemned",
        "     2 terminated: import as app, rule blockers",
        "       idle in transaction for 15m 1s, connected for 1h 6m",
        f"       {reason}",
        "     1 terminated: import as app, rule idle-in-transaction",
        "       idle in transaction for 15m 1s, connected for 1h 6m",
    ]


def test_a_tripped_breaker_reads_like_this() -> None:
    message = "the policy condemns 60 of 97 client sessions, more than limits.max_share of 50%"
    target = a_target_report(
        *(a_fate(Outcome.SPARED, pid=pid) for pid in range(60)),
        status=TargetStatus.BREAKER,
        error=Failure(code="breaker", message=message, hint="Mend the rule."),
    )
    first = "orders: breaker, 60 sessions spared, slots 97/97"
    assert summarize(a_report(target)).body == (
        f"{first}\n"
        "\n"
        f"  error   {message}\n"
        "  remedy  Mend the rule.\n"
        "    60 spared: api as app, rule idle-in-transaction\n"
        "       idle in transaction for 15m 1s, connected for 1h 6m\n"
        "\n"
        "Run 4f6c, mode enforce.\n"
    )


# -- the subject ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 60, 98, 99, 100, 255, 10_000])
def test_the_subject_is_never_longer_than_sns_takes(length: int) -> None:
    subject = summarize(a_report(a_target_report(name="n" * length))).subject
    assert 0 < len(subject) <= MAX_SUBJECT < 100


def test_a_subject_that_was_cut_shows_it() -> None:
    assert summarize(a_report(a_target_report(name="n" * 200))).subject == "n" * 98 + "…"


@pytest.mark.parametrize("character", HOSTILE)
def test_no_control_character_gets_into_subject_or_body(character: str) -> None:
    name = f"a{character}b"
    failure = Failure(code=name, message=name, hint=name)
    target = a_target_report(
        Fate(
            decision=a_decision(a_session(application=name, role=name), rule=name),
            outcome=Outcome.TERMINATED,
        ),
        name=name,
        status=TargetStatus.FAILED,
        error=failure,
        advice=(Advice(code=name, message=name, sql=name),),
    )
    for report in (a_report(target), a_report(target, unreached(name))):
        summary = summarize(report)
        assert summary.subject.isprintable()
        assert all(line.isprintable() for line in summary.body.split("\n"))
        summary.body.encode()
        summary.subject.encode()


# -- the body ---------------------------------------------------------------------------------------


def test_the_first_line_of_the_body_says_all_that_the_subject_had_to_leave_out() -> None:
    report = a_report(*(leaking(f"target-{n}", 1) for n in range(3)))
    summary = summarize(report)
    assert summary.subject.endswith("…")
    assert summary.body.split("\n", 1)[0] == report.summary


def test_victims_are_grouped_by_rule_outcome_application_and_role() -> None:
    def fate(rule: str, outcome: Outcome, application: str, role: str) -> Fate:
        session = a_session(application=application, role=role)
        return Fate(decision=a_decision(session, rule=rule), outcome=outcome)

    fates = [
        fate(rule, outcome, application, role)
        for rule in ("r1", "r2")
        for outcome in (Outcome.TERMINATED, Outcome.DENIED)
        for application in ("a1", "a2")
        for role in ("u1",)
        for _ in range(2)
    ]
    body = summarize(a_report(a_target_report(*fates))).body
    groups = re.findall(r"^ +(\d+) (\w+): (\w+) as (\w+), rule (\w+)$", body, re.MULTILINE)
    assert len(groups) == 8
    assert {group[0] for group in groups} == {"2"}


def test_the_largest_group_comes_first() -> None:
    fates = [a_fate(Outcome.TERMINATED, application="small")]
    fates += [a_fate(Outcome.TERMINATED, application="large") for _ in range(3)]
    body = summarize(a_report(a_target_report(*fates))).body
    assert body.index("large") < body.index("small")


def test_a_group_of_several_states_names_them_all() -> None:
    fates = [
        a_fate(Outcome.TERMINATED, state=state, idle_seconds=idle, connected_seconds=100)
        for state, idle in (("idle in transaction", 10), ("idle", 60), ("idle", 20))
    ]
    body = summarize(a_report(a_target_report(*fates))).body
    assert "idle, idle in transaction for 10s to 1m, connected for 1m 40s" in body


def test_a_cut_list_of_groups_says_how_many_groups_and_sessions_were_cut() -> None:
    twice = leaking("orders", 40).fates * 2
    body = summarize(a_report(a_target_report(*twice))).body
    shown = len(re.findall(r"^ +2 terminated: ", body, re.MULTILINE))
    cut = re.search(r"and (\d+) more groups with (\d+) sessions, cut", body)
    assert cut
    assert 0 < shown < 40
    assert shown + int(cut[1]) == 40
    assert 2 * shown + int(cut[2]) == 80


def test_a_cut_list_of_targets_says_how_many_were_cut() -> None:
    names = [f"target-{n:04}" for n in range(300)]
    body = summarize(a_report(*(leaking(name, 12) for name in names))).body
    shown = re.findall(r"^(target-\d+): ", body[body.index("\n") :], re.MULTILINE)
    cut = re.search(r"and (\d+) more targets, cut", body)
    assert cut
    assert 0 < len(shown) < 300
    assert len(set(shown)) + int(cut[1]) == 300


def test_what_fits_is_not_cut() -> None:
    body = summarize(a_report(*(leaking(f"target-{n}", 5) for n in range(50)))).body
    assert "cut" not in body
    assert len(re.findall(r"^target-\d+: ", body, re.MULTILINE)) == 51


def test_targets_in_trouble_are_not_those_that_are_cut() -> None:
    targets = [leaking(f"target-{n:04}", 12) for n in range(300)]
    broken = [unreached("broken-1"), unreached("broken-2", TargetStatus.FULL)]
    body = summarize(a_report(*targets, *broken)).body
    assert re.search(r"^broken-1: failed", body[body.index("\n") :], re.MULTILINE)
    assert re.search(r"^broken-2: full", body[body.index("\n") :], re.MULTILINE)


@pytest.mark.parametrize(
    ("application", "targets", "applications"),
    [
        (LONGEST_NAME, 1000, 1000),
        ("a", 1000, 13),
        ('"\\' * 31, 1000, 13),
        ("\n" * 63, 1000, 13),
        ("😀" * 15, 1000, 13),
    ],
    ids=["longest", "shortest", "escaped", "cleaned", "outside the plane"],
)
def test_a_thousand_targets_with_a_thousand_applications_each_fit_into_a_message(
    application: str, targets: int, applications: int
) -> None:
    one = leaking(LONGEST_NAME * 4, applications, application=application)
    worst = TargetReport(
        name=one.name,
        slots=one.slots,
        used_after=0,
        fates=one.fates,
        status=TargetStatus.FAILED,
        error=Failure(code="XX000", message='"' * 500, hint="\\" * 500),
        advice=(Advice(code="a", message="名" * 500, sql='"' * 500),) * 3,
    )
    summary = summarize(a_report(*[worst] * targets))
    assert SNS_BYTES // 2 < message_bytes(summary.body) + len(summary.subject.encode()) < SNS_BYTES
    assert summary.body.endswith("\nRun 4f6c, mode enforce.\n")


def test_a_run_without_targets_has_a_summary_too() -> None:
    summary = summarize(a_report(mode=Mode.OFF))
    assert summary.subject == "mode is off: no target was looked at"
    assert summary.body == f"{summary.subject}\n\nRun 4f6c, mode off.\n"


def test_no_query_is_in_the_email() -> None:
    target = a_target_report(a_fate(query="select canary from canaries where a = 'canary'"))
    assert "canar" not in summarize(a_report(target)).body


def test_what_was_terminated_is_never_cut_in_favour_of_what_was_spared() -> None:
    killed = a_fate(application="killed", outcome=Outcome.TERMINATED)
    spared = [a_fate(application=f"spared-{n % 20}", outcome=Outcome.SPARED) for n in range(60)]

    body = summarize(a_report(a_target_report(*spared, killed))).body

    assert "1 terminated: killed as" in body
