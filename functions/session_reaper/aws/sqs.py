"""Amazon SQS: the queue of a fleet's hub."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from session_reaper.aws.clients import (
    AWS_ERRORS,
    PendingCall,
    call,
    describe_error,
    explain_error,
    get_client,
)
from session_reaper.deadline import Deadline
from session_reaper.errors import QueueError
from session_reaper.observability import logger

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

_BATCH: Final = 10  # messages, the most of one call
_PARALLEL: Final = 8  # calls
_CALL_SECONDS: Final = 6.0
_WAIT_SECONDS: Final = 1  # long polling asks all of the queue's servers


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMessage:
    """A message of the queue. `sent_at` is in seconds since 1970 by the clock of SQS."""

    id: str  # SQS may deliver a message twice, to parallel calls for example
    body: str
    handle: str
    sent_at: float
    is_first_time: bool  # it was not received before


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The messages of parallel calls.

    `is_last`: no further message is visible. `hidden`: how many are hidden then, because this run or
    another one has received them.
    """

    messages: Sequence[QueueMessage]
    is_last: bool = False
    hidden: int = 0


def receive_rounds(queue_url: str, hidden_seconds: int, deadline: Deadline) -> Iterator[Round]:
    """Yield the waiting messages, until the queue is empty or the deadline has passed.

    Each message is hidden from other runs for `hidden_seconds`. Raises QueueError if the first
    round fails; a later failure ends the rounds as the deadline does.
    """
    calls = 1
    is_first = True
    while deadline.remaining() > 0:
        receive = partial(_receive, queue_url, hidden_seconds)
        pending = [PendingCall("sqs", receive, deadline) for _ in range(calls)]
        messages: list[QueueMessage] = []
        error: Exception | None = None
        for each in pending:
            try:
                messages += each.result()
            except AWS_ERRORS as caught:
                error = caught
        if error is not None:
            if is_first and not messages:
                problem = f"queue {queue_url} cannot be read: {explain_error(error)}"
                raise QueueError(problem) from None
            logger.warning("cannot read the queue", extra={"error": describe_error(error)})
            yield Round(messages=messages)
            return
        hidden = None if messages else _count_hidden(queue_url, deadline)
        if hidden is not None:
            yield Round(messages=messages, is_last=True, hidden=hidden)
            return
        yield Round(messages=messages)
        is_first = False
        calls = _PARALLEL if len(messages) >= _BATCH else 1


def _count_hidden(queue_url: str, deadline: Deadline) -> int | None:
    """Return the number of hidden messages; None while one is visible, which a call may not find."""

    def count() -> tuple[int, int]:
        answer = _get_sqs().get_queue_attributes(
            QueueUrl=queue_url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
            ],
        )
        found = answer["Attributes"]
        visible = int(found["ApproximateNumberOfMessages"])
        return visible, int(found["ApproximateNumberOfMessagesNotVisible"])

    try:
        visible, hidden = call("sqs", count, deadline)
    except AWS_ERRORS as error:
        logger.warning("cannot count the messages", extra={"error": explain_error(error)})
        return None
    return None if visible else hidden


def _receive(queue_url: str, hidden_seconds: int) -> list[QueueMessage]:
    answer = _get_sqs().receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=_BATCH,
        VisibilityTimeout=hidden_seconds,
        WaitTimeSeconds=_WAIT_SECONDS,
        MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
    )
    _ = answer["ResponseMetadata"]["RequestId"]
    return [
        QueueMessage(
            id=message["MessageId"],
            body=message["Body"],
            handle=message["ReceiptHandle"],
            sent_at=int(message["Attributes"]["SentTimestamp"]) / 1000,
            is_first_time=message["Attributes"]["ApproximateReceiveCount"] == "1",
        )
        for message in answer.get("Messages", [])
    ]


def delete_messages(queue_url: str, handles: Sequence[str], deadline: Deadline) -> None:
    """Delete messages until the deadline; one that stays arrives again and is recognized."""

    def delete(batch: Sequence[str]) -> None:
        entries = [
            {"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(batch)
        ]
        answer = _get_sqs().delete_message_batch(QueueUrl=queue_url, Entries=entries)  # type: ignore[arg-type] # a dict of text
        _ = answer["ResponseMetadata"]["RequestId"]

    batches = [handles[start : start + _BATCH] for start in range(0, len(handles), _BATCH)]
    for start in range(0, len(batches), _PARALLEL):
        pending = [
            PendingCall("sqs", partial(delete, batch), deadline)
            for batch in batches[start : start + _PARALLEL]
        ]
        for each in pending:
            try:
                each.result()
            except AWS_ERRORS as error:
                logger.warning("cannot delete messages", extra={"error": explain_error(error)})
                return


def _get_sqs() -> "SQSClient":
    return get_client("sqs", seconds=_CALL_SECONDS / 2, tries=1)  # type: ignore[no-any-return] # by name
