"""Amazon SQS: the queue of a fleet's hub."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

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
_NEWER_ROUNDS: Final = 5  # in a row, without a message from before the run


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMessage:
    """A message of the queue. `sent_at` is in seconds since 1970 by the clock of SQS."""

    id: str  # SQS may deliver a message twice, to parallel calls for example
    body: str
    handle: str
    sent_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The messages of parallel calls.

    `is_last`: no message from before the run is visible. `hidden`: how many messages are hidden then,
    because this run or another one has received them.
    """

    messages: Sequence[QueueMessage]
    is_last: bool = False
    hidden: int = 0


def receive_rounds(
    queue_url: str, hidden_seconds: int, began_at: float, deadline: Deadline
) -> Iterator[Round]:
    """Yield the waiting messages, until none is left from before `began_at` or the deadline has passed.

    Each message is hidden from other runs for `hidden_seconds`. A queue into which messages always
    come is never empty, and its order is only approximate: the end is several rounds in a row without
    an older message. Raises QueueError if the first round fails; a later failure ends the rounds as
    the deadline does.
    """
    calls = 1
    newer = 0  # rounds in a row without an older message
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
        newer = 0 if any(each.sent_at < began_at for each in messages) else newer + 1
        found = None
        if newer >= _NEWER_ROUNDS or not messages:
            found = _count_messages(queue_url, deadline)
        if found is not None and (newer >= _NEWER_ROUNDS or not found.visible):
            yield Round(messages=messages, is_last=True, hidden=found.hidden)
            return
        yield Round(messages=messages)
        is_first = False
        calls = _PARALLEL if len(messages) >= _BATCH else 1


class _Numbers(NamedTuple):
    """The approximate numbers of a queue's messages."""

    visible: int
    hidden: int


def _count_messages(queue_url: str, deadline: Deadline) -> _Numbers | None:
    """Count the messages; None if that fails."""

    def count() -> _Numbers:
        answer = _get_sqs().get_queue_attributes(
            QueueUrl=queue_url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
            ],
        )
        found = answer["Attributes"]
        return _Numbers(
            visible=int(found["ApproximateNumberOfMessages"]),
            hidden=int(found["ApproximateNumberOfMessagesNotVisible"]),
        )

    try:
        return call("sqs", count, deadline)
    except AWS_ERRORS as error:
        logger.warning("cannot count the messages", extra={"error": explain_error(error)})
        return None


def _receive(queue_url: str, hidden_seconds: int) -> list[QueueMessage]:
    answer = _get_sqs().receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=_BATCH,
        VisibilityTimeout=hidden_seconds,
        WaitTimeSeconds=_WAIT_SECONDS,
        MessageSystemAttributeNames=["SentTimestamp"],
    )
    _ = answer["ResponseMetadata"]["RequestId"]
    return [
        QueueMessage(
            id=message["MessageId"],
            body=message["Body"],
            handle=message["ReceiptHandle"],
            sent_at=int(message["Attributes"]["SentTimestamp"]) / 1000,
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

    _call_in_batches(delete, "cannot delete messages", handles, deadline)


def return_messages(queue_url: str, handles: Sequence[str], deadline: Deadline) -> None:
    """Make messages visible again until the deadline; one that stays hidden comes back later."""

    def show(batch: Sequence[str]) -> None:
        entries = [
            {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
            for number, handle in enumerate(batch)
        ]
        answer = _get_sqs().change_message_visibility_batch(QueueUrl=queue_url, Entries=entries)  # type: ignore[arg-type] # a dict of values
        _ = answer["ResponseMetadata"]["RequestId"]

    _call_in_batches(show, "cannot return messages", handles, deadline)


def _call_in_batches(
    operation: Callable[[Sequence[str]], None],
    warning: str,
    handles: Sequence[str],
    deadline: Deadline,
) -> None:
    """Call an operation for all handles, ten at a time; a failure is a warning and ends the calls."""
    batches = [handles[start : start + _BATCH] for start in range(0, len(handles), _BATCH)]
    for start in range(0, len(batches), _PARALLEL):
        pending = [
            PendingCall("sqs", partial(operation, batch), deadline)
            for batch in batches[start : start + _PARALLEL]
        ]
        for each in pending:
            try:
                each.result()
            except AWS_ERRORS as error:
                logger.warning(warning, extra={"error": explain_error(error)})
                return


def _get_sqs() -> "SQSClient":
    return get_client("sqs", seconds=_CALL_SECONDS / 2, tries=1)  # type: ignore[no-any-return] # by name
