"""The notification state's table, and subscribers of topics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import boto3
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.stage import Stage

TABLE = "session-reaper-Memory"


@pytest.fixture
def table(stage: Stage) -> Iterator[None]:
    """Create the table as template.yaml does."""
    dynamodb = boto3.client("dynamodb")
    dynamodb.create_table(
        TableName=TABLE,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[
            {"AttributeName": "target", "AttributeType": "S"},
            {"AttributeName": "kind", "AttributeType": "S"},
        ],
        KeySchema=[
            {"AttributeName": "target", "KeyType": "HASH"},
            {"AttributeName": "kind", "KeyType": "RANGE"},
        ],
    )
    stage.monkeypatch.setenv("MEMORY_TABLE", TABLE)
    stage.target()
    yield
    dynamodb.delete_table(TableName=TABLE)


def use(stage: Stage, document: dict[str, object]) -> None:
    """Make this the stack's policy: a run by an event with a policy is always reported."""
    stage.aws.ssm.put_parameter(
        Name="policy", Value=json.dumps(document), Type="String", Overwrite=True
    )
    stage.monkeypatch.setenv("POLICY", "ssm:policy")


def inbox(stage: Stage, name: str) -> tuple[str, str]:
    """Create a topic, and return it with the URL of a queue that subscribes to it."""
    topic = stage.aws.sns.create_topic(Name=name)["TopicArn"]
    url = stage.aws.sqs.create_queue(QueueName=name)["QueueUrl"]
    queue = stage.aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    stage.aws.sns.subscribe(
        TopicArn=topic, Protocol="sqs", Endpoint=queue["Attributes"]["QueueArn"]
    )
    stage.cleanup(lambda: stage.aws.sns.delete_topic(TopicArn=topic))
    stage.cleanup(lambda: stage.aws.sqs.delete_queue(QueueUrl=url))
    return topic, url


def subjects(url: str) -> list[str]:
    answer = boto3.client("sqs").receive_message(QueueUrl=url, MaxNumberOfMessages=10)
    return [json.loads(message["Body"])["Subject"] for message in answer.get("Messages", [])]
