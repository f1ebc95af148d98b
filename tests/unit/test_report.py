from __future__ import annotations

import json

import pytest
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Mode
from session_reaper.report.document import to_document, to_recordings, truncate_document
from session_reaper.report.headline import write_headline, write_summary_line
from session_reaper.report.model import (
    Advice,
    Failure,
    IssueKey,
    IssueKind,
    Outcome,
    Recovery,
    Report,
    RunStatus,
    SessionResult,
    TargetReport,
    TargetStatus,
)
from session_reaper.sessions.server_facts import Check, Timeout

from tests.builders import (
    a_decision,
    a_policy,
    a_report,
    a_result,
    a_server,
    a_session,
    a_snapshot,
    a_target_report,
    some_results,
    some_slots,
)

OK, FAILED, FULL = TargetStatus.OK, TargetStatus.FAILED, TargetStatus.FULL
BLIND, BREAKER = TargetStatus.BLIND, TargetStatus.BREAKER
UNREACHED = {
    "slots": None,
    "used_after": None,
    "status": FAILED,
    "error": Failure(
        code="dns",
        cause="the name does not resolve",
        hint="Check host.",
        step="connecting to db:5432",
    ),
}


def make_unreached(name: str, status: TargetStatus = FAILED) -> TargetReport:
    return a_target_report(**UNREACHED | {"name": name, "status": status})


# -- one target -------------------------------------------------------------------------------------


def a_quiet_target(*results: SessionResult, **overrides: object) -> TargetReport:
    slots = some_slots(used=40)
    return a_target_report(*results, **{"slots": slots, "used_after": 40} | overrides)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            a_target_report(*some_results(12, Outcome.TERMINATED), used_after=85),
            "orders: 12 sessions terminated, slots 97/97 → 85/97",
        ),
        (
            a_target_report(a_result(Outcome.TERMINATED), used_after=96),
            "orders: 1 session terminated, slots 97/97 → 96/97",
        ),
        (
            a_target_report(*some_results(2, Outcome.WOULD_TERMINATE)),
            "orders: 2 sessions would be terminated, slots 97/97",
        ),
        (
            a_target_report(*some_results(3, Outcome.DENIED)),
            "orders: 3 sessions denied, slots 97/97",
        ),
        (
            a_target_report(*some_results(3, Outcome.ESCAPED)),
            "orders: 3 sessions escaped, slots 97/97",
        ),
        (
            a_target_report(*some_results(3, Outcome.CANCELLED)),
            "orders: 3 sessions cancelled, slots 97/97",
        ),
        (
            a_target_report(
                *some_results(2, Outcome.SPARED),
                *some_results(3, Outcome.ESCAPED),
                *some_results(4, Outcome.DENIED),
                *some_results(5, Outcome.LINGERING),
                *some_results(6, Outcome.TERMINATED),
                used_after=91,
            ),
            (
                "orders: 6 sessions terminated, 5 lingering, 4 denied, 3 escaped, 2 spared,"
                " slots 97/97 → 91/97"
            ),
        ),
        (a_target_report(), "orders: every slot in use, nothing to terminate, slots 97/97"),
        (
            a_target_report(slots=some_slots(used=0), used_after=0),
            "orders: nothing to terminate, slots 0/97",
        ),
        (
            a_target_report(*some_results(60, Outcome.SPARED), status=BREAKER),
            "orders: breaker, 60 sessions spared, slots 97/97",
        ),
        (
            a_target_report(*some_results(2, Outcome.TERMINATED), status=FAILED, used_after=95),
            "orders: failed, 2 sessions terminated, slots 97/97 → 95/97",
        ),
        (a_target_report(status=FAILED), "orders: failed, slots 97/97"),
        (make_unreached("orders"), "orders: failed, the name does not resolve"),
        (make_unreached("orders", FULL), "orders: full, the name does not resolve"),
        (make_unreached("orders", BLIND), "orders: blind, the name does not resolve"),
    ],
)
def test_the_headline_of_a_target_says_what_happened(target: TargetReport, line: str) -> None:
    assert write_headline(target) == line


@pytest.mark.parametrize("outcome", Outcome)
def test_no_outcome_is_missing_from_the_headline(outcome: Outcome) -> None:
    line = write_headline(a_target_report(a_result(outcome)))
    assert "nothing to terminate" not in line
    assert "1 session " in line


@pytest.mark.parametrize(
    ("target", "news"),
    [
        (a_quiet_target(), False),
        (a_quiet_target(advice=(Advice(code="a", message="b", sql=None),)), False),
        (a_quiet_target(a_result(Outcome.ESCAPED)), False),
        (a_target_report(), True),  # nothing to terminate, and no slot left
        (a_target_report(a_result(Outcome.TERMINATED)), True),
        (a_target_report(a_result(Outcome.WOULD_TERMINATE)), True),
        (a_target_report(a_result(Outcome.DENIED)), True),
        (a_target_report(a_result(Outcome.LINGERING)), True),
        (a_target_report(a_result(Outcome.ESCAPED), a_result(Outcome.LINGERING)), True),
        (a_target_report(status=BREAKER), True),
        (make_unreached("orders"), True),
        (make_unreached("orders", FULL), True),
        (make_unreached("orders", BLIND), True),
    ],
)
def test_only_changes_and_new_issues_are_news(target: TargetReport, *, news: bool) -> None:
    assert target.should_notify is news
    assert a_report(a_quiet_target(name="quiet"), target).should_notify is news


# -- the run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "status", "failed"),
    [
        ([], RunStatus.OK, 0),
        ([OK], RunStatus.OK, 0),
        ([OK, OK], RunStatus.OK, 0),
        ([OK, FAILED], RunStatus.PARTIAL, 1),
        ([OK, FULL], RunStatus.PARTIAL, 1),
        ([OK, BLIND], RunStatus.PARTIAL, 1),
        ([OK, BREAKER], RunStatus.PARTIAL, 0),
        ([BREAKER], RunStatus.PARTIAL, 0),
        ([BREAKER, FAILED], RunStatus.PARTIAL, 1),
        ([FAILED], RunStatus.FAILED, 1),
        ([FAILED, FULL, BLIND], RunStatus.FAILED, 3),
    ],
)
def test_a_run_is_partial_if_a_target_is_not_ok_and_failed_if_none_was_reached(
    statuses: list[TargetStatus], status: RunStatus, failed: int
) -> None:
    report = a_report(*(a_target_report(status=status) for status in statuses))
    assert report.status is status
    assert report.failed == failed


def make_named(name: str, number: int = 0) -> TargetReport:
    results = some_results(number, Outcome.TERMINATED)
    if not number:
        return a_quiet_target(name=name)
    return a_target_report(*results, name=name, used_after=97 - number)


def make_paused(name: str) -> TargetReport:
    return a_target_report(name=name, status=TargetStatus.PAUSED, slots=None, used_after=None)


@pytest.mark.parametrize(
    ("report", "summary"),
    [
        (
            a_report(make_named("orders", 12)),
            "orders: 12 sessions terminated, slots 97/97 → 85/97",
        ),
        (
            a_report(make_named("a"), make_named("b")),
            "a: nothing to terminate, slots 40/97; 1 quiet",
        ),
        (
            a_report(make_named("a"), make_paused("b"), make_paused("c"), make_named("d")),
            "a: nothing to terminate, slots 40/97; 2 paused; 1 quiet",
        ),
        (a_report(make_paused("a"), make_paused("b")), "a: paused, not woken; 1 paused"),
        (
            a_report(make_named("a"), make_named("b", 1), make_named("c")),
            "b: 1 session terminated, slots 97/97 → 96/97; 2 quiet",
        ),
        (
            a_report(make_named("a", 1), make_unreached("b"), make_named("c", 2)),
            (
                "b: failed, the name does not resolve;"
                " c: 2 sessions terminated, slots 97/97 → 95/97;"
                " a: 1 session terminated, slots 97/97 → 96/97"
            ),
        ),
        (
            a_report(*(make_named(f"t{n}", n) for n in range(1, 7)), make_named("q")),
            (
                "t6: 6 sessions terminated, slots 97/97 → 91/97;"
                " t5: 5 sessions terminated, slots 97/97 → 92/97;"
                " t4: 4 sessions terminated, slots 97/97 → 93/97;"
                " 3 more to report; 1 quiet"
            ),
        ),
        (a_report(), "no targets"),
        (a_report(mode=Mode.OFF), "mode is off: no target was examined"),
    ],
)
def test_the_summary_says_what_happened_where_issues_first(report: Report, summary: str) -> None:
    assert write_summary_line(report) == summary


@pytest.mark.parametrize("line_break", ["\n", "\r", "\x0b", "\x85", "\u2028"])
def test_the_summary_is_one_line_whatever_names_and_messages_hold(line_break: str) -> None:
    error = Failure(code="XX000", cause=f"first{line_break}second", hint="")
    for target in (
        a_target_report(name=f"ord{line_break}ers"),
        a_target_report(**UNREACHED | {"error": error}),
    ):
        assert len(write_summary_line(a_report(target)).splitlines()) == 1


# -- the return value -------------------------------------------------------------------------------


def test_the_document_has_exactly_the_keys_of_the_contract() -> None:
    target = a_target_report(
        a_result(Outcome.TERMINATED, query="select * from orders where id = 42"),
        secret="prod/orders",  # noqa: S106 -- its name
        also=("prod/billing",),
        used_after=85,
        status=FAILED,
        error=Failure(code="53300", cause="m", hint="h", step="s"),
        advice=(Advice(code="set-timeout", message="am", sql="ALTER ROLE …"),),
    )
    document = to_document(a_report(target), verdict="ACTION NEEDED: …", steps=["first", "second"])
    assert document == {
        "run_id": "4f6c",
        "mode": "enforce",
        "status": "failed",
        "verdict": "ACTION NEEDED: …",
        "steps": ["first", "second"],
        "summary": "orders: failed, 1 session terminated, slots 97/97 → 85/97",
        "totals": {
            "targets": 1,
            "failed": 1,
            "terminated": 1,
            "would_terminate": 0,
            "cancelled": 0,
            "escaped": 0,
            "denied": 0,
            "lingering": 0,
            "spared": 0,
            "protected": 0,
        },
        "targets": [
            {
                "name": "orders",
                "secret": "prod/orders",
                "also": ["prod/billing"],
                "status": "failed",
                "error": {"code": "53300", "message": "s: m", "hint": "h"},
                "slots": {
                    "max": 100,
                    "reserved": 3,
                    "usable": 97,
                    "used_before": 97,
                    "used_after": 85,
                },
                "sessions": [
                    {
                        "pid": 4711,
                        "role": "app",
                        "database": "orders",
                        "application": "api",
                        "client": "10.0.0.7",
                        "state": "idle in transaction",
                        "idle_seconds": 901.2,
                        "transaction_seconds": 905.0,
                        "connected_seconds": 4000.1,
                        "rule": "idle-in-transaction",
                        "reason": "idle in transaction for 15m 1s (idle_for: 5m)",
                        "outcome": "terminated",
                        "query": "select * from orders where id = ?",
                    }
                ],
                "protected": [],
                "advice": [{"code": "set-timeout", "message": "am", "sql": "ALTER ROLE …"}],
            }
        ],
    }


def test_pressure_is_in_the_document_only_if_it_put_a_rule_in_force() -> None:
    quiet, pressed = a_target_report(), a_target_report(pressure=("rule tier in force …",))
    document = to_document(a_report(quiet, pressed))
    assert "pressure" not in document["targets"][0]
    assert document["targets"][1]["pressure"] == ["rule tier in force …"]


def make_recorded(query: str, name: str = "orders") -> TargetReport:
    sessions = (a_session(pid=pid, query=query) for pid in range(1, 5001))
    return a_target_report(name=name, recorded=a_snapshot(*sessions))


def test_a_recording_too_large_for_lambda_is_an_error_that_says_what_to_do() -> None:
    recorded = make_recorded("select 1")
    assert len(to_recordings(a_report(recorded))["orders"]["sessions"]) == 5000
    long = make_recorded("select " + "a" * 600, "long")
    with pytest.raises(
        ConfigurationError, match=r"^event\.record: the snapshots have .* name one target$"
    ):
        to_recordings(a_report(recorded, long))


def test_the_summary_of_a_recording_says_recorded() -> None:
    report = a_report(make_recorded("select 1"))
    assert write_summary_line(report) == "orders: recorded, slots 97/97"


def test_a_recovery_has_the_kind_and_the_detail_of_its_issue() -> None:
    recovery = Recovery(issue=IssueKey(IssueKind.FAILED, ("timeout",)), seconds=60.0)
    document = to_document(a_report(a_quiet_target(recovered=(recovery,))))
    assert document["targets"][0]["recovered"] == [
        {"kind": "failed", "detail": ["timeout"], "seconds": 60.0}
    ]


def test_unknown_values_are_null() -> None:
    session = a_session(client=None, transaction_seconds=None, application="", database="")
    result = a_result()
    result = type(result)(decision=a_decision(session), outcome=Outcome.DENIED)
    document = to_document(a_report(a_target_report(result), make_unreached("billing")))
    reached, missed = document["targets"]
    assert reached["error"] is None
    assert reached["advice"] == []
    (shown,) = reached["sessions"]
    assert (shown["client"], shown["transaction_seconds"]) == (None, None)
    assert (shown["application"], shown["database"]) == ("", "")
    assert (missed["slots"], missed["sessions"]) == (None, [])


def test_totals_count_over_all_targets() -> None:
    report = a_report(
        a_target_report(*some_results(2, Outcome.TERMINATED), *some_results(1, Outcome.DENIED)),
        a_target_report(*some_results(3, Outcome.TERMINATED), *some_results(4, Outcome.LINGERING)),
        a_target_report(*some_results(5, Outcome.ESCAPED), *some_results(6, Outcome.SPARED)),
        a_target_report(*some_results(7, Outcome.WOULD_TERMINATE)),
        make_unreached("billing"),
    )
    totals = to_document(report)["totals"]
    assert totals["targets"] == 5
    assert totals["failed"] == 1
    assert totals["terminated"] == 5
    assert totals["denied"] == 1
    assert totals["lingering"] == 4
    assert totals["escaped"] == 5
    assert totals["would_terminate"] == 7
    assert totals["cancelled"] == 0


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("status", TargetStatus)
@pytest.mark.parametrize("mode", Mode)
def test_the_document_is_plain_json(outcome: Outcome, status: TargetStatus, mode: Mode) -> None:
    report = a_report(a_target_report(a_result(outcome), status=status), mode=mode)
    document = to_document(report)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["mode"] == mode.name.lower()
    assert "Outcome" not in json.dumps(document)


def test_ages_are_rounded_down_to_a_tenth_of_a_second() -> None:
    result = a_result(idle_seconds=0.123, transaction_seconds=1.26, connected_seconds=86_400.04)
    (shown,) = to_document(a_report(a_target_report(result)))["targets"][0]["sessions"]
    assert shown["idle_seconds"] == 0.1
    assert shown["transaction_seconds"] == 1.2
    assert shown["connected_seconds"] == 86_400.0


@pytest.mark.parametrize("outcome", Outcome)
def test_neither_the_document_nor_any_repr_has_a_literal_of_a_query(outcome: Outcome) -> None:
    query = "update t set s = 'CANARY', n = 31337 /* CANARY */ where k = $$CANARY$$ -- CANARY"
    report = a_report(a_target_report(a_result(outcome, query=query)))
    for text in (json.dumps(to_document(report)), repr(report), str(report)):
        assert "CANARY" not in text
        assert "31337" not in text


def test_the_document_shows_a_query_in_full_where_the_policy_says_so() -> None:
    query = "select 'it''s',\n\t31337 -- why"
    target = a_target_report(a_result(query=query), policy=a_policy(queries="full"))
    (shown,) = to_document(a_report(target))["targets"][0]["sessions"]
    assert shown["query"] == query
    assert "31337" not in repr(target) + write_headline(target)


def test_a_full_query_is_truncated_and_has_no_control_characters() -> None:
    def shown(query: str) -> str:
        target = a_target_report(a_result(query=query), policy=a_policy(queries="full"))
        return str(to_document(a_report(target))["targets"][0]["sessions"][0]["query"])

    assert shown("select '\x1b[2J\0\u202e\ud800'") == "select '?[2J???'"
    assert shown("x" * 2000) == "x" * 2000
    assert shown("x" * 2001) == "x" * 1999 + "…"


def test_a_session_has_a_query_id_only_if_the_server_computes_one() -> None:
    results = a_result(query_id="-9223372036854775808"), a_result()
    known, unknown = to_document(a_report(a_target_report(*results)))["targets"][0]["sessions"]
    assert known["query_id"] == "-9223372036854775808"
    assert "query_id" not in unknown


# -- what Lambda can return --------------------------------------------------------------------------


def test_a_document_that_fits_is_returned_unchanged() -> None:
    document = to_document(a_report(a_target_report(*some_results(3, Outcome.TERMINATED))))
    assert truncate_document(document, len(json.dumps(document))) is document


@pytest.mark.parametrize("most", [200_000, 20_000, 3_000])
def test_a_document_that_is_too_long_leaves_out_spared_sessions_first_and_counts_them(
    most: int,
) -> None:
    spared, ended = some_results(400, Outcome.SPARED), some_results(100, Outcome.TERMINATED)
    report = a_report(a_target_report(*spared, *ended), a_target_report(*ended, name="billing"))
    document = to_document(report)
    short = truncate_document(document, most)
    assert len(json.dumps(short)) <= most < len(json.dumps(document))
    assert {**short, "targets": ()} == {**document, "targets": ()}
    for cut, whole in zip(short["targets"], document["targets"], strict=True):
        kept = [session["outcome"] for session in cut["sessions"]]
        assert cut["sessions_left_out"] == len(whole["sessions"]) - len(kept)
        assert "spared" not in kept or kept.count("terminated") == 100


def some_advice(number: int) -> tuple[Advice, ...]:
    return tuple(Advice(code="use-pooler", message="x" * 100, sql=None) for _ in range(number))


@pytest.mark.parametrize("most", [50_000, 2_000])
def test_a_document_that_is_too_long_without_sessions_leaves_out_entries_of_lists(
    most: int,
) -> None:
    timeouts = tuple(
        Timeout(role=f"r{n}", database=None, name="idle_session_timeout", value="0")
        for n in range(400)
    )
    checked = Check(server=a_server(*timeouts), snapshot=a_snapshot())
    ended = some_results(10, Outcome.TERMINATED)
    report = a_report(a_target_report(*ended, advice=some_advice(500), checked=checked))
    short = truncate_document(to_document(report), most)
    assert len(json.dumps(short)) <= most
    (target,) = short["targets"]
    assert (target["sessions"], target["sessions_left_out"]) == ([], 10)
    assert len(target["advice"]) + target["advice_left_out"] == 500
    check = target["check"]
    assert len(check["timeouts"]) + check["timeouts_left_out"] == 400
    assert check["timeouts"] == [
        timeout._asdict() for timeout in timeouts[: len(check["timeouts"])]
    ]


def test_a_document_of_too_many_targets_leaves_out_those_that_are_ok_first() -> None:
    reached = [a_target_report(name=f"ok-{n}", advice=some_advice(2)) for n in range(400)]
    failed = [make_unreached(f"failed-{n}") for n in range(10)]
    document = to_document(a_report(*reached, *failed))
    short = truncate_document(document, 30_000)
    assert len(json.dumps(short)) <= 30_000
    assert [target["name"] for target in short["targets"]][:10] == [each.name for each in failed]
    assert 10 < len(short["targets"]) == 410 - short["targets_left_out"]
    assert short["totals"] == document["totals"]


@pytest.mark.parametrize("most", [1, 100])
def test_what_cannot_be_left_out_stays(most: int) -> None:
    report = a_report(*[make_unreached(f"target-{n}") for n in range(50)])
    short = truncate_document(to_document(report), most)
    assert (short["targets"], short["targets_left_out"]) == ([], 50)


def test_a_document_has_at_most_15000_sessions_and_leaves_out_spared_ones_first() -> None:
    ended, spared = a_result(Outcome.TERMINATED), a_result(Outcome.SPARED)
    of_target = (*[spared] * 10_000, *[ended] * 5_000)
    report = a_report(a_target_report(*of_target), a_target_report(*of_target, name="billing"))
    document = to_document(report)
    assert document["totals"]["terminated"] == 10_000
    for target in document["targets"]:
        outcomes = [session["outcome"] for session in target["sessions"]]
        assert outcomes == ["terminated"] * 5_000 + ["spared"] * 2_500
        assert target["sessions_left_out"] == 7_500


def test_without_time_left_a_document_only_counts_its_sessions() -> None:
    report = a_report(a_target_report(*some_results(3, Outcome.TERMINATED)))
    document = to_document(report, Deadline(0))
    assert document["totals"]["terminated"] == 3
    assert document["targets"][0]["sessions"] == []
    assert document["targets"][0]["sessions_left_out"] == 3
    assert to_document(report, Deadline(60)) == to_document(report)
