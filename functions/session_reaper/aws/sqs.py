"""Amazon SQS: the queue of a fleet's hub."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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


class QueueMessage(NamedTuple):
    """A message of the queue. `sent_at` is in seconds since 1970 by the clock of SQS."""

    id: str  # SQS may deliver a message twice, to parallel calls for example
    body: str
    handle: str
    sent_at: float


class Round(NamedTuple):
    """The messages of parallel calls.

    `is_last`: no message from before the run is visible. `hidden`: how many messages are hidden
    then, because this run or another one has received them.
    """

    messages: Sequence[QueueMessage]
    is_last: bool = False
    hidden: int = 0


def receive_rounds(
    queue_url: str, hidden_seconds: int, began_at: float, deadline: Deadline
) -> Iterator[Round]:
    """Yield the waiting messages until the deadline, or until all are from after `began_at`.

    Each message is hidden from other runs for `hidden_seconds`. A queue into which messages always
    come is never empty, and its order is only approximate: the end is several rounds in a row
    without an older message. Raises QueueError if the first round fails; a later failure ends the
    rounds as the deadline does.
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
        are_newer = newer >= _NEWER_ROUNDS
        counts = _count_messages(queue_url, deadline) if are_newer or not messages else None
        if counts is not None and (are_newer or not counts[_VISIBLE]):
            yield Round(messages=messages, is_last=True, hidden=counts[_HIDDEN])
            return
        yield Round(messages=messages)
        is_first = False
        calls = _PARALLEL if len(messages) >= _BATCH else 1


_VISIBLE: Final = "ApproximateNumberOfMessages"
_HIDDEN: Final = "ApproximateNumberOfMessagesNotVisible"


def _count_messages(queue_url: str, deadline: Deadline) -> Mapping[str, int] | None:
    """Count the visible and the hidden messages, approximately; None if that fails."""

    def count() -> Mapping[str, int]:
        answer = _get_sqs().get_queue_attributes(
            QueueUrl=queue_url, AttributeNames=[_VISIBLE, _HIDDEN]
        )
        return {name: int(answer["Attributes"][name]) for name in (_VISIBLE, _HIDDEN)}

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
    entries = [{"ReceiptHandle": handle} for handle in handles]
    delete = partial(_get_sqs().delete_message_batch, QueueUrl=queue_url)
    _call_in_batches(delete, "cannot delete messages", entries, deadline)


def return_messages(queue_url: str, handles: Sequence[str], deadline: Deadline) -> None:
    """Make messages visible again until the deadline; one that stays hidden comes back later."""
    entries = [{"ReceiptHandle": handle, "VisibilityTimeout": 0} for handle in handles]
    show = partial(_get_sqs().change_message_visibility_batch, QueueUrl=queue_url)
    _call_in_batches(show, "cannot return messages", entries, deadline)


def _call_in_batches(
    operation: Callable[..., Any],
    warning: str,
    entries: Sequence[Mapping[str, Any]],
    deadline: Deadline,
) -> None:
    """Call an operation for all entries, ten at a time; a failure is logged and ends the calls."""

    def run(batch: Sequence[Mapping[str, Any]]) -> None:
        answer = operation(Entries=[{"Id": str(n), **entry} for n, entry in enumerate(batch)])
        _ = answer["ResponseMetadata"]["RequestId"]

    batches = [entries[start : start + _BATCH] for start in range(0, len(entries), _BATCH)]
    for start in range(0, len(batches), _PARALLEL):
        pending = [
            PendingCall("sqs", partial(run, batch), deadline)
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
