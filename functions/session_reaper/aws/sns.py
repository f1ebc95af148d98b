"""Publishes the summary to Amazon SNS."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from session_reaper.aws.clients import AWS_ERRORS, PendingCall, call, explain_error, get_client
from session_reaper.deadline import Deadline
from session_reaper.errors import NoThreadError, PublishError
from session_reaper.summary.message import Summary

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient

PUBLISH_SECONDS: Final = 13.0
"""The longest time for one publish: two tries of 3 s to connect and 3 s to answer, and a pause."""
_TWO_TRIES_SECONDS: Final = 12.0


def publish(
    summary: Summary, topic_arns: Iterable[str], deadline: Deadline
) -> Mapping[str, PublishError]:
    """Publish the summary to all topics at once; return the error of each topic that failed.

    Each topic has the whole time until the deadline.
    """
    request = _to_request(summary)
    # A deadline of PUBLISH_SECONDS is a moment less by now.
    tries = 2 if deadline.remaining() > _TWO_TRIES_SECONDS else 1
    send = partial(_send, request, seconds=3.0, tries=tries)
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
            problem = f"the summary did not reach {topic_arn}: {explain_error(error)}"
            failures[topic_arn] = PublishError(problem)
    return failures


def _to_request(summary: Summary) -> Mapping[str, Any]:
    # By SNS protocol: https is Amazon Q Developer in chat applications, lambda is webhook.py.
    forms = {"default": summary.email, "https": summary.notification, "lambda": summary.webhook}
    lists = {
        "targets": summary.targets,
        "applications": summary.applications,
        "roles": summary.roles,
    }
    attributes = {
        "severity": ("String", summary.severity),
        "status": ("String", summary.status),
        **{
            name: ("String.Array", json.dumps(values, ensure_ascii=False))
            for name, values in lists.items()
            if values
        },
    }
    return {
        "Subject": summary.subject,
        "MessageStructure": "json",
        "Message": json.dumps(forms, ensure_ascii=False),
        "MessageAttributes": {
            name: {"DataType": kind, "StringValue": value}
            for name, (kind, value) in attributes.items()
        },
    }


def publish_document(document: str, topic_arn: str, deadline: Deadline) -> None:
    """Publish a compact report to a hub's topic, in one try. Raises PublishError."""
    send = partial(_send, {"Message": document}, topic_arn, seconds=3.0, tries=1)
    try:
        call("sns", send, deadline)
    except AWS_ERRORS as error:
        problem = f"the report did not reach {topic_arn}: {explain_error(error)}"
        raise PublishError(problem) from error


def _send_without_thread(request: Mapping[str, Any], topic_arn: str, seconds: float) -> None:
    """Publish in the caller's own thread, within about `seconds`.

    Idle threads of a pool never end, so a free one cannot be waited for. Here only the client's
    timeouts end the call. If name resolution hangs or the answer arrives byte by byte,
    Lambda ends the function, and the remaining log lines are lost; without this try, the summary
    would be lost in any case.
    """
    # Half of the time is for connecting, half for the answer. Rounded, because each value makes
    # another client.
    timeout = int(10 * min(seconds / 2, 3)) / 10
    _send(request, topic_arn, seconds=max(timeout, 0.1), tries=1)


def _send(request: Mapping[str, Any], topic_arn: str, *, seconds: float, tries: int) -> None:
    # A quiet run does not need the client.
    sns: SNSClient = get_client("sns", seconds=seconds, tries=tries)
    # An answer without a MessageId is not from SNS.
    _ = sns.publish(TopicArn=topic_arn, **request)["MessageId"]
