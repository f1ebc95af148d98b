"""The messages that subscribers of the topics receive."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jsonschema
import pytest
from session_reaper.deadline import Deadline
from session_reaper.errors import InternalError, PublishError
from session_reaper.report.model import Failure, Outcome, TargetStatus
from session_reaper.runs.notify import notify
from session_reaper.runs.plan import make_plan

from tests.builders import a_report, a_target_report, some_results
from tests.integration.slack import NOTIFICATION_SCHEMA
from tests.integration.stage import IDLE, LEAK, policy
from tests.integration.wire import aws_but_for, http

if TYPE_CHECKING:
    import socket
    from threading import Event

    from tests.integration.stage import Stage

PUBLISHED = (
    b"<PublishResponse><PublishResult><MessageId>1</MessageId></PublishResult></PublishResponse>"
)


def test_every_format_of_a_summary_reports_the_same_run(stage: Stage) -> None:
    leak = stage.session(application_name="api", tcp=True)
    run = stage.reap()
    email = run.email
    assert run.outcomes() == {leak.pid: "terminated"}
    notification = json.loads(email.chat)
    jsonschema.validate(notification, NOTIFICATION_SCHEMA)
    assert run.document["summary"] in notification["content"]["title"]
    assert run.document["verdict"] == "RESOLVED: 1 session was terminated and verified gone."
    assert email.body.startswith(run.document["verdict"])
    (step,) = run.document["steps"]
    assert step.startswith("orders: Find out why api@127.0.0.0/24 (role app) leaves transactions")
    assert "`api@127.0.0.0/24` (role `app`)" in notification["content"]["description"]
    assert "api@127.0.0.0/24" in email.body
    payload = json.loads(email.webhook)
    assert payload["text"] == email.subject
    assert "`api@127.0.0.0/24` (role `app`)" in json.dumps(payload, ensure_ascii=False)


def test_subscribers_can_filter_by_what_a_summary_is_about(stage: Stage) -> None:
    stage.target()
    stage.target("closed", port=1, name="closed")
    stage.session(application_name="api")
    stage.sessions(2, role="batch", application_name="")
    stage.session(IDLE, role="healthy")
    assert stage.reap().email.attributes == {
        "severity": "warning",
        "status": "partial",
        "targets": '["closed", "orders"]',
        "applications": '["api"]',
        "roles": '["app", "batch"]',
    }


def test_the_summary_says_what_the_clients_of_terminated_sessions_saw(stage: Stage) -> None:
    leak = stage.session(LEAK)
    run = stage.reap()
    assert "57P01 (admin_shutdown)" in run.said
    assert b"C57P01" in leak.connection._usock.recv(1000)  # noqa: SLF001 -- the server's last words
    stage.session(LEAK)
    assert "57P01" not in stage.run({"mode": "observe", "policy": policy()}).said


@pytest.mark.parametrize(
    "policy_of_the_team", [{"targets": ["orders"]}, {"applications": ["api"]}, {"roles": ["app"]}]
)
def test_a_filter_passes_only_summaries_about_what_it_names(
    stage: Stage, policy_of_the_team: dict[str, list[str]]
) -> None:
    url = stage.aws.sqs.create_queue(QueueName="team")["QueueUrl"]
    stage.cleanup(lambda: stage.aws.sqs.delete_queue(QueueUrl=url))
    queue = stage.aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    subscription = stage.aws.sns.subscribe(
        TopicArn=stage.aws.topic_arn,
        Protocol="sqs",
        Endpoint=queue["Attributes"]["QueueArn"],
        Attributes={"FilterPolicy": json.dumps(policy_of_the_team)},
        ReturnSubscriptionArn=True,
    )["SubscriptionArn"]
    stage.cleanup(lambda: stage.aws.sns.unsubscribe(SubscriptionArn=subscription))
    stage.target("closed", port=1, name="closed")
    assert stage.run().emails
    assert stage.read_subjects(url) == []
    stage.target()
    stage.session(application_name="api")
    assert stage.reap().emails
    assert len(stage.read_subjects(url)) == 1


def test_a_topic_that_loses_a_request_gets_a_second_one(stage: Stage) -> None:
    requests = 0
    published = http("200 OK", PUBLISHED)

    def answer(connection: socket.socket, stop: Event) -> None:
        nonlocal requests
        requests += 1
        if requests > 1:
            published(connection, stop)

    stage.session()
    with aws_but_for(b"/sns/aws4_request", answer) as gateway:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gateway.port}")
        stage.reap()
    assert requests == 2


@pytest.fixture
def pager(stage: Stage) -> str:
    topic, url = stage.subscribe_queue("pager")
    stage.monkeypatch.setenv("CRITICAL_TOPIC_ARN", topic)
    return url


def test_a_critical_run_is_published_to_both_topics(stage: Stage, pager: str) -> None:
    stage.target()
    stage.session()
    assert stage.reap().emails
    assert stage.read_subjects(pager) == []
    stage.root.run("ALTER DATABASE postgres CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, "ALTER DATABASE postgres CONNECTION LIMIT -1")
    email = stage.run(seconds=12).email
    assert email.subject.startswith("CRITICAL: orders: full")
    assert stage.read_subjects(pager) == [email.subject]


def test_a_missing_second_topic_does_not_hinder_the_first(stage: Stage) -> None:
    gone = f"{stage.aws.topic_arn}-gone"
    stage.monkeypatch.setenv("CRITICAL_TOPIC_ARN", gone)
    stage.target()
    stage.root.run("ALTER DATABASE postgres CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, "ALTER DATABASE postgres CONNECTION LIMIT -1")
    with pytest.raises(PublishError, match=gone):
        stage.run(seconds=12)
    (email,) = stage.aws.delivered()
    assert email.subject.startswith("CRITICAL: orders: full")


# Values that no validated report has, and with which its parts cannot be written.
BREAKING: dict[str, dict[str, object]] = {
    "email": {"pressure": (None,)},
    "steps": {"status": TargetStatus.FAILED, "error": Failure(code="x", cause="y", hint=None)},  # type: ignore[arg-type] # on purpose
}


@pytest.mark.parametrize("part", BREAKING)
def test_a_bug_in_writing_the_summary_publishes_the_numbers_and_ends_the_run_with_an_error(
    stage: Stage, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    stage.target()
    ended = some_results(3, Outcome.TERMINATED), some_results(2, Outcome.LINGERING)
    odd = a_target_report(*ended[1], name="odd<!channel>", used_after=40, **BREAKING[part])
    report = a_report(a_target_report(*ended[0], used_after=40), odd)
    plan = make_plan({}, Deadline(60))
    with pytest.raises(InternalError, match="session-reaper has a bug: TypeError"):
        notify(report, (), plan, function_arn=stage.aws.topic_arn, end=Deadline(60))
    (email,) = stage.aws.delivered()
    assert email.subject == "session-reaper has a bug: 3 terminated, 2 lingering"
    assert "orders: ok, 3 terminated" in email.body
    assert f"odd??channel?: {odd.status}, 2 lingering" in email.body
    assert "The log has the outcome of each session" in email.body
    notification = json.loads(email.chat)
    jsonschema.validate(notification, NOTIFICATION_SCHEMA)
    for text in (notification["content"]["description"], json.loads(email.webhook)["blocks"]):
        assert "odd??channel?" in str(text)
    messages = [record.message for record in caplog.records]
    assert (messages.count("a bug in the summary"), messages.count("run")) == (1, 1)
