"""Amazon SNS: one summary per run."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from session_reaper.aws import AWS_ERRORS, PUBLISH_SECONDS, client
from session_reaper.deadline import Deadline
from session_reaper.errors import PublishError
from session_reaper.summary import Summary

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient


def publish(
    summary: Summary, topic_arns: Iterable[str], deadline: Deadline
) -> Mapping[str, PublishError]:
    """Publish to every subscriber of these topics; the errors, by topic that did not take it."""
    # The client is made here and not before: a quiet run publishes nothing.
    hurried = deadline.remaining() < PUBLISH_SECONDS
    sns: SNSClient = client("sns", seconds=1, tries=1) if hurried else client("sns")
    forms = {
        "default": summary.email,
        "https": summary.notification,  # Amazon Q Developer in chat applications
        "lambda": summary.webhook,  # webhook.py
    }
    names = json.dumps(summary.targets, ensure_ascii=False)
    failures: dict[str, PublishError] = {}
    for topic_arn in topic_arns:
        try:
            _ = sns.publish(
                TopicArn=topic_arn,
                Subject=summary.subject,
                MessageStructure="json",
                Message=json.dumps(forms, ensure_ascii=False),
                MessageAttributes={
                    "severity": {"DataType": "String", "StringValue": summary.severity},
                    "status": {"DataType": "String", "StringValue": summary.status},
                    "targets": {"DataType": "String.Array", "StringValue": names},
                },
            )["MessageId"]  # without it, whatever the status says, it was not SNS that answered
        except AWS_ERRORS as error:
            why = f"{type(error).__name__}: {error}"
            failures[topic_arn] = PublishError(f"the summary did not reach {topic_arn}: {why}")
    return failures
