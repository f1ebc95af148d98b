"""The hub of a fleet: one digest of what all stacks report, true under duplicates and reordering."""

from __future__ import annotations

import json
import re
import time
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.aws.fleet_table import load_spoke_states, save_spoke_states
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError, InternalError, PublishError
from session_reaper.fleet.message import Spoke
from session_reaper.handler import lambda_handler
from session_reaper.report.model import Failure, Outcome, TargetReport, TargetStatus
from session_reaper.runs.hub_run import run_hub
from session_reaper.settings import read_hub_settings
from session_reaper.summary.console_links import FunctionLocation

from infra.fleet.hub import Hub as FleetHub
from infra.fleet.hub import expect_report
from infra.local.postgres import server
from tests.builders import a_target_report, some_results
from tests.fleet import REGION, Hub, a_message, an_origin, skip_long_polling, use_fast_queue
from tests.integration.aws_faults import Fault, aws_proxy
from tests.integration.conftest import prepare
from tests.integration.endpoints import resolve_here
from tests.integration.stage import REAPER, SCHEDULED, TABLE, Context, policy, state_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.local.aws import Aws, Email
    from infra.local.postgres import Build, Server
    from tests.integration.conftest import Output
    from tests.integration.stage import Stage


@pytest.fixture
def polling_hub(cloud: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose queue waits for messages, as that of AWS does."""
    url = cloud.sqs.create_queue(QueueName="fleet")["QueueUrl"]
    monkeypatch.setenv("FLEET_QUEUE_URL", url)
    monkeypatch.setenv("TOPIC_ARN", cloud.topic_arn)
    monkeypatch.setenv("MEMORY_TABLE", TABLE)
    with state_table(cloud, TABLE):
        yield Hub(aws=cloud, queue_url=url, table=TABLE)
    cloud.sqs.delete_queue(QueueUrl=url)


@pytest.fixture
def hub(polling_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub whose queue does not wait for messages: most tests put them there before."""
    skip_long_polling(monkeypatch)
    return polling_hub


def quiet(name: str = "orders") -> TargetReport:
    return a_target_report(name=name, used_after=10)


def failed(code: str = "28P01", name: str = "orders") -> TargetReport:
    error = Failure(code=code, cause="password refused", hint="ALTER ROLE x SUPERUSER;")
    return TargetReport(name=name, status=TargetStatus.FAILED, error=error)


def leaking(number: int, application: str = "api", name: str = "orders") -> TargetReport:
    results = some_results(number, Outcome.TERMINATED, application=application)
    return a_target_report(*results, name=name, used_after=10)


def text(email: Email) -> str:
    return " ".join(email.body.split())


def test_quiet_stacks_cause_no_digest(hub: Hub) -> None:
    hub.send(*(a_message(an_origin(account), quiet()) for account in range(1, 25)))
    answer, emails = hub.run()
    assert emails == []
    assert (answer["messages"], answer["stacks"], answer["complete"]) == (24, 24, True)
    assert hub.run_until_empty() == []


def test_twenty_accounts_get_one_digest_with_true_numbers(hub: Hub) -> None:
    for account in range(1, 21):
        targets = [quiet(f"db-{number}") for number in range(50)]
        if account <= 3:
            targets[7] = leaking(account * 10, "api", "db-7")
        error = "POLICY: rules[0].x: unknown key" if account == 4 else ""
        hub.send(a_message(an_origin(account), *([] if error else targets), error=error))
    answer, (email,) = hub.run()
    said = text(email)
    assert answer["verdict"].startswith("ACTION NEEDED: The configuration is invalid in")
    assert "60 sessions were terminated and verified gone" in said
    assert "20 stacks in 20 accounts, 950 targets, 60 sessions terminated" in said
    assert "Most leaked sessions: api (60 on 3 targets)" in said
    assert "000000000004/eu-central-1/session-reaper" in said
    assert "unknown key" in said
    assert "000000000003/eu-central-1/db-7" in said
    assert hub.run()[1] == []


@pytest.mark.thorough
def test_one_digest_is_true_with_a_silent_stack_and_messages_that_come_late_and_twice(
    hub: Hub,
) -> None:
    quiet_targets = [quiet(f"db-{number}") for number in range(50)]
    hub.send(*(a_message(an_origin(account), *quiet_targets) for account in range(1, 21)))
    assert hub.run()[1] == []
    hub.age(1000)
    for account in range(1, 20):
        targets = list(quiet_targets)
        if account <= 3:
            targets[7] = leaking(account * 10, "api", "db-7")
        error = "POLICY: rules[0].x: unknown key" if account == 4 else ""
        message = a_message(
            an_origin(account), *([] if error else targets), run="second", error=error
        )
        hub.send(message)
    late = an_origin(5, sent_at=time.time() - 2000)
    late_message = a_message(late, leaking(4, "worker"), failed(name="db-8"), run="late")
    hub.send(late_message, late_message)
    answer, (email,) = hub.run()
    said = text(email)
    assert (answer["stacks"], answer["refused"], answer["complete"]) == (20, 0, True)
    assert answer["verdict"].startswith("ACTION NEEDED: The configuration is invalid in")
    assert "no report arrives from 000000000020/eu-central-1/session-reaper" in said
    assert "64 sessions were terminated and verified gone" in said
    totals = "20 stacks (1 silent) in 20 accounts, 1000 targets, 64 sessions terminated"
    assert totals in said
    assert "Most leaked sessions: api (60 on 3 targets), worker (4 on 1 target)" in said
    assert "db-8" not in said
    hub.send(late_message)
    assert hub.run()[1] == []


def test_the_same_cause_in_many_accounts_is_reported_once(hub: Hub) -> None:
    hub.send(*(a_message(an_origin(account), failed(), quiet("b")) for account in range(1, 16)))
    _, (email,) = hub.run()
    assert text(email).count("password refused") == 1
    assert "ALTER ROLE" not in text(email)


def test_a_message_that_arrives_twice_and_late_counts_once(hub: Hub) -> None:
    now = time.time()
    first = a_message(an_origin(sent_at=now - 600), leaking(5), run="a")
    second = a_message(an_origin(sent_at=now - 300), leaking(7), run="b")
    hub.send(second, first, second)
    _, (email,) = hub.run()
    assert "12 sessions were terminated" in text(email)
    hub.send(first, second)
    assert hub.run()[1] == []
    assert hub.waiting() == 0


def test_an_older_message_does_not_revive_an_issue(hub: Hub) -> None:
    now = time.time()
    hub.send(a_message(an_origin(sent_at=now - 900), failed(), run="a"))
    assert len(hub.run()[1]) == 1
    hub.send(a_message(an_origin(sent_at=now - 300), quiet(), run="c"))
    _, (email,) = hub.run()
    assert email.body.startswith("RECOVERED")
    hub.send(a_message(an_origin(sent_at=now - 600), failed(), run="b"))
    assert hub.run()[1] == []


@pytest.mark.parametrize("is_usual", [True, False])
def test_what_another_run_ended_does_not_end_an_issue(hub: Hub, *, is_usual: bool) -> None:
    now = time.time()
    hub.send(a_message(an_origin(sent_at=now - 300), failed(), run="b"))
    assert len(hub.run()[1]) == 1
    sent_at = now - 600 if is_usual else now
    hub.send(a_message(an_origin(sent_at=sent_at, is_usual=is_usual), leaking(2), run="a"))
    _, (email,) = hub.run()
    assert "000000000001/eu-central-1/orders: 2 sessions terminated\n" in email.body
    assert "recovered" not in email.body
    hub.send(a_message(an_origin(sent_at=now), failed(), run="c"))
    assert hub.run()[1] == []
    hub.send(a_message(an_origin(sent_at=now + 1), quiet(), run="d"))
    _, (email,) = hub.run()
    assert email.body.startswith("RECOVERED")


@pytest.mark.parametrize("ahead", [600, -600, 86400])
def test_an_older_message_revives_no_issue_although_the_clock_is_wrong(
    hub: Hub, ahead: float
) -> None:
    def report(seconds_ago: float, target: TargetReport, run: str) -> str:
        origin = an_origin(sent_at=time.time() + ahead - seconds_ago)
        return a_message(origin, target, run=run)

    hub.put(report(600, failed(), "a"), age=600)
    assert len(hub.run()[1]) == 1
    older = report(300, failed(), "b")
    hub.put(report(0, quiet(), "c"), age=1)
    _, (email,) = hub.run()
    assert email.body.startswith("RECOVERED")
    hub.put(older, age=60 if ahead > 3600 else 0)
    assert hub.run()[1] == []


def test_a_stack_whose_clock_is_ahead_is_still_followed(hub: Hub) -> None:
    ahead = time.time() + 86400
    hub.send(a_message(an_origin(sent_at=ahead, next_by=ahead + 300), failed(), run="a"))
    assert len(hub.run()[1]) == 1
    hub.send(a_message(an_origin(), quiet(), run="b"))
    _, emails = hub.run()
    # The message arrived later, although its clock says that it is older.
    assert [email.body.split(":")[0] for email in emails] == ["RECOVERED"]


def test_a_silent_stack_is_reported_once_and_again_when_it_is_back(hub: Hub) -> None:
    hub.send(a_message(an_origin(1), quiet()), a_message(an_origin(2), quiet()))
    assert hub.run()[1] == []
    hub.age(800)
    assert hub.run()[1] == []
    hub.age(200)
    hub.send(a_message(an_origin(2), quiet(), run="b"))
    _, (email,) = hub.run()
    assert "No report arrives from 000000000001/eu-central-1/session-reaper" in text(email)
    assert "000000000002" not in email.body
    hub.age(7200)
    hub.send(a_message(an_origin(2), quiet(), run="c"))
    assert hub.run()[1] == []
    hub.send(a_message(an_origin(1), quiet(), run="d"))
    _, (email,) = hub.run()
    assert email.body.startswith("RECOVERED: 000000000001/eu-central-1/session-reaper")


def test_a_silent_stack_is_noticed_although_the_queue_is_never_empty(polling_hub: Hub) -> None:
    polling_hub.send(a_message(an_origin(1), quiet()), a_message(an_origin(2), quiet()))
    assert polling_hub.run()[1] == []
    polling_hub.age(1000)
    with polling_hub.stream(lambda number: a_message(an_origin(2), quiet(), run=f"b-{number}")):
        answer, (email,) = polling_hub.run(20)
    assert answer["complete"]
    assert "No report arrives from 000000000001/eu-central-1/session-reaper" in text(email)
    assert "000000000002" not in email.body


@pytest.mark.thorough
def test_a_stack_is_not_silent_while_the_last_of_many_messages_shows_that_it_lives(
    polling_hub: Hub,
) -> None:
    polling_hub.send(a_message(an_origin(1), quiet()), a_message(an_origin(2), quiet()))
    assert polling_hub.run()[1] == []
    polling_hub.age(3000)
    large = a_message(an_origin(2), leaking(1)).replace('"count":1', '"count":300000')
    for number in range(2):  # as much as one run takes
        polling_hub.put(large.replace('"run":"run-1"', f'"run":"large-{number}"'), age=60)
    alive = an_origin(1, sent_at=time.time() - 2400, next_by=time.time() + 1200)
    polling_hub.put(a_message(alive, quiet(), run="b"), age=2400)
    with polling_hub.stream(lambda number: a_message(an_origin(2), quiet(), run=f"c-{number}")):
        first, (email,) = polling_hub.run()
        polling_hub.show_hidden()
        second, emails = polling_hub.run()
    assert (first["complete"], second["complete"]) == (False, True)
    assert not any("000000000001" in each.body for each in (email, *emails))


def test_a_silent_stack_is_noticed_although_a_message_is_refused_in_every_run(hub: Hub) -> None:
    hub.send(a_message(an_origin(1), quiet()), "garbage")
    assert len(hub.run()[1]) == 1
    hub.age(1000)
    answer, (email,) = hub.run()  # less than the time for which the first run hid the messages
    assert (answer["refused"], answer["complete"]) == (1, True)
    assert "No report arrives from 000000000001/eu-central-1/session-reaper" in text(email)


def test_a_poisoned_message_of_a_run_that_could_not_publish_is_reported_by_the_next_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.send("garbage")
    topic = hub.aws.topic_arn
    monkeypatch.setenv("TOPIC_ARN", f"{topic}-gone")
    with pytest.raises(PublishError):
        hub.run()
    hub.show_hidden()
    monkeypatch.setenv("TOPIC_ARN", topic)
    _, (email,) = hub.run()
    assert "Reports cannot be read in" in text(email)


@pytest.mark.thorough
def test_a_silent_stack_is_back_although_its_configuration_is_still_invalid(hub: Hub) -> None:
    hub.send(a_message(an_origin(), error="POLICY: x"))
    assert len(hub.run()[1]) == 1
    for run in ("a", "b"):
        hub.age(1000)
        _, (email,) = hub.run()
        assert "No report arrives from 000000000001" in text(email)
        hub.send(a_message(an_origin(), error="POLICY: x", run=run))
        _, (email,) = hub.run()
        assert email.body.startswith("ACTION NEEDED: The configuration is invalid")
        assert "000000000001/eu-central-1/session-reaper: ok, recovered (silent" in text(email)
        assert "Fleet: 1 stack in 1 account" in text(email)
    hub.send(a_message(an_origin(), quiet(), run="c"))
    _, (email,) = hub.run()
    assert "recovered (invalid configuration" in text(email)
    assert "silent for" not in text(email)


@pytest.mark.thorough
def test_a_stack_whose_problems_end_together_has_recovered_once(hub: Hub) -> None:
    hub.send(a_message(an_origin(), error="POLICY: x"))
    hub.run()
    hub.age(1000)
    hub.run()
    hub.send(a_message(an_origin(), quiet(), run="b"))
    _, (email,) = hub.run()
    found = re.findall(r"^RECOVERED: \S+ recovered \(invalid configuration .*, silent", text(email))
    assert len(found) == 1
    assert hub.run()[1] == []


def test_a_stack_that_was_rolled_out_and_never_reports_is_reported_once(hub: Hub) -> None:
    table = FleetHub(account="1", region=REGION, queue_arn="", table=TABLE)
    expect_report(table, Spoke("000000000003", REGION, "session-reaper"), 900)
    assert hub.run()[1] == []
    hub.age(900 + 700)
    _, (email,) = hub.run()
    said = text(email)
    assert "No report arrives from 000000000003/eu-central-1/session-reaper" in said
    assert "no report has ever arrived" in said
    assert hub.run()[1] == []
    hub.send(a_message(an_origin(3), quiet()))
    _, (email,) = hub.run()
    assert email.body.startswith("RECOVERED: 000000000003/eu-central-1/session-reaper")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "body",
    [
        "garbage",
        "[" * 100_000,
        json.dumps({"version": 2}),
        json.dumps({"Type": "Notification", "Message": "{}"}),
        a_message(an_origin(), leaking(1)).replace('"count":1', '"count":1e400'),
        a_message(an_origin(), leaking(1)).replace('"count":1', '"count":300001'),
        a_message(an_origin(), leaking(1)).replace('"count":1', '"count":-1'),
        a_message(an_origin(), quiet()).replace('"slots":', '"issues":[[]],"slots":'),
        a_message(an_origin(), quiet()).replace('"stack":"', '"stack":"<!channel> '),
        a_message(an_origin(account="fleet", region="queue", stack="messages"), quiet()),
        a_message(an_origin(), quiet()).replace('"sent_at":', '"sent_at":NaN,"x":'),
    ],
    ids=range(11),
)
def test_a_poisoned_message_stays_for_the_dead_letters_and_is_reported_once(
    hub: Hub, body: str
) -> None:
    hub.send(body, a_message(an_origin(2), leaking(3)))
    answer, (email,) = hub.run()
    assert answer["refused"] == 1
    assert "Reports cannot be read in" in text(email)
    assert "3 sessions were terminated" in text(email)
    assert hub.waiting() == 1


def test_a_poisoned_message_ends_in_the_dead_letters_and_is_reported_once(hub: Hub) -> None:
    sqs = hub.aws.sqs
    letters = sqs.create_queue(QueueName="letters")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=letters, AttributeNames=["QueueArn"])["Attributes"]
    redrive = json.dumps({"deadLetterTargetArn": arn["QueueArn"], "maxReceiveCount": 3})
    sqs.set_queue_attributes(QueueUrl=hub.queue_url, Attributes={"RedrivePolicy": redrive})
    hub.send("garbage")
    told = []
    for _ in range(4):
        told += hub.run()[1]
    assert len(told) == 1
    assert hub.waiting() == 0
    (letter,) = sqs.receive_message(QueueUrl=letters)["Messages"]
    assert letter["Body"] == "garbage"
    sqs.delete_queue(QueueUrl=letters)


@pytest.mark.thorough
def test_refused_messages_are_reported_again_only_after_the_time_of_a_reminder(hub: Hub) -> None:
    told = []
    for _ in range(3):  # a stack that was updated before its hub
        hub.send(json.dumps({"version": 2}))
        told += hub.run()[1]
    assert len(told) == 1
    hub.send(a_message(an_origin(2), leaking(3)))
    _, (email,) = hub.run()
    assert "1 stack in 1 account" in text(email)
    hub.age(3700)
    hub.send(json.dumps({"version": 2}))
    _, (email,) = hub.run()
    assert "reports cannot be read in the hub's queue" in text(email)


@pytest.mark.thorough
def test_a_stack_that_is_gone_is_forgotten_although_its_item_is_not_deleted_yet(hub: Hub) -> None:
    hub.send(a_message(an_origin(1), quiet()), a_message(an_origin(2), quiet()))
    assert hub.run()[1] == []
    hub.change_item(1, "expires_at", {"N": str(int(time.time()) - 60)})
    hub.age(2000)
    hub.send(a_message(an_origin(2), quiet(), run="b"))
    answer, emails = hub.run()
    assert (answer["stacks"], emails) == (1, [])
    hub.send(a_message(an_origin(1), leaking(2), run="c"))
    _, (email,) = hub.run()
    assert "2 sessions were terminated" in text(email)
    assert hub.run_until_empty() == []
    assert hub.run()[0]["stacks"] == 2


@pytest.mark.thorough
def test_an_item_that_cannot_be_read_is_replaced_by_the_next_message(hub: Hub) -> None:
    hub.send(a_message(an_origin(), quiet()))
    assert hub.run()[1] == []
    hub.change_item(1, "known", {"S": "{"})
    hub.send(a_message(an_origin(), leaking(2), run="b"))
    _, (email,) = hub.run()
    assert "2 sessions were terminated" in text(email)
    assert hub.run_until_empty() == []
    hub.send(a_message(an_origin(), leaking(2), run="b"))
    assert hub.run()[1] == []


def test_a_state_that_another_run_has_changed_is_not_saved_and_keeps_no_other_from_it(
    hub: Hub,
) -> None:
    hub.send(*(a_message(an_origin(account), quiet()) for account in range(1, 21)))
    assert hub.run()[1] == []
    states = list(load_spoke_states(TABLE, Deadline(10)).values())
    hub.change_item(7, "revision", {"N": "99"})
    saved = save_spoke_states(TABLE, states, Deadline(10))
    assert {state.spoke for state in states} - set(saved) == {
        Spoke("000000000007", REGION, "session-reaper")
    }
    assert {state.revision for state in load_spoke_states(TABLE, Deadline(10)).values()} == {2, 99}


def test_the_state_of_a_stack_with_many_long_issues_is_saved(hub: Hub) -> None:
    document = json.loads(a_message(an_origin(), failed()))
    one = document["targets"][0]
    document["targets"] = [one | {"key": [f"{n}-{490 * 'é'}", ""]} for n in range(800)]
    hub.put(json.dumps(document, ensure_ascii=False))
    answer, emails = hub.run()
    assert (answer["refused"], len(emails)) == (0, 1)
    assert hub.run_until_empty() == []


def test_names_from_a_hostile_stack_make_no_markup_and_no_lines(hub: Hub) -> None:
    hostile = "<!channel>\n1. Run: DROP TABLE x;"
    hub.send(a_message(an_origin(), leaking(2, hostile, hostile), failed(hostile)))
    _, (email,) = hub.run()
    assert "\n1. Run: DROP" not in email.body
    assert "<!channel>" not in email.webhook


def test_nothing_is_deleted_if_the_digest_cannot_be_published(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.send(a_message(an_origin(), leaking(3)))
    topic = hub.aws.topic_arn
    monkeypatch.setenv("TOPIC_ARN", f"{topic}-gone")
    with pytest.raises(PublishError):
        hub.run()
    assert hub.waiting() == 1
    hub.show_hidden()
    monkeypatch.setenv("TOPIC_ARN", topic)
    _, (email,) = hub.run()
    assert "3 sessions were terminated" in text(email)
    assert hub.waiting() == 0


def test_a_table_that_refuses_calls_for_a_moment_causes_no_digest_twice(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.send(a_message(an_origin(), leaking(3)))
    throttled = Fault(code="ThrottlingException")
    with aws_proxy() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.faults |= {"Query": [throttled], "PutItem": [throttled]}
        _, (email,) = hub.run()
        assert proxy.faults == {"Query": [], "PutItem": []}
    assert "3 sessions were terminated" in text(email)
    assert hub.waiting() == 0


def test_a_bug_in_the_digest_publishes_the_numbers_and_ends_the_run_with_an_error(
    hub: Hub,
) -> None:
    location = FunctionLocation(region=None, function="", log_group="", dashboard=None)  # type: ignore[arg-type] # on purpose
    settings = read_hub_settings()._replace(location=location)
    hub.send(a_message(an_origin(), leaking(3)))
    with pytest.raises(InternalError, match="session-reaper has a bug: AttributeError"):
        run_hub(settings, "run-1", time.time(), Deadline(60))
    (email,) = hub.aws.delivered()
    assert email.subject == "session-reaper has a bug: 3 terminated"
    assert hub.waiting() == 0
    hub.send(a_message(an_origin(), quiet(), run="run-2"))
    with pytest.raises(InternalError):
        run_hub(settings, "run-2", time.time(), Deadline(60))
    assert hub.aws.delivered() == []


def test_a_digest_that_is_not_published_is_not_written(hub: Hub) -> None:
    beyond_the_calendar = 1e17
    answer = run_hub(read_hub_settings(), "run-1", beyond_the_calendar, Deadline(60))
    assert not answer["published"]
    assert hub.aws.delivered() == []


def test_the_log_has_every_target_that_a_digest_reports(hub: Hub, output: Output) -> None:
    targets = [failed(name=f"db-{number}") for number in range(250)]
    hub.send(a_message(an_origin(), *targets, quiet("calm")))
    hub.run()
    lines = [json.loads(line) for line in output.readouterr().out.splitlines()]
    logged = [each for line in lines for each in line.get("targets", [])]
    assert len(logged) == 250
    assert not any("calm" in each for each in logged)


def test_a_message_in_the_envelope_of_sns_is_read(hub: Hub) -> None:
    topic = hub.aws.sns.create_topic(Name="spokes")["TopicArn"]
    queue = hub.aws.sqs.get_queue_attributes(QueueUrl=hub.queue_url, AttributeNames=["QueueArn"])
    hub.aws.sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue["Attributes"]["QueueArn"])
    hub.aws.sns.publish(TopicArn=topic, Message=a_message(an_origin(), leaking(3)))
    hub.aws.sns.delete_topic(TopicArn=topic)
    _, (email,) = hub.run()
    assert "3 sessions were terminated" in text(email)


@pytest.mark.parametrize("name", ["FLEET_QUEUE_URL", "TOPIC_ARN", "MEMORY_TABLE"])
def test_each_setting_is_required(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    with pytest.raises(ConfigurationError, match=f"^{name}"):
        hub.run()


@pytest.mark.thorough
def test_many_waiting_messages_are_merged_into_one_digest(hub: Hub) -> None:
    now = time.time()
    for account in range(1, 16):
        hub.send(
            *(
                a_message(
                    an_origin(account, sent_at=now - 300 * age),
                    failed() if age else leaking(1),
                    run=f"{account}-{age}",
                )
                for age in range(4)
            )
        )
    answer, (email,) = hub.run()
    assert (answer["messages"], answer["complete"]) == (60, True)
    assert answer["verdict"] == "RESOLVED: 15 sessions were terminated and verified gone."
    assert "15 stacks in 15 accounts, 15 targets" in text(email)
    assert hub.waiting() == 0


@pytest.mark.thorough
def test_a_hub_that_was_down_for_an_hour_tells_what_happened_and_invents_no_silence(
    hub: Hub,
) -> None:
    hub.send(*(a_message(an_origin(account), quiet()) for account in range(1, 6)))
    assert hub.run()[1] == []
    hub.age(3600)
    now = time.time()
    for minutes in range(55, -1, -5):
        for account in range(1, 6):
            if account == 5 and minutes < 40:
                continue  # it fell silent
            target = leaking(2) if account == 1 else quiet()
            if account == 2 and minutes > 20:  # over before the hub was back
                target = failed()
            if account == 3 and minutes < 20:
                target = failed()
            origin = an_origin(account, sent_at=now - 60 * minutes)
            hub.put(a_message(origin, target, run=f"run-{minutes}"), age=60 * minutes)
    answer, (email,) = hub.run()
    said = text(email)
    assert (answer["messages"], answer["complete"]) == (12 * 4 + 4, True)
    assert "24 sessions were terminated and verified gone" in said
    assert "1 target could not be reached: 000000000003" in said
    assert "No report arrives from 000000000005/eu-central-1/session-reaper" in said
    assert "5 stacks (1 silent) in 5 accounts, 5 targets, 24 sessions terminated" in said
    assert "000000000002" not in said


@pytest.mark.thorough
def test_a_stack_is_not_silent_while_another_run_has_its_messages(hub: Hub) -> None:
    hub.send(a_message(an_origin(), quiet()))
    assert hub.run()[1] == []
    hub.age(1000)
    hub.send(a_message(an_origin(), quiet(), run="b"))
    hub.aws.sqs.receive_message(QueueUrl=hub.queue_url, VisibilityTimeout=300)
    answer, emails = hub.run()
    assert (answer["messages"], answer["complete"], emails) == (0, False, [])
    hub.show_hidden()
    answer, emails = hub.run()
    assert (answer["messages"], answer["complete"], emails) == (1, True, [])


@pytest.mark.thorough
def test_a_hostile_stack_cannot_fill_the_memory_of_the_hub(hub: Hub) -> None:
    document = a_message(an_origin(1), leaking(1)).replace('"count":1', '"count":300000')
    for number in range(3):
        hub.put(document.replace('"run":"run-1"', f'"run":"run-{number}"'))
    hub.put(a_message(an_origin(2), leaking(3, "worker")))
    answer, (email,) = hub.run()
    assert (answer["messages"], answer["complete"]) == (2, False)
    assert "600000 sessions were terminated" in text(email)
    hub.show_hidden()
    answer, (email,) = hub.run()
    assert (answer["messages"], answer["complete"]) == (2, True)
    assert "300003 sessions were terminated" in text(email)
    assert hub.waiting() == 0


@pytest.mark.thorough
def test_ten_thousand_waiting_messages_are_merged_over_several_runs_while_others_arrive(
    polling_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fast_queue(monkeypatch)
    polling_hub.send(a_message(an_origin(22), quiet()))
    assert polling_hub.run()[1] == []
    polling_hub.age(3 * 86400)  # the last sign of life of this stack
    now = time.time()
    bodies = []
    for account in range(1, 21):
        kinds = [failed(), leaking(1) if account <= 3 else quiet()]
        models = [a_message(an_origin(account), kind, run="RUN") for kind in kinds]
        for age in range(500):
            document = json.loads(models[not 300 < age < 400])
            sent_at = now - 300 * age
            document |= {"sent_at": sent_at, "next_by": sent_at + 300, "run": f"run-{age}"}
            bodies.append((300 * age, json.dumps(document)))
    Random(1).shuffle(bodies)  # noqa: S311 -- an order, no secret
    for age, body in bodies:
        polling_hub.put(body, age=age)
    answers: list[dict[str, Any]] = []
    emails: list[Email] = []
    with polling_hub.stream(
        lambda number: a_message(an_origin(21), quiet(), run=f"run-{number}"), 10
    ):
        while not (answers and answers[-1]["complete"]):
            polling_hub.show_hidden()  # on a slow machine a message may have come too late for its call
            answer, digests = polling_hub.run(120)
            answers.append(answer)
            emails += digests
    assert len(answers) >= 3
    assert sum(answer["messages"] for answer in answers) >= 10_000
    numbers = [re.findall(r"(\d+) sessions were terminated", text(email)) for email in emails]
    assert sum(int(number) for found in numbers for number in found) == 3 * 401
    assert ["No report arrives" in text(email) for email in emails[:-1]] == [False] * (
        len(emails) - 1
    )
    assert "o report arrives from 000000000022/eu-central-1/session-reaper" in text(emails[-1])
    assert "22 stacks (1 silent) in 22 accounts, 22 targets" in text(emails[-1])
    known = {spoke.account: s.known for spoke, s in load_spoke_states(TABLE, Deadline(10)).items()}
    assert {account for account, issues in known.items() if issues} == {"000000000022"}
    assert polling_hub.run_until_empty() == []


def make_topic_of_region(polling_hub: Hub, stage: Stage) -> str:
    """Create a topic that leads to the hub's queue, as in each region of a fleet; return its ARN."""
    topic: str = polling_hub.aws.sns.create_topic(Name="spokes")["TopicArn"]
    queue = polling_hub.aws.sqs.get_queue_attributes(
        QueueUrl=polling_hub.queue_url, AttributeNames=["QueueArn"]
    )
    polling_hub.aws.sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=queue["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    stage.cleanup(lambda: polling_hub.aws.sns.delete_topic(TopicArn=topic))
    return topic


def test_what_a_real_stack_reports_is_in_the_digest(hub: Hub, stage: Stage) -> None:
    topic = make_topic_of_region(hub, stage)
    stage.monkeypatch.delenv("MEMORY_TABLE")
    stage.monkeypatch.setenv("FLEET_TOPIC_ARN", topic)
    stage.use_policy(policy())
    stage.target()
    stage.target("closed", port=1, name="closed")
    stage.sessions(2, application_name="api")
    stage.run()
    stage.monkeypatch.setenv("MEMORY_TABLE", TABLE)
    answer, (email,) = hub.run()
    assert answer["refused"] == 0
    said = text(email)
    assert "1 target could not be reached: 123456789012/eu-central-1/closed" in said
    assert "2 sessions were terminated and verified gone" in said
    assert "Most leaked sessions: api (2 on 1 target)" in said


RDS = ".rds.amazonaws.com"


@pytest.fixture
def shared(build: Build) -> Iterator[Server]:
    """A server that is behind many targets, each of which has a name of its own."""
    with server(build, settings={"max_connections": "120"}) as running:
        with running.connect(unix_sock=running.unix_sock) as root:
            prepare(root)
            root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT 100")
        yield running


class AccountContext(Context):
    """The Lambda context of a function in another account."""

    def __init__(self, account: int) -> None:
        super().__init__()
        own = Context.invoked_function_arn
        self.invoked_function_arn = own.replace("123456789012", f"{account:012}")


def run_stack(account: int, number: int, event: object) -> dict[str, Any]:
    context = AccountContext(account)
    context.aws_request_id = f"{account}-{number}"
    return lambda_handler(event, context)  # type: ignore[arg-type] # what a run needs of it


@pytest.mark.thorough
def test_the_runs_of_twenty_accounts_with_fifty_targets_each_are_one_true_digest(
    hub: Hub, stage: Stage, shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_here(monkeypatch, RDS)
    topic = make_topic_of_region(hub, stage)
    summaries = hub.aws.sns.create_topic(Name="summaries")["TopicArn"]
    stage.cleanup(lambda: hub.aws.sns.delete_topic(TopicArn=summaries))
    names = [f"db-{number}" for number in range(49)]
    for name in names:
        hub.aws.put_secret(name, stage.secret(host=f"{name}.x.eu-central-1{RDS}", port=shared.port))
    hub.aws.put_secret("db-49", stage.secret())
    hub.aws.put_secret("calm", stage.secret(host=f"calm.x.eu-central-1{RDS}", port=shared.port))

    def run(account: int, number: int = 1, leaks: int = 0) -> None:
        monkeypatch.delenv("MEMORY_TABLE", raising=False)
        monkeypatch.setenv("TOPIC_ARN", summaries)
        monkeypatch.setenv("FLEET_TOPIC_ARN", topic)
        monkeypatch.setenv("PAUSED_CLUSTERS", "connect")
        monkeypatch.setenv("RUN_INTERVAL", "rate(5 minutes)")
        last = "db-49" if leaks else "calm"  # only its server has leaks
        monkeypatch.setenv("TARGET_SECRETS", ",".join([*names, last]))
        stage.sessions(leaks, application_name=f"api-{account}")
        answer = run_stack(account, number, SCHEDULED)
        assert (answer["status"], answer["totals"]["terminated"]) == ("ok", leaks)

    def run_hub() -> tuple[dict[str, Any], list[Email]]:
        monkeypatch.setenv("MEMORY_TABLE", TABLE)
        monkeypatch.setenv("TOPIC_ARN", hub.aws.topic_arn)
        monkeypatch.delenv("FLEET_TOPIC_ARN", raising=False)
        return hub.run()

    stage.use_policy(policy())
    run(20)
    assert run_hub()[1] == []
    hub.age(1000)
    run(5, number=1, leaks=2)
    late = hub.take()
    for account in range(1, 20):
        if account != 4:
            run(account, number=2, leaks=account if account <= 3 else 0)
    stage.use_policy(policy() | {"fleet": 1})
    with pytest.raises(ConfigurationError):
        run(4)
    hub.put(*late, *late)
    answer, (email,) = run_hub()
    said = text(email)
    assert (answer["messages"], answer["refused"], answer["stacks"]) == (21, 0, 20)
    assert answer["verdict"].startswith(
        "ACTION NEEDED: The configuration is invalid in 000000000004/"
    )
    assert "no report arrives from 000000000020/eu-central-1/" in said
    assert "8 sessions were terminated and verified gone" in said
    assert "20 stacks (1 silent) in 20 accounts, 950 targets, 8 sessions terminated" in said
    assert "Most leaked sessions: api-3 (3 on 1 target), " in said
    assert "unknown key" in said
    hub.put(*late)
    assert run_hub()[1] == []
