"""The hub of a fleet: one digest of what all stacks report, true under duplicates and reordering."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from session_reaper.errors import ConfigurationError, PublishError
from session_reaper.report.model import Failure, Outcome, TargetReport, TargetStatus

from tests.builders import a_target_report, some_fates
from tests.fleet import Hub, a_message, an_origin
from tests.integration.stage import TABLE, policy, state_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.local.aws import Aws, Email
    from tests.integration.stage import Stage


@pytest.fixture
def hub(cloud: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    url = cloud.sqs.create_queue(QueueName="fleet")["QueueUrl"]
    monkeypatch.setenv("FLEET_QUEUE_URL", url)
    monkeypatch.setenv("TOPIC_ARN", cloud.topic_arn)
    monkeypatch.setenv("MEMORY_TABLE", TABLE)
    with state_table(TABLE):
        yield Hub(aws=cloud, queue_url=url, table=TABLE)
    cloud.sqs.delete_queue(QueueUrl=url)


def quiet(name: str = "orders") -> TargetReport:
    return a_target_report(name=name, used_after=10)


def failed(code: str = "28P01", name: str = "orders") -> TargetReport:
    error = Failure(code=code, cause="password refused", hint="ALTER ROLE x SUPERUSER;")
    return TargetReport(name=name, status=TargetStatus.FAILED, error=error)


def leaking(number: int, application: str = "api", name: str = "orders") -> TargetReport:
    fates = some_fates(number, Outcome.TERMINATED, application=application)
    return a_target_report(*fates, name=name, used_after=10)


def text(email: Email) -> str:
    return " ".join(email.body.split())


def test_quiet_stacks_cause_no_digest(hub: Hub) -> None:
    hub.send(*(a_message(an_origin(account), quiet()) for account in range(1, 25)))
    answer, emails = hub.run()
    assert emails == []
    assert (answer["messages"], answer["stacks"], answer["complete"]) == (24, 24, True)
    assert hub.waiting() == 0


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


def test_the_same_cause_in_many_accounts_is_told_once(hub: Hub) -> None:
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


def test_a_stack_whose_clock_is_ahead_is_still_followed(hub: Hub) -> None:
    ahead = time.time() + 86400
    hub.send(a_message(an_origin(sent_at=ahead, next_by=ahead + 300), failed(), run="a"))
    assert len(hub.run()[1]) == 1
    hub.send(a_message(an_origin(), quiet(), run="b"))
    _, emails = hub.run()
    # The message arrived later, although its clock says that it is older.
    assert [email.body.split(":")[0] for email in emails] == ["RECOVERED"]


def test_a_silent_stack_is_told_once_and_again_when_it_is_back(hub: Hub) -> None:
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
        a_message(an_origin(), quiet()).replace('"stack":"', '"stack":"<!channel> '),
        a_message(an_origin(), quiet()).replace('"sent_at":', '"sent_at":NaN,"x":'),
    ],
    ids=range(9),
)
def test_a_poisoned_message_stays_for_the_dead_letters_and_is_told_once(
    hub: Hub, body: str
) -> None:
    hub.send(body, a_message(an_origin(2), leaking(3)))
    answer, (email,) = hub.run()
    assert answer["refused"] == 1
    assert "A report cannot be read in" in text(email)
    assert "3 sessions were terminated" in text(email)
    assert hub.waiting() == 1


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


def test_what_a_real_stack_reports_is_in_the_digest(hub: Hub, stage: Stage) -> None:
    topic = hub.aws.sns.create_topic(Name="spokes")["TopicArn"]
    queue = hub.aws.sqs.get_queue_attributes(QueueUrl=hub.queue_url, AttributeNames=["QueueArn"])
    hub.aws.sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=queue["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    stage.cleanup(lambda: hub.aws.sns.delete_topic(TopicArn=topic))
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
    assert "1 of 2 targets could not be reached: 123456789012/eu-central-1/closed" in said
    assert "2 sessions were terminated and verified gone" in said
    assert "Most leaked sessions: api (2 on 1 target)" in said
