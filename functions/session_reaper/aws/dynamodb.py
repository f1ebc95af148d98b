"""Amazon DynamoDB: the notification state, one item per target and issue that was reported.

Losing an item only repeats a report, so nothing here raises: without the table, every issue
counts as new.
"""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from session_reaper.aws.clients import (
    AWS_ERRORS,
    call,
    describe_error,
    explain_error,
    get_client,
    iterate_pages,
)
from session_reaper.deadline import Deadline
from session_reaper.observability import logger
from session_reaper.report.known_issues import KnownIssue, StateUpdate
from session_reaper.report.model import IssueKey, IssueKind
from session_reaper.settings import LONGEST_REMINDER
from session_reaper.targets.target import TargetKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

STATE_SECONDS: Final = 3.0
"""Time limit for reading the table, and for each change of an item."""

UNREADABLE: Final = (
    "The memory table could not be read, so this summary may repeat what was reported before."
)

# DynamoDB deletes an item that is not reported again for so long.
_EXPIRY_SECONDS: Final = 2 * LONGEST_REMINDER
_UNCHANGED: Final = "attribute_not_exists(target) OR told_at = :known"


def load_known_issues(table: str, deadline: Deadline) -> tuple[KnownIssue, ...] | None:
    """Return all reported issues, or None if the table cannot be read by the deadline.

    An item that is incomplete or has another form is skipped: it must not hide the others.
    """

    def scan() -> list[KnownIssue | None]:
        found = _get_dynamodb().get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        whole = iterate_pages(found, "LastEvaluatedKey", deadline)
        return [_read_item(item) for page in whole for item in page["Items"]]

    try:
        read = call("dynamodb", scan, deadline)
    except AWS_ERRORS as error:
        extra = {"table": table, "error": explain_error(error)}
        logger.warning("cannot read the notification state", extra=extra)
        return None
    issues = tuple(issue for issue in read if issue is not None)
    skipped = len(read) - len(issues)
    if skipped:
        numbers = {"table": table, "skipped": skipped}
        logger.warning("skipped unreadable items of the notification state", extra=numbers)
    return issues


def save_state_update(table: str, update: StateUpdate, deadline: Deadline) -> None:
    """Save the issues that a summary has reported, unless another run has saved them since."""
    # Ended issues come first: reporting a recovery twice is worse than repeating an issue.
    # Undelivered summaries come last: there may be too many for the time that is left.
    changes: list[tuple[Callable[[str, KnownIssue], None], KnownIssue]] = [
        *((_delete, issue) for issue in update.ended if not _is_undelivered(issue)),
        *((_put, issue) for issue in update.reported),
        *((_delete, issue) for issue in update.ended if _is_undelivered(issue)),
    ]
    for change, issue in changes:
        try:
            call("dynamodb", partial(change, table, issue), deadline.capped_at(STATE_SECONDS))
        except AWS_ERRORS as error:
            if describe_error(error) == "ConditionalCheckFailedException":
                continue  # an overlapping run was faster
            extra = {
                "table": table,
                "item": _to_range_key(issue.key),
                "error": explain_error(error),
            }
            logger.warning("cannot write the notification state", extra=extra)
            if not isinstance(error, ClientError):  # DynamoDB does not answer
                return


def _put(table: str, issue: KnownIssue) -> None:
    _get_dynamodb().put_item(
        TableName=table,
        Item={
            **_to_key(issue),
            "since": _to_number(issue.since),
            "told_at": _to_number(issue.reported_at),
            "expires_at": {"N": str(int(issue.reported_at + _EXPIRY_SECONDS))},
        },
        ConditionExpression=_UNCHANGED,
        ExpressionAttributeValues={":known": _to_number(issue.previously)},
    )


def _delete(table: str, issue: KnownIssue) -> None:
    _get_dynamodb().delete_item(
        TableName=table,
        Key=_to_key(issue),
        ConditionExpression=_UNCHANGED,
        ExpressionAttributeValues={":known": _to_number(issue.reported_at)},
    )


def _get_dynamodb() -> "DynamoDBClient":
    return get_client("dynamodb", seconds=STATE_SECONDS / 2, tries=1)  # type: ignore[no-any-return] # by name


def _to_range_key(key: IssueKey) -> str:
    """Write an issue's key as words, with the blanks of its details escaped."""
    details = (each.replace("%", "%25").replace(" ", "%20") for each in key.detail)
    return " ".join([key.kind.value, *details])


def _is_undelivered(issue: KnownIssue) -> bool:
    return issue.key.kind is IssueKind.UNDELIVERED


def _read_item(item: "dict[str, AttributeValueTypeDef]") -> KnownIssue | None:
    """Read an item, or return None for one of another form, such as another release's."""
    with suppress(AttributeError, LookupError, TypeError, ValueError):
        kind, *details = item["kind"]["S"].split(" ")
        secret, _, instance = item["target"]["S"].partition("#")
        detail = tuple(each.replace("%20", " ").replace("%25", "%") for each in details)
        return KnownIssue(
            target=TargetKey(secret, instance),
            key=IssueKey(IssueKind(kind), detail),
            since=float(item["since"]["N"]),
            reported_at=float(item["told_at"]["N"]),
        )
    return None


def _to_key(issue: KnownIssue) -> "dict[str, AttributeValueTypeDef]":
    key = issue.target  # no name, ARN or identifier in it contains a #
    target = f"{key.secret}#{key.instance}" if key.instance else key.secret
    return {"target": {"S": target}, "kind": {"S": _to_range_key(issue.key)}}


def _to_number(seconds: float) -> "AttributeValueTypeDef":
    return {"N": f"{seconds:.3f}"}
