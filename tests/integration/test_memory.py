"""The notification state of a real server's issues, with a stand-in for DynamoDB."""

from __future__ import annotations

import json
import os
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.client import BaseClient
from session_reaper.errors import PublishError

from tests.integration.notification_state import age_items, read_items, read_kinds
from tests.integration.stage import IDLE, LEAK, REAPER, TABLE, policy, rule
from tests.integration.wire import Impostor, aws_but_for, http, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.stage import Run, Stage

SECRETS = "arn:aws:secretsmanager:eu-central-1:123456789012:secret"
PAGE = b"<html><head><title>403 Forbidden</title></head><body><h1>403 Forbidden</h1></body></html>"


@contextmanager
def lock_out(stage: Stage) -> Iterator[None]:
    stage.root.run(f"ALTER ROLE {REAPER} NOLOGIN")
    try:
        yield
    finally:
        stage.root.run(f"ALTER ROLE {REAPER} LOGIN")


def subjects(run: Run) -> list[str]:
    return [email.subject for email in run.emails]


@pytest.mark.usefixtures("table")
def test_an_issue_is_reported_once_and_its_end_once(stage: Stage) -> None:
    with lock_out(stage):
        (first,) = subjects(stage.run())
        assert first.startswith("orders: failed")
        assert subjects(stage.run()) == []
        assert read_kinds() == {"failed 28000"}
    (last,) = subjects(stage.run())
    assert last.startswith("orders: recovered (error 28000 for ")
    assert read_kinds() == set()
    assert subjects(stage.run()) == []


@pytest.mark.usefixtures("table")
def test_an_ongoing_issue_is_repeated_after_remind_after(stage: Stage) -> None:
    stage.monkeypatch.setenv("REMIND_AFTER", "90m")
    with lock_out(stage):
        assert stage.run().emails
        age_items(89 * 60)
        assert not stage.run().emails
        age_items(60)
        assert stage.run().emails
        assert not stage.run().emails


@pytest.mark.usefixtures("table")
def test_an_issue_that_returns_is_news(stage: Stage) -> None:
    for _ in range(2):
        with lock_out(stage):
            assert stage.run().emails
        assert stage.run().emails


@pytest.mark.usefixtures("table")
def test_every_termination_is_reported(stage: Stage) -> None:
    stage.use_policy(policy())
    for _ in range(3):
        stage.session()
        run = stage.run()
        assert run.document["totals"]["terminated"] == 1
        assert subjects(run) == [run.document["summary"]]
    assert read_items() == []


@pytest.mark.usefixtures("table")
def test_in_observe_mode_the_same_leak_is_reported_once(stage: Stage) -> None:
    stage.use_policy(policy())
    stage.monkeypatch.setenv("MODE", "observe")
    stage.session()
    assert stage.run().emails
    run = stage.run()
    assert run.document["totals"]["would_terminate"] == 1
    assert run.emails == []


@pytest.mark.usefixtures("table")
def test_a_known_issue_is_named_beside_the_news(stage: Stage) -> None:
    stage.use_policy(policy())
    stage.target("closed", port=1, name="closed")
    assert stage.run().emails
    stage.session()
    email = stage.run().email
    assert email.subject.startswith("orders: 1 session terminated")
    assert email.subject.endswith("; 1 with known issues")
    assert "Reported before and not resolved yet: closed" in email.body


@pytest.mark.usefixtures("table")
def test_a_manual_run_with_options_is_reported_and_changes_no_state(stage: Stage) -> None:
    with lock_out(stage):
        assert stage.run().emails
        before = read_items()
        assert stage.run({"mode": "observe"}).emails
    assert stage.run({"check": True}).emails
    assert read_items() == before
    assert "recovered" in stage.run({"targets": ["orders"]}).email.subject


@pytest.mark.usefixtures("table")
def test_notify_always_reports_every_run(stage: Stage) -> None:
    stage.monkeypatch.setenv("NOTIFY", "always")
    with lock_out(stage):
        assert stage.run().emails
        assert stage.run().emails
    assert "recovered" in stage.run().email.subject
    assert "recovered" not in stage.run().email.subject


def test_without_a_table_everything_is_reported(stage: Stage) -> None:
    with lock_out(stage):
        assert stage.run().emails
        assert stage.run().emails


@pytest.mark.parametrize("name", ["no-such-table", "not a name"])
def test_if_the_table_cannot_be_read_everything_is_reported(stage: Stage, name: str) -> None:
    stage.monkeypatch.setenv("MEMORY_TABLE", name)
    with lock_out(stage):
        for _ in range(2):
            assert "The memory table could not be read" in stage.run().said
    assert stage.run().emails == []


@pytest.mark.usefixtures("table")
def test_a_table_that_does_not_answer_costs_seconds_and_no_summary(stage: Stage) -> None:
    leak = stage.session(IDLE)
    stage.use_policy(policy(rule(state=[IDLE])))
    with aws_but_for(b"DynamoDB_") as silent:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.port}")
        run = stage.run()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert "The memory table could not be read" in run.said


@pytest.mark.usefixtures("table")
def test_an_undelivered_issue_is_not_saved_as_reported(stage: Stage) -> None:
    topic = os.environ["TOPIC_ARN"]
    with lock_out(stage):
        stage.monkeypatch.setenv("TOPIC_ARN", f"{topic}-gone")
        with pytest.raises(PublishError):
            stage.run()
        stage.monkeypatch.setenv("TOPIC_ARN", topic)
        assert subjects(stage.run())[0].startswith("orders: failed")


@pytest.mark.usefixtures("table")
def test_a_termination_whose_summary_was_not_delivered_is_reported_by_the_next_run(
    stage: Stage,
) -> None:
    topic = os.environ["TOPIC_ARN"]
    stage.use_policy(policy())
    stage.session()
    stage.monkeypatch.setenv("TOPIC_ARN", f"{topic}-gone")
    with pytest.raises(PublishError):
        stage.run()
    stage.monkeypatch.setenv("TOPIC_ARN", topic)
    run = stage.run()
    assert run.document["totals"]["terminated"] == 0
    assert run.email.subject.endswith("; 1 undelivered from earlier runs")
    assert "Not delivered by an earlier run: orders: 1 session terminated" in run.said
    assert stage.run().emails == []


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("body", [b"upstream connect error", PAGE, b'"no"', b""])
@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "503 Service Unavailable"])
def test_a_termination_whose_summary_a_proxy_swallows_is_in_the_log_and_the_next_summary(
    stage: Stage, caplog: pytest.LogCaptureFixture, status: str, body: bytes
) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    stand_in = os.environ["AWS_ENDPOINT_URL"]
    with aws_but_for(b"/sns/aws4_request", http(status, body)) as proxy:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(PublishError, match="the summary did not reach"):
            stage.run()
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", stand_in)
    assert not leak.is_there
    assert [record.message for record in caplog.records].count("outcome") == 1
    assert stage.run().email.subject.endswith("; 1 undelivered from earlier runs")


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("body", [b"upstream connect error", PAGE, b'"no"', b"[]", b""])
@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
def test_if_a_proxy_answers_for_the_table_everything_is_reported(
    stage: Stage, status: str, body: bytes
) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    with aws_but_for(b"/dynamodb/aws4_request", http(status, body)) as proxy:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        run = stage.run()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert len(run.emails) == 1


@pytest.mark.usefixtures("table")
def test_a_bug_in_publishing_keeps_no_termination_out_of_the_log(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- botocore's one way out

    def surprise(client: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        if operation == "Publish":
            raise ZeroDivisionError
        return call(client, operation, arguments)

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", surprise)
    with pytest.raises(ZeroDivisionError):
        stage.run()
    assert not leak.is_there
    assert [record.message for record in caplog.records].count("outcome") == 1
    assert [record.message for record in caplog.records].count("run") == 1


@pytest.mark.usefixtures("table")
def test_one_item_that_cannot_be_saved_does_not_affect_the_others(stage: Stage) -> None:
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- botocore's one way out

    def stretch(client: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        if operation == "PutItem" and arguments["Item"]["target"]["S"].endswith(":a"):
            arguments["Item"]["target"]["S"] *= 100  # DynamoDB takes 2,048 bytes
        return call(client, operation, arguments)

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", stretch)
    stage.target("a", port=1)
    stage.target("z", port=2)
    assert stage.run().emails
    assert [item["target"]["S"] for item in read_items()] == [f"{SECRETS}:z"]


@pytest.mark.usefixtures("table")
def test_a_second_topic_that_is_gone_does_not_make_the_first_repeat_its_summary(
    stage: Stage,
) -> None:
    stage.monkeypatch.setenv("CRITICAL_TOPIC_ARN", f"{stage.aws.topic_arn}-gone")
    stage.root.run("ALTER DATABASE postgres CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, "ALTER DATABASE postgres CONNECTION LIMIT -1")
    with pytest.raises(PublishError):
        stage.run(seconds=12)
    assert len(stage.aws.delivered()) == 1
    assert stage.run(seconds=12).emails == []


@pytest.mark.usefixtures("table")
def test_an_item_has_the_target_the_times_and_its_expiry(stage: Stage) -> None:
    began = time.time()
    with lock_out(stage):
        stage.run()
    ((item),) = read_items()
    assert item["target"] == {"S": f"{SECRETS}:orders"}
    assert began - 1 < float(item["told_at"]["N"]) == float(item["since"]["N"]) <= time.time()
    assert int(item["expires_at"]["N"]) > began + 7 * 86400


@pytest.mark.usefixtures("table")
def test_a_secret_that_takes_another_target_s_name_hides_nothing(stage: Stage) -> None:
    stage.use_policy(policy())
    fields = b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0"
    with Impostor(say(b"E" + struct.pack("!i", 4 + len(fields)) + fields)) as always_full:
        stage.target("thief", port=always_full.port, name="orders")
        assert stage.run(seconds=6).email.subject.startswith("CRITICAL")
        assert stage.run(seconds=6).emails == []
        stage.fill()
        stage.monkeypatch.setenv("MODE", "observe")
        assert stage.run(seconds=6).email.subject.startswith("CRITICAL")
        assert len({item["target"]["S"] for item in read_items()}) == 2


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("known_by", ["name", "ARN"])
def test_a_secret_that_can_be_read_again_has_recovered(stage: Stage, known_by: str) -> None:
    secrets = stage.aws.secrets
    secrets.put_secret_value(SecretId="orders", SecretString=json.dumps(stage.secret(port=1)))
    assert stage.run().emails
    stage.aws.put_secret("stock", stage.secret())
    arn = secrets.describe_secret(SecretId="stock")["ARN"]
    stage.listed("stock" if known_by == "name" else arn)
    secrets.delete_secret(SecretId="stock", RecoveryWindowInDays=7)
    assert stage.run().emails
    assert stage.run().emails == []
    secrets.restore_secret(SecretId="stock")
    assert "stock: recovered (error secret" in stage.run().email.subject
    assert read_kinds() == {"failed connection"}


@pytest.mark.usefixtures("table")
def test_in_mode_off_nothing_is_forgotten(stage: Stage) -> None:
    with lock_out(stage):
        stage.run()
    stage.monkeypatch.setenv("MODE", "off")
    assert stage.run().emails == []
    assert read_kinds() == {"failed 28000"}


def put_item(kind: str, target: str = f"{SECRETS}:orders") -> None:
    number = {"N": f"{time.time() - 60:.3f}"}
    item = {"target": {"S": target}, "kind": {"S": kind}, "since": number, "told_at": number}
    boto3.client("dynamodb").put_item(TableName=TABLE, Item=item)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "kind", ["untold orders: 1 session terminated", "lingering", "?", " ", "full full"]
)
def test_an_item_of_another_release_is_ignored(stage: Stage, kind: str) -> None:
    put_item(kind)
    with lock_out(stage):
        assert stage.run().email.subject.startswith("orders: failed")
    assert "failed 28000" in read_kinds()


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"since": {"N": "1"}},
        {"told_at": {"N": "1"}},
        {"since": {"S": "yesterday"}, "told_at": {"N": "1"}},
        {"since": {"N": "1"}, "told_at": {"NULL": True}},
    ],
)
def test_an_item_that_cannot_be_read_hides_no_other_item(
    stage: Stage, caplog: pytest.LogCaptureFixture, attributes: dict[str, Any]
) -> None:
    bad = {"target": {"S": f"{SECRETS}:orders"}, "kind": {"S": "full"}, **attributes}
    boto3.client("dynamodb").put_item(TableName=TABLE, Item=bad)
    with lock_out(stage):
        first = stage.run()
        assert len(first.emails) == 1
        assert "memory table could not be read" not in first.said
        assert stage.run().emails == []
    warnings = [record for record in caplog.records if "skipped" in record.message]
    assert [record.__dict__["skipped"] for record in warnings] == [1, 1]
    assert "yesterday" not in caplog.text


@pytest.mark.thorough
@pytest.mark.usefixtures("table")
def test_many_undelivered_summaries_are_published_at_once_when_the_topic_is_back(
    stage: Stage,
) -> None:
    for n in range(150):
        put_item(f"undelivered {'名' * 200}", f"run {n}")
    topic = os.environ["TOPIC_ARN"]
    stage.use_policy(policy())
    stage.session()
    stage.monkeypatch.setenv("TOPIC_ARN", f"{topic}-gone")
    with pytest.raises(PublishError):
        stage.run(seconds=60)
    assert len(read_items()) == 5
    stage.monkeypatch.setenv("TOPIC_ARN", topic)
    run = stage.run()
    assert run.email.subject.endswith("; 151 undelivered from earlier runs")
    assert "Not delivered by an earlier run: orders: 1 session terminated" in run.said
    assert read_items() == []
    assert stage.run().emails == []


@pytest.mark.usefixtures("table")
def test_an_observed_rule_with_a_blank_in_its_name_hides_no_other_rule(stage: Stage) -> None:
    stage.monkeypatch.setenv("MODE", "observe")
    stage.session(role="b c")
    stage.use_policy(policy(rule("a")))
    assert stage.run().emails
    assert stage.run().emails == []
    assert read_kinds() == {"would_terminate a b%20c"}
    stage.session(role="c")
    stage.use_policy(policy(rule("a b", role=["c"], state=[LEAK], idle_for="1ms")))
    assert stage.run().emails
    stage.use_policy(policy(rule("a%20b", role=["c"], state=[LEAK], idle_for="1ms")))
    assert stage.run().emails
    assert stage.run().emails == []
    assert read_kinds() == {
        "would_terminate a b%20c",
        "would_terminate a%20b c",
        "would_terminate a%2520b c",
    }
