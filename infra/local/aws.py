"""A stand-in for AWS in this process: Secrets Manager, SSM, SNS, a queue as the inbox."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import boto3
from moto import backends
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.server import ThreadedMotoServer
from moto.sns.models import sns_backends
from moto.sqs.models import sqs_backends

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_ssm import SSMClient

REGION = "eu-central-1"
_INBOX = "inbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """A summary as its subscribers receive it."""

    subject: str
    body: str
    chat: str  # the form for Amazon Q Developer in chat applications
    webhook: str  # the form for webhook.py
    attributes: Mapping[str, str]  # for the filters of subscribers


@dataclass(frozen=True, slots=True, kw_only=True)
class Aws:
    """Clients of the stand-in, and the topic, which delivers to a queue that `delivered` reads."""

    dynamodb: "DynamoDBClient"
    secrets: "SecretsManagerClient"
    sns: "SNSClient"
    sqs: "SQSClient"
    ssm: "SSMClient"
    topic_arn: str

    def put_secret(self, name: str, value: object) -> None:
        """Store a new secret: bytes and text unchanged, anything else as JSON."""
        if isinstance(value, bytes):
            self.secrets.create_secret(Name=name, SecretBinary=value)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            self.secrets.create_secret(Name=name, SecretString=text)

    def delivered(self) -> list[Email]:
        """Return the messages delivered since the last call."""
        inbox = sqs_backends[DEFAULT_ACCOUNT_ID][REGION]  # in this process: HTTP takes longer
        messages = inbox.receive_message(
            _INBOX, count=1000, wait_seconds_timeout=0, visibility_timeout=60
        )
        for message in messages:
            inbox.delete_message(_INBOX, message.receipt_handle or "")
        return [self._make_email(json.loads(message.body)) for message in messages]

    def _make_email(self, notification: dict[str, Any]) -> Email:
        topic = sns_backends[DEFAULT_ACCOUNT_ID][REGION].topics[notification["TopicArn"]]
        # The queue receives the email's form; the published message has the others.
        published = next(
            message
            for message_id, message, *_ in reversed(topic.sent_notifications)
            if message_id == notification["MessageId"]
        )
        forms = json.loads(published)
        attributes = notification.get("MessageAttributes", {})
        return Email(
            subject=notification["Subject"],
            body=notification["Message"],
            chat=forms["https"],
            webhook=forms["lambda"],
            attributes={name: value["Value"] for name, value in attributes.items()},
        )


@contextmanager
def aws() -> Iterator[Aws]:
    """Run a stand-in on a free port of the loopback; every boto3 client of this process uses it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SESSION_TOKEN": "local",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    modules = tuple(backends.list_of_moto_modules())
    try:
        with (
            patch.dict(os.environ, environment),
            # moto lists its folder for every request, which takes a fifth of the request's time.
            patch.object(backends, "list_of_moto_modules", return_value=modules),
        ):
            yield _make_stand_in()
    finally:
        server.stop()


def _make_stand_in() -> Aws:
    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    topic_arn = sns.create_topic(Name="session-reaper")["TopicArn"]
    inbox_url = sqs.create_queue(QueueName=_INBOX)["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=inbox_url, AttributeNames=["QueueArn"])
    inbox_arn = attributes["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic_arn, Protocol="sqs", Endpoint=inbox_arn)
    return Aws(
        dynamodb=boto3.client("dynamodb"),
        secrets=boto3.client("secretsmanager"),
        sns=sns,
        sqs=sqs,
        ssm=boto3.client("ssm"),
        topic_arn=topic_arn,
    )
