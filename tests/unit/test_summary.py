from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from session_reaper.errors import TargetError
from session_reaper.policy.enums import Mode
from session_reaper.report.emergency import instruct_on_full_server
from session_reaper.report.headline import write_summary_line
from session_reaper.report.model import (
    Advice,
    Failure,
    IssueKey,
    IssueKind,
    Outcome,
    Recovery,
    Report,
    RoleSetting,
    SessionResult,
    TargetReport,
    TargetStatus,
    record_error,
)
from session_reaper.sessions.server_facts import Check
from session_reaper.sessions.session import State
from session_reaper.summary.console_links import FunctionLocation, link_to_console
from session_reaper.summary.digest import digest_report
from session_reaper.summary.email import render_email
from session_reaper.summary.groups import mask_client
from session_reaper.summary.message import MAX_SUBJECT, Summary, summarize
from session_reaper.summary.prose import Statement, split_hint
from session_reaper.summary.verdict import choose_verdict
from session_reaper.targets.target import TargetKey

from tests.builders import (
    a_decision,
    a_policy,
    a_report,
    a_result,
    a_rule,
    a_server,
    a_session,
    a_snapshot,
    a_target_report,
    some_slots,
)
from tests.summaries import NAMES, digest_situation, files
from tests.summaries.situations import NOW, PLACE, SITUATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

SNS_BYTES = 262_144
WIDTH = 72
LONGEST_NAME = "名" * 21  # 63 bytes, all that PostgreSQL keeps of a name
HOSTILE = "\n\r\t\0\x1b\x7f\x85\u00a0\u200b\u202e\u2028\ud800"
MARKUP = "*b* _i_ ~s~ `c` <!channel> <@U1> <http://evil|here> & :tada: http://evil"
SCHEMA = json.loads(
    (Path(__file__).parents[1] / "summaries/custom_notification.schema.json").read_text()
)


def summarize_report(
    report: Report, place: FunctionLocation | None = PLACE, now: float = NOW
) -> Summary:
    return summarize(digest_report(report, place), now)


def summarize_targets(*targets: TargetReport, mode: Mode = Mode.ENFORCE) -> Summary:
    return summarize_report(a_report(*targets, mode=mode))


def read_verdict(report: Report) -> str:
    return str(choose_verdict(report))


def message(summary: Summary) -> str:
    """The message as sns.py sends it."""
    forms = {
        "default": summary.email,
        "https": summary.notification,
        "lambda": summary.webhook,
    }
    return json.dumps(forms, ensure_ascii=False)


def size_of(summary: Summary) -> int:
    """The bytes that SNS counts, without the short attributes."""
    lists = (summary.targets, summary.applications, summary.roles)
    names = [json.dumps(each, ensure_ascii=False) for each in lists]
    return len((message(summary) + summary.subject + "".join(names)).encode())


def make_unreached(name: str, status: TargetStatus = TargetStatus.FAILED) -> TargetReport:
    return a_target_report(
        name=name,
        slots=None,
        used_after=None,
        status=status,
        error=Failure(
            code="28P01",
            cause='password authentication failed for user "reaper"',
            step="logging in to db:5432",
            hint="Check username and password in the secret; a rotation may change both.",
        ),
    )


def make_leaking(name: str, applications: int, *, application: str = "app") -> TargetReport:
    pids = count(1)
    results = (
        a_result(Outcome.TERMINATED, pid=next(pids), application=f"{application}{n}")
        for n in range(applications)
    )
    return a_target_report(*results, name=name, used_after=97 - applications)


def groups_in(email: str) -> list[str]:
    """The first line of each group of sessions."""
    return re.findall(r"^  (\d+ sessions? .*)$", email, re.MULTILINE)


# -- ten situations, to the letter ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_situation_reads_as_in_its_files(name: str) -> None:
    intended = "if this is intended: make summaries, and read the difference"
    for path, text in files(name):
        assert path.read_text() == text, intended


@pytest.mark.parametrize("name", NAMES)
def test_every_notification_fits_the_schema_of_amazon_q(name: str) -> None:
    summary = summarize(digest_situation(name), NOW)
    jsonschema.validate(json.loads(summary.notification), SCHEMA)


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_webhook_payload_is_within_slacks_limits(name: str) -> None:
    assert_slack_takes(summarize_report(SITUATIONS[name]()).webhook)


def assert_slack_takes(payload: str) -> None:
    document = json.loads(payload)
    assert set(document) == {"text", "blocks"}
    assert 0 < len(document["blocks"]) <= 50
    header, *sections = document["blocks"]
    assert 0 < len(header["text"]["text"]) <= 150
    assert all(0 < len(section["text"]["text"]) <= 3000 for section in sections)
    assert len(payload) < 13_200


@pytest.mark.parametrize("name", SITUATIONS)
def test_an_email_has_72_columns_except_for_links_and_sql(name: str) -> None:
    for line in summarize_report(SITUATIONS[name]()).email.split("\n"):
        copied = "https://" in line or line.startswith("    ")
        assert copied or len(line) <= WIDTH


# -- the verdict -------------------------------------------------------------------------------------

QUIET = a_target_report(name="quiet", slots=some_slots(used=7), used_after=7)


def make_ended(*outcomes: Outcome, **overrides: object) -> TargetReport:
    results = [a_result(outcome, pid=pid) for pid, outcome in enumerate(outcomes, start=1)]
    values: dict[str, object] = {"slots": some_slots(used=40), "used_after": 39}
    return a_target_report(*results, **values | overrides)


def a_check() -> Check:
    return Check(server=a_server(), snapshot=a_snapshot())


def a_setting(*, done: bool = False) -> RoleSetting:
    return RoleSetting(code="c", role="app", sql="ALTER ROLE app;", old=None, done=done)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (make_ended(), "QUIET: There was nothing to terminate."),
        (make_ended(Outcome.TERMINATED), "RESOLVED: 1 session was terminated and verified gone."),
        (make_ended(Outcome.CANCELLED), "RESOLVED: 1 query was cancelled."),
        (make_ended(Outcome.CANCELLED, Outcome.CANCELLED), "RESOLVED: 2 queries were cancelled."),
        (make_ended(Outcome.ESCAPED), "QUIET: There was nothing to terminate."),
        (
            make_ended(recovered=(Recovery(issue=IssueKey(IssueKind.FULL), seconds=60),)),
            "RECOVERED: orders recovered (server full for 1m).",
        ),
        (
            make_ended(Outcome.TERMINATED, Outcome.SPARED),
            "RESOLVED: 1 session was terminated and verified gone. 1 session was spared.",
        ),
        (
            make_ended(Outcome.SPARED),
            "ACTION NEEDED: No session was terminated. 1 session was spared.",
        ),
        (
            make_ended(Outcome.DENIED, Outcome.LINGERING),
            (
                "ACTION NEEDED: 1 session was signalled but has not exited;"
                " the reaper's role may not terminate 1 session."
            ),
        ),
        (
            make_ended(Outcome.TERMINATED, used_after=97, slots=some_slots()),
            (
                "ACTION NEEDED: Every slot is still in use on orders."
                " 1 session was terminated and verified gone."
            ),
        ),
        (make_unreached("orders"), "ACTION NEEDED: 1 of 2 targets could not be reached: orders."),
        (
            make_unreached("orders", TargetStatus.FULL),
            "ACTION NEEDED: No connection slot is left on orders.",
        ),
        (
            make_ended(Outcome.SPARED, status=TargetStatus.BREAKER),
            "ACTION NEEDED: The breaker stopped all terminations on orders. 1 session was spared.",
        ),
        (
            make_ended(Outcome.WOULD_TERMINATE),
            "OBSERVED: If all rules had mode enforce, 1 session would be terminated.",
        ),
        (
            make_ended(recorded=a_snapshot()),
            "RECORDED: 1 target was recorded. Nothing was changed.",
        ),
        (
            make_ended(checked=a_check(), advice=(Advice(code="a", message="b", sql=None),)),
            "CHECKED: 1 issue found. Nothing was changed.",
        ),
        (make_ended(checked=a_check()), "CHECKED: No issues found. Nothing was changed."),
        (
            make_ended(Outcome.WOULD_TERMINATE, applied=(a_setting(done=True),)),
            "APPLIED: 1 setting applied (new sessions only). No session was touched.",
        ),
        (
            make_ended(Outcome.WOULD_TERMINATE, applied=(a_setting(),), status=TargetStatus.FAILED),
            "ACTION NEEDED: Settings were refused on orders.",
        ),
    ],
)
def test_the_verdict_comes_first_and_says_whether_action_is_needed(
    target: TargetReport, said: str
) -> None:
    assert read_verdict(a_report(target, QUIET)) == said
    email = summarize_targets(target, QUIET).email
    assert " ".join(email.split("\n\n")[0].split()) == said


def test_in_observe_mode_the_verdict_says_that_nothing_was_touched() -> None:
    target = make_ended(Outcome.WOULD_TERMINATE, Outcome.WOULD_TERMINATE)
    said = "In mode enforce, 2 sessions would be terminated. Nothing was touched."
    assert read_verdict(a_report(target, mode=Mode.OBSERVE)) == f"OBSERVED: {said}"


def test_in_slack_only_the_name_in_a_verdict_is_quoted() -> None:
    payload = json.loads(
        summarize_targets(make_unreached("orders"), make_unreached("stock"), QUIET).webhook
    )
    text = payload["blocks"][1]["text"]["text"]
    assert text.startswith(
        "*ACTION NEEDED*: 2 of 3 targets could not be reached: `orders, stock`.\n"
    )


def test_one_open_end_is_enough_for_action_to_be_needed() -> None:
    report = a_report(
        make_ended(Outcome.TERMINATED), make_unreached("billing"), make_ended(Outcome.LINGERING)
    )
    assert read_verdict(report) == (
        "ACTION NEEDED: 1 of 3 targets could not be reached: billing;"
        " 1 session was signalled but has not exited."
        " 1 session was terminated and verified gone."
    )


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            make_ended(Outcome.TERMINATED, status=TargetStatus.FAILED),
            (
                "ACTION NEEDED: The run was not completed on orders."
                " 1 session was terminated and verified gone."
            ),
        ),
        (
            make_ended(fallback_secret="master"),  # noqa: S106 -- a name
            "ACTION NEEDED: The reaper could connect only with the fallback secret on orders.",
        ),
        (
            make_ended(status=TargetStatus.BLIND, slots=None),
            "ACTION NEEDED: The reaper cannot see other sessions on orders.",
        ),
    ],
)
def test_the_verdict_says_what_is_left_to_do(target: TargetReport, said: str) -> None:
    assert read_verdict(a_report(target)) == said


@pytest.mark.parametrize("outcome", [Outcome.DENIED, Outcome.SPARED, Outcome.ESCAPED])
def test_observing_needs_no_action(outcome: Outcome) -> None:
    report = a_report(make_ended(outcome), mode=Mode.OBSERVE)
    assert read_verdict(report) == "OBSERVED: Nothing was touched."


def test_targets_where_applications_cannot_connect_come_first() -> None:
    exhausted = make_ended(name="payments", slots=some_slots(), used_after=97)
    shops = [make_ended(Outcome.TERMINATED, name=f"shop-{n}") for n in range(6)]
    report = a_report(*shops, exhausted)
    assert write_summary_line(report).startswith("payments: ")
    assert to_do(report).startswith("1. payments: Applications cannot connect.")


def test_of_many_causes_the_rarest_share_one_entry() -> None:
    causes = ["refused", *(f'no database "{number}"' for number in range(9)), "refused"]
    targets = [
        record_error(TargetReport(name=f"db{n}"), TargetError("3D000", cause, "Check dbname."))
        for n, cause in enumerate(causes)
    ]
    found = digest_report(a_report(*targets), None).failures
    assert sum(len(failure.targets) for failure in found) == len(targets)
    assert [target.name for target in found[0].targets] == ["db0", "db10"]
    assert found[0].message == "refused"
    assert found[-1].message == '6 other causes, for example: no database "3"'


def test_every_target_that_fails_alike_is_named_in_the_email_and_can_be_filtered_by() -> None:
    summary = summarize_targets(*(make_unreached(f"db-{n:02}") for n in range(60)))
    assert all(f"db-{n:02}" in summary.email for n in range(60))
    assert len(summary.targets) == 60


def test_a_cancel_without_effect_is_no_reason_to_restart() -> None:
    rule = a_rule("slow", state=["active"], query_for="1m") | {"action": "cancel"}
    decision = a_decision(a_session(state=State.ACTIVE), rule="slow")
    decision = decision._replace(rule=a_policy(rule).rules[0])
    target = make_ended()
    target = replace(target, results=(SessionResult(decision=decision, outcome=Outcome.LINGERING),))
    assert "escalate_after" in to_do(a_report(target))
    assert "restart" not in to_do(a_report(target))


def test_sql_with_unprintable_characters_is_left_out() -> None:
    advice = Advice(code="a", message="b", sql='ALTER ROLE "a\u200bb";\nALTER ROLE "c";')
    email = summarize_targets(make_ended(Outcome.TERMINATED, advice=(advice,))).email
    assert 'ALTER ROLE "a' not in email
    assert '    ALTER ROLE "c";' in email


@pytest.mark.parametrize(
    ("target", "severity"),
    [
        (make_ended(Outcome.TERMINATED), "info"),
        (make_ended(Outcome.WOULD_TERMINATE), "info"),
        (make_ended(Outcome.SPARED), "info"),
        (make_ended(Outcome.LINGERING), "warning"),
        (make_unreached("orders"), "warning"),
        (make_ended(fallback_secret="master"), "warning"),  # noqa: S106 -- a name
        (make_unreached("orders", TargetStatus.FULL), "critical"),
        (make_ended(used_after=97, slots=some_slots()), "critical"),
    ],
)
def test_the_severity_says_how_urgent_the_issues_are(target: TargetReport, severity: str) -> None:
    summary = summarize_targets(target, QUIET)
    assert summary.severity == severity
    assert summary.subject.startswith("CRITICAL: ") == (severity == "critical")


def test_subscribers_can_filter_by_the_targets_with_news() -> None:
    summary = summarize_targets(QUIET, make_ended(Outcome.TERMINATED), make_unreached("billing"))
    assert summary.targets == ("billing", "orders")
    assert summary.status == "partial"


# -- the subject ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 60, 98, 99, 100, 255, 10_000])
def test_the_subject_is_never_longer_than_sns_takes(length: int) -> None:
    subject = summarize_targets(make_ended(name="n" * length)).subject
    assert 0 < len(subject) <= MAX_SUBJECT < 100


def test_a_truncated_subject_ends_with_an_ellipsis() -> None:
    assert summarize_targets(make_ended(name="n" * 200)).subject == "n" * 98 + "…"


def test_a_subject_has_the_cause_without_the_name_of_the_host() -> None:
    subject = summarize_targets(make_unreached("orders"), QUIET).subject
    assert subject == ('orders: failed, password authentication failed for user "reaper"; 1 quiet')


def test_half_a_fleet_is_one_line() -> None:
    report = a_report(*(make_unreached(f"t{n}") for n in range(5)), QUIET)
    assert write_summary_line(report) == "5 of 6 targets not reached (t0, t1, t2, …); 1 quiet"


# -- text from outside -------------------------------------------------------------------------


def hostile_report(name: str) -> TargetReport:
    return a_target_report(
        SessionResult(
            decision=a_decision(
                a_session(application=name, role=name, database=name, client=name, query=name),
                rule=name,
                reasons=(name,),
            ),
            outcome=Outcome.TERMINATED,
        ),
        name=name,
        status=TargetStatus.FAILED,
        error=Failure(code=name, cause=name, hint=name, step=name),
        pressure=(name,),
        advice=(Advice(code=name, message=name, sql=name),),
    )


@pytest.mark.parametrize("character", HOSTILE)
def test_no_form_has_control_characters(character: str) -> None:
    name = f"a{character}b"
    for targets in ([hostile_report(name)], [hostile_report(name), make_unreached(name)]):
        summary = summarize_targets(*targets)
        assert summary.subject.isprintable()
        assert all(line.isprintable() for line in summary.email.split("\n"))
        assert all(line.isprintable() for text in texts(summary) for line in text.split("\n"))
        message(summary).encode()


def texts(summary: Summary) -> Iterator[str]:
    """All text in the forms for Slack."""

    def iterate_text(value: Any) -> Iterator[str]:  # noqa: ANN401 -- any JSON
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for each in value.values():
                yield from iterate_text(each)
        elif isinstance(value, list):
            for each in value:
                yield from iterate_text(each)

    for form in (summary.notification, summary.webhook):
        yield from iterate_text(json.loads(form))


@pytest.mark.parametrize("targets", [1, 2])
def test_no_text_from_outside_can_mention_a_channel_or_make_a_link(targets: int) -> None:
    summary = summarize_targets(*[hostile_report(MARKUP)] * targets)
    for text in texts(summary):
        assert "<!" not in text
        assert "<@" not in text
        links = link_to_console(PLACE, "4f6c").values()
        assert set(re.findall(r"<([^|>]*)\|", text)) <= {*links}


HOSTILE_NAMES = [
    "<!channel>",
    "<@U012>",
    "<https://x.example|y>",
    "https://x.example",
    ":x:",
    "&lt;",
]


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "@here", "a:b:c:d:", "`<!here>`"])
def test_names_are_plain_text_where_slack_has_no_code_spans(name: str) -> None:
    summary = summarize_targets(make_ended(name=name))
    payload, notification = json.loads(summary.webhook), json.loads(summary.notification)
    header = payload["blocks"][0]["text"]["text"]
    for text in (header.partition(" ")[2], payload["text"], notification["metadata"]["threadId"]):
        assert not re.search(r"[<>&]|://|:[\w+-]+:|@(channel|here|everyone)", text)
        assert len(text) > len(name)
    assert re.fullmatch(r"`[^`<>]+`", notification["metadata"]["summary"])


def test_names_stand_in_code_spans() -> None:
    target = a_target_report(a_result(application="a`*b*<x>&"), used_after=40)
    description = json.loads(summarize_targets(target).notification)["content"]["description"]
    assert "`a\u2019*b*&lt;x&gt;&amp;@10.0.7.0/24`" not in description
    assert "`a\u2019*b*&lt;x&gt;&amp;@10.0.0.0/24`" in description


def test_an_escape_is_never_truncated() -> None:
    for length in range(60, 120):
        notification = json.loads(summarize_targets(make_ended(name="&" * length)).notification)
        jsonschema.validate(notification, SCHEMA)
        for text in (notification["content"]["title"], notification["metadata"]["summary"]):
            assert re.sub(r"&(amp|lt|gt);", "", text).count("&") == 0


@pytest.mark.parametrize("length", [1, 20, 28, 40, 64, 200])
@pytest.mark.parametrize("number", [1, 3, 5, 9])
@pytest.mark.parametrize("host", ["db", "db.aivencloud.com", "db.x.eu-west-1.rds.amazonaws.com"])
def test_a_statement_is_whole_or_left_out(host: str, number: int, length: int) -> None:
    hint = instruct_on_full_server(host, "reaper", a_policy())
    error = Failure(code="53300", cause="full", hint=hint)
    names = [str(n) * length for n in range(number)]
    summary = summarize_targets(
        *(TargetReport(name=name, status=TargetStatus.FULL, error=error) for name in names)
    )
    whole = re.search(r"SELECT pg_terminate_backend.*?;", hint)
    assert whole
    for text in (*texts(summary), " ".join(summary.email.split())):
        shown = text.replace("&lt;", "<")
        assert shown.count("pg_terminate_backend(") == shown.count(whole[0])
    assert any(whole[0] in text.replace("&lt;", "<") for text in texts(summary))


# -- groups of sessions --------------------------------------------------------------------------------


def test_sessions_are_grouped_by_rule_outcome_application_network_and_role() -> None:
    def result(rule: str, outcome: Outcome, application: str, client: str) -> SessionResult:
        session = a_session(application=application, client=client)
        return SessionResult(decision=a_decision(session, rule=rule), outcome=outcome)

    results = [
        result(rule, outcome, application, client)
        for rule in ("r1", "r2")
        for outcome in (Outcome.TERMINATED, Outcome.DENIED)
        for application in ("a1", "a2")
        for client in ("10.0.1.7", "10.0.1.9", "10.0.2.7")
    ]
    found = groups_in(summarize_targets(a_target_report(*results, used_after=40)).email)
    assert len(found) == 12  # of 16: no more are shown
    assert {group.split()[0] for group in found} == {"2", "1"}


def test_a_group_has_the_age_the_reason_and_the_last_statement_of_its_oldest_session() -> None:
    young = a_result(idle_seconds=400, query="select 'young' from young")
    old = a_result(idle_seconds=3600, query="select 'old' from old")
    email = summarize_targets(a_target_report(young, old, used_after=40)).email
    assert groups_in(email) == ["2 sessions terminated: api@10.0.0.0/24 (role app), oldest 1h"]
    assert "idle in transaction for 15m 1s (idle_for: 5m)\n    Last statement:\n" in email
    assert "      select ? from old\n" in email
    assert "young" not in email


def test_every_group_has_its_reason_and_its_last_statement() -> None:
    names = ("first", "second", "third")
    results = [a_result(application=name, query=f"vacuum {name}") for name in names]
    summary = summarize_targets(a_target_report(*results, used_after=40))
    description = json.loads(summary.notification)["content"]["description"]
    for name in names:
        assert f"      vacuum {name}\n" in summary.email
        assert f"Last statement: `vacuum {name}`" in description
    assert summary.email.count("(idle_for: 5m)") == description.count("(idle_for: 5m)") == 3


def test_a_long_last_statement_is_truncated_and_never_wrapped() -> None:
    query = " ".join(f"select a{n}" for n in range(100))
    email = summarize_targets(a_target_report(a_result(query=query), used_after=40)).email
    lines = [line for line in email.splitlines() if "select a1 " in line]
    assert len(lines) == 2  # of the step and of the group
    assert {len(line.strip()) for line in lines} == {200}
    assert all(line.endswith("…") for line in lines)


def test_a_session_without_a_statement_has_no_empty_one() -> None:
    summary = summarize_targets(a_target_report(a_result(query=""), used_after=40))
    assert "Last statement" not in summary.email + summary.notification + summary.webhook


def test_the_largest_group_comes_first() -> None:
    results = [a_result(application="small"), *(a_result(application="large") for _ in range(3))]
    first, second = groups_in(summarize_targets(a_target_report(*results, used_after=40)).email)
    assert "large" in first
    assert "small" in second


def test_a_cut_list_of_groups_says_how_many_groups_and_sessions_were_cut() -> None:
    twice = make_leaking("orders", 40).results * 2
    email = summarize_targets(a_target_report(*twice, used_after=40)).email
    cut = re.search(r"and (\d+) more groups with (\d+) sessions", email)
    assert cut
    assert len(groups_in(email)) + int(cut[1]) == 40
    assert 2 * len(groups_in(email)) + int(cut[2]) == 80


def test_what_was_terminated_is_never_cut_in_favour_of_what_was_spared() -> None:
    killed = a_result(application="killed")
    spared = [a_result(Outcome.SPARED, application=f"spared-{n % 20}") for n in range(60)]
    assert "killed@" in summarize_targets(a_target_report(*spared, killed, used_after=40)).email


def test_long_names_are_shown_whole() -> None:
    result = a_result(application="a" * 63, role="r" * 63, client="2001:db8:1234:5678::9")
    email = " ".join(summarize_targets(a_target_report(result, used_after=40)).email.split())
    name = f"{'a' * 63}@2001:db8:1234:5678::/64 (role {'r' * 63})"
    assert f"1 session terminated: {name}, oldest 15m 1s" in email
    assert "…" not in email


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        ("10.1.2.3", "10.1.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (None, "local"),
        ("no address", "no address"),
    ],
)
def test_clients_are_shown_by_their_network(client: str | None, shown: str) -> None:
    assert mask_client(client) == shown


# -- what to do --------------------------------------------------------------------------------------


def to_do(report: Report) -> str:
    return summarize_report(report).email.partition("What to do\n")[2].partition("\n\n")[0]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            make_ended(Outcome.LINGERING),
            "api@10.0.0.0/24 (role app) was signalled but has not exited",
        ),
        (make_ended(Outcome.DENIED), "The recommendations say what to grant"),
        (make_ended(Outcome.WOULD_TERMINATE), "enforce"),
        (
            make_ended(Outcome.TERMINATED),
            "Find out why api@10.0.0.0/24 (role app) leaves transactions open. Last statement: select",
        ),
        (make_ended(Outcome.TERMINATED, Outcome.SPARED), "the next run continues with them"),
        (make_ended(slots=some_slots(), used_after=97), "pg_stat_activity"),
        (make_unreached("orders"), "Check username and password"),
    ],
)
def test_the_steps_say_what_to_do(target: TargetReport, words: str) -> None:
    assert words in " ".join(to_do(a_report(target)).split())


def test_a_runaway_query_is_not_a_transaction_left_open() -> None:
    result = a_result(state=State.ACTIVE, query="select 1 from big")
    assert "runs for so long" in " ".join(
        to_do(a_report(a_target_report(result, used_after=4))).split()
    )


def test_one_fix_for_many_targets_is_one_step() -> None:
    steps = to_do(a_report(*(make_unreached(f"t{n}") for n in range(9))))
    assert steps.startswith("1. t0, t1, t2, t3, t4 and 4 more: Check username")
    assert "2. " not in steps


@pytest.mark.parametrize(
    ("hint", "parts"),
    [
        ("Wait; then retry.", ("Wait; then retry.",)),
        ("GRANT a TO b;", (Statement("GRANT a TO b;"),)),
        (
            "Run: GRANT a TO \"b;. c\"; (Then SELECT 'it''s. so;'; wait.)",
            (
                "Run: ",
                Statement('GRANT a TO "b;. c";'),
                " (Then ",
                Statement("SELECT 'it''s. so;';"),
                " wait.)",
            ),
        ),
        (
            "GRANT CONNECT on the database to the role. Wait; then retry.",
            ("GRANT CONNECT on the database to the role. Wait; then retry.",),
        ),
        ("Run GRANT a TO b", ("Run GRANT a TO b",)),
        ('GRANT a TO "b;', ('GRANT a TO "b;',)),
    ],
)
def test_a_hint_is_split_into_sentences_and_statements(
    hint: str, parts: tuple[str | Statement, ...]
) -> None:
    assert split_hint(hint) == parts


def test_a_statement_stands_on_an_unwrapped_line_of_its_own() -> None:
    sql = f'GRANT pg_read_all_stats TO "{"r" * 60}" WITH INHERIT TRUE;'
    error = Failure(code="42501", cause="blind", hint=f"First run {sql} Then wait.")
    target = TargetReport(name="orders", status=TargetStatus.BLIND, error=error)
    lines = to_do(a_report(target)).splitlines()
    assert lines == ["1. orders: First run", f"     {sql}", "   Then wait."]


# -- size --------------------------------------------------------------------------------------------


def test_a_cut_list_of_targets_says_how_many_were_cut() -> None:
    names = [f"target-{n:04}" for n in range(600)]
    email = summarize_targets(*(make_leaking(name, 12) for name in names)).email
    shown = re.findall(r"^(target-\d+): ", email, re.MULTILINE)
    cut = re.search(r"and (\d+) more, cut", email)
    assert cut
    assert 0 < len(shown) < 600
    assert len(set(shown)) + int(cut[1]) == 600


def test_targets_that_fit_are_not_cut() -> None:
    email = summarize_targets(*(make_leaking(f"target-{n}", 5) for n in range(50))).email
    assert "cut" not in email
    assert len(re.findall(r"^target-\d+: ", email, re.MULTILINE)) == 50


def test_targets_with_issues_are_not_cut() -> None:
    targets = [make_leaking(f"target-{n:04}", 12) for n in range(600)]
    broken = [make_unreached("broken-1"), make_unreached("broken-2", TargetStatus.FULL)]
    email = summarize_targets(*targets, *broken).email
    assert "failed (28P01): broken-1" in email
    assert "full (28P01): broken-2" in email


@pytest.mark.thorough
@pytest.mark.parametrize("reached", [True, pytest.param(False, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("application", "targets", "applications"),
    [
        (LONGEST_NAME, 1000, 1000),
        ("a", 1000, 13),
        ('"\\' * 31, 1000, 13),
        ("\n" * 63, 1000, 13),
        ("😀" * 15, 1000, 13),
        ("&<>" * 21, 1000, 13),
    ],
    ids=["longest", "shortest", "escaped", "cleaned", "outside the plane", "markup"],
)
def test_a_thousand_targets_with_a_thousand_applications_each_fit_into_a_message(
    application: str, targets: int, applications: int, *, reached: bool
) -> None:
    one = make_leaking(LONGEST_NAME * 4, applications, application=application)
    worst = [
        TargetReport(
            name=f"{one.name}{n}",
            slots=one.slots if reached else None,
            used_after=0,
            results=one.results,
            status=TargetStatus.FAILED,
            error=Failure(code="XX000", cause='"' * 500, hint="\\&<" * 500 + str(n)),
            advice=(Advice(code="a", message="名" * 500, sql='"' * 500),) * 3,
        )
        for n in range(targets)
    ]
    summary = summarize_targets(*worst)
    assert SNS_BYTES // 2 < size_of(summary) < SNS_BYTES - 200
    assert "Run 4f6c, mode enforce." in summary.email.splitlines()[-1]
    jsonschema.validate(json.loads(summary.notification), SCHEMA)
    assert_slack_takes(summary.webhook)


@pytest.mark.parametrize("line", ["名" * 1_000, '"' * 1_000, "\\&<` " * 200, "\U0001f418" * 1_000])
@pytest.mark.parametrize("targets", [1, 300, 7_000])
def test_a_message_with_thousands_of_undelivered_summaries_fits(line: str, targets: int) -> None:
    longest = len(line) // 10
    one = make_unreached(line[:longest] if targets < 7_000 else "n")
    advice = (Advice(code="a", message="b", sql="名" * 900),) * 4
    worst = [replace(one, key=TargetKey(f"s{n}"), advice=advice) for n in range(targets)]
    summary = summarize_report(replace(a_report(*worst), undelivered=(line,) * 5_000))
    assert size_of(summary) < SNS_BYTES - 200
    assert_slack_takes(summary.webhook)
    jsonschema.validate(json.loads(summary.notification), SCHEMA)
    assert len(json.dumps(summary.targets, ensure_ascii=False).encode()) <= 20_000
    assert summary.email.count("Not delivered by an earlier run") == 5
    assert "… and 4995 more" in summary.email


@pytest.mark.parametrize("most", [150, 400, 1_000, 4_000, 250_000])
@pytest.mark.parametrize("name", SITUATIONS)
def test_an_email_is_never_longer_than_the_room_for_it(name: str, most: int) -> None:
    email = render_email(digest_report(SITUATIONS[name](), PLACE), most)
    assert len(json.dumps(email, ensure_ascii=False).encode()) <= most


def test_slack_has_the_newest_undelivered_summaries_and_the_number_of_the_others() -> None:
    lines = tuple(f"run {n}" for n in range(7))
    report = replace(a_report(QUIET), undelivered=lines, undelivered_before=1_000)
    text = json.loads(summarize_report(report).webhook)["blocks"][1]["text"]["text"]
    assert re.findall(r"Not delivered by an earlier run: `(.*)`", text) == list(lines[:5])
    assert "… and 1002 more" in text


# -- the rest ----------------------------------------------------------------------------------------


def test_a_run_without_targets_has_a_summary_too() -> None:
    summary = summarize_report(a_report(mode=Mode.OFF), None)
    assert summary.subject == "mode is off: no target was examined"
    assert summary.email == (
        "OFF: No target was examined, because the mode is off.\n\nRun 4f6c, mode off.\n"
    )


def test_outside_of_lambda_there_are_no_links() -> None:
    assert "https://" not in summarize_report(a_report(make_ended(Outcome.TERMINATED)), None).email


@pytest.mark.parametrize(
    ("region", "console"),
    [
        ("eu-west-1", "https://eu-west-1.console.aws.amazon.com/"),
        ("cn-north-1", "https://cn-north-1.console.amazonaws.cn/"),
        ("us-gov-west-1", "https://us-gov-west-1.console.amazonaws-us-gov.com/"),
    ],
)
def test_links_go_to_the_console_of_the_partition(region: str, console: str) -> None:
    place = FunctionLocation(region=region, function="f", log_group="/aws/lambda/f", dashboard=None)
    links = link_to_console(place, "run-1")
    assert [*links] == ["log", "function"]
    assert all(url.startswith(console) for url in links.values())
    assert "/log-group/$252Faws$252Flambda$252Ff/" in links["log"]
    assert links["log"].endswith("$3FfilterPattern$3D$2522run-1$2522")


def test_the_news_of_one_target_on_one_day_is_one_thread() -> None:
    def thread(*targets: TargetReport, now: float = NOW) -> str:
        notification = json.loads(summarize_report(a_report(*targets), now=now).notification)
        return str(notification["metadata"]["threadId"])

    leak = make_ended(Outcome.TERMINATED)
    assert thread(leak, QUIET) == thread(leak, now=NOW + 60) == "orders 2026-11-25"
    assert thread(leak, now=NOW + 86400) == "orders 2026-11-26"
    assert thread(leak, make_unreached("billing")) == "session-reaper 2026-11-25"


def test_a_known_issue_is_named_and_not_explained_again() -> None:
    known = make_unreached("billing")
    repeated = TargetReport(
        name="billing",
        status=known.status,
        error=known.error,
        known_issues=(IssueKey(IssueKind.FAILED, ("28P01",)),),
    )
    summary = summarize_targets(make_ended(Outcome.TERMINATED), repeated)
    assert (
        summary.subject == "orders: 1 session terminated, slots 40/97 → 39/97; 1 with known issues"
    )
    assert "Reported before and not resolved yet: billing" in summary.email
    assert "password authentication" not in summary.email
    assert summary.targets == ("orders",)


def test_the_verdict_keeps_the_ends_of_long_names() -> None:
    name = "production-orders-eu-central-1-primary-database"
    failure = Failure(code="dns", cause="no such host", hint="Check host in the secret.")
    targets = [
        a_target_report(
            name=f"{name} (secret {secret})", slots=None, status=TargetStatus.FAILED, error=failure
        )
        for secret in ("a/x", "b/y")
    ]
    said = read_verdict(a_report(*targets))
    assert "(secret a/x)" in said
    assert "(secret b/y)" in said
