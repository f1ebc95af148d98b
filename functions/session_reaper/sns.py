"""Amazon SNS: one summary per run."""

import json
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from session_reaper.aws import client
from session_reaper.errors import PublishError
from session_reaper.summary import Summary

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient


def publish(summary: Summary, topic_arn: str) -> None:
    """Publish to every subscriber of the topic. Raises PublishError."""
    # The client is made here and not before: a quiet run publishes nothing.
    sns: SNSClient = client("sns")
    try:
        sns.publish(
            TopicArn=topic_arn,
            Subject=summary.subject,
            MessageStructure="json",
            Message=json.dumps({"default": summary.body}, ensure_ascii=False),
        )
    except (ClientError, BotoCoreError) as error:
        raise PublishError(f"the summary did not reach {topic_arn}: {error}") from error
