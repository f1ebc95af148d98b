"""Amazon SNS: one summary per run."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from session_reaper.aws.clients import AWS_ERRORS, PendingCall, get_client
from session_reaper.deadline import Deadline
from session_reaper.errors import NoAnswerError, NoThreadError, PublishError
from session_reaper.summary.message import Summary

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient

PUBLISH_SECONDS: Final = 13.0
"""What a publish takes at most: two tries of 3 s to connect and 3 s for the answer, and a pause."""


def publish(
    summary: Summary, topic_arns: Iterable[str], deadline: Deadline
) -> Mapping[str, PublishError]:
    """Publish to every subscriber of these topics; the errors, by topic that did not take it.

    Each topic has all the time until the deadline, whatever the others do.
    """
    forms = {
        "default": summary.email,
        "https": summary.notification,  # Amazon Q Developer in chat applications
        "lambda": summary.webhook,  # webhook.py
    }
    names = json.dumps(summary.targets, ensure_ascii=False)
    request = {
        "Subject": summary.subject,
        "MessageStructure": "json",
        "Message": json.dumps(forms, ensure_ascii=False),
        "MessageAttributes": {
            "severity": {"DataType": "String", "StringValue": summary.severity},
            "status": {"DataType": "String", "StringValue": summary.status},
            "targets": {"DataType": "String.Array", "StringValue": names},
        },
    }
    is_hurried = deadline.remaining() < PUBLISH_SECONDS
    seconds, tries = (1.0, 1) if is_hurried else (3.0, 2)
    send = partial(_send, request, seconds=seconds, tries=tries)
    calls = {arn: PendingCall("sns", partial(send, arn), deadline) for arn in topic_arns}
    failures: dict[str, PublishError] = {}
    for done, (topic_arn, pending) in enumerate(calls.items()):
        try:
            try:
                pending.result()
            except NoThreadError:
                within = deadline.remaining() / (len(calls) - done)
                _send_without_thread(request, topic_arn, within)
        except AWS_ERRORS as error:
            kind = "" if isinstance(error, NoAnswerError) else f"{type(error).__name__}: "
            problem = f"the summary did not reach {topic_arn}: {kind}{error}"
            failures[topic_arn] = PublishError(problem)
    return failures


def _send_without_thread(request: Mapping[str, Any], topic_arn: str, seconds: float) -> None:
    """Publish in the caller's own thread, within so many seconds if the topic answers or is silent.

    To wait for a thread would be in vain: the threads that the process has do not end. Here only
    the client's timeouts end a call, and they do not bound a name server that is silent or an
    answer that arrives byte by byte. Then Lambda ends the function, which costs the lines that
    follow; not to try would lose the summary in any case.
    """
    # Half of the time to connect, half for the answer; in steps, for each value is a client.
    timeout = int(10 * min(seconds / 2, 3)) / 10
    _send(request, topic_arn, seconds=max(timeout, 0.1), tries=1)


def _send(request: Mapping[str, Any], topic_arn: str, *, seconds: float, tries: int) -> None:
    # The client is made here and not before: a quiet run publishes nothing.
    sns: SNSClient = get_client("sns", seconds=seconds, tries=tries)
    # Without a MessageId, whatever the status says, it was not SNS that answered.
    _ = sns.publish(TopicArn=topic_arn, **request)["MessageId"]
