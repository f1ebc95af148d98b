"""Amazon DynamoDB: what summaries have told, so that the next ones need not.

One item per target and kind of trouble. Its loss costs a repeated summary and nothing else, so
nothing here raises: who cannot remember tells.
"""

from functools import partial
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from session_reaper.aws.clients import AWS_ERRORS, call, describe_error, get_client, iterate_pages
from session_reaper.deadline import Deadline
from session_reaper.observability import logger
from session_reaper.report.known_issues import KnownIssue, StateUpdate
from session_reaper.settings import LONGEST_REMINDER
from session_reaper.targets.target import TargetKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

MEMORY_SECONDS: Final = 3.0
"""What reading the table takes at most, and each change of an item."""

UNREADABLE: Final = "The memory table could not be read: this may have been told before."

_KEPT: Final = 2 * LONGEST_REMINDER  # then DynamoDB forgets what nobody tells any more
_UNCHANGED: Final = "attribute_not_exists(target) OR told_at = :known"


def load_known_issues(table: str, deadline: Deadline) -> tuple[KnownIssue, ...] | None:
    """All that is told, or None if the table does not say it by the deadline."""

    def scan() -> tuple[KnownIssue, ...]:
        found = _dynamodb().get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        whole = iterate_pages(found, "LastEvaluatedKey", deadline)
        return tuple(_told(item) for page in whole for item in page["Items"])

    try:
        return call("dynamodb", scan, deadline)
    except AWS_ERRORS as error:
        logger.warning("the memory cannot be read", extra={"table": table, "error": str(error)})
        return None


def save_state_update(table: str, learned: StateUpdate, deadline: Deadline) -> None:
    """Keep what a summary has told; what another run has kept meanwhile stays as it is."""

    def keep(told: KnownIssue) -> None:
        known = learned.before.get((told.key, told.kind))
        _dynamodb().put_item(
            TableName=table,
            Item=_item(told),
            ConditionExpression=_UNCHANGED,
            ExpressionAttributeValues={":known": _number(known.at if known else 0.0)},
        )

    def forget(told: KnownIssue) -> None:
        _dynamodb().delete_item(
            TableName=table,
            Key={"target": {"S": _hash_key(told.key)}, "kind": {"S": told.kind}},
            ConditionExpression=_UNCHANGED,
            ExpressionAttributeValues={":known": _number(told.at)},
        )

    # What is over first: to tell an end twice would be the worse.
    work: list[tuple[Callable[[KnownIssue], None], KnownIssue]] = [
        (forget, told) for told in learned.over
    ]
    work += [(keep, told) for told in learned.told]
    for change, told in work:
        try:
            call("dynamodb", partial(change, told), deadline.capped_at(MEMORY_SECONDS))
        except AWS_ERRORS as error:
            if describe_error(error) == "ConditionalCheckFailedException":
                continue  # an overlapping run was faster
            extra = {"table": table, "item": told.kind, "error": str(error)}
            logger.warning("the memory cannot be written", extra=extra)
            if not isinstance(error, ClientError):  # nobody is there
                return


def _dynamodb() -> "DynamoDBClient":
    return get_client("dynamodb", seconds=MEMORY_SECONDS / 2, tries=1)  # type: ignore[no-any-return] # by name


def _hash_key(key: TargetKey) -> str:
    """The key as text: neither a secret's name nor an ARN nor an instance's identifier has a #."""
    return f"{key.secret}#{key.instance}" if key.instance else key.secret


def _told(item: "dict[str, AttributeValueTypeDef]") -> KnownIssue:
    secret, _, instance = item["target"]["S"].partition("#")
    return KnownIssue(
        key=TargetKey(secret, instance),
        kind=item["kind"]["S"],
        since=float(item["since"]["N"]),
        at=float(item["told_at"]["N"]),
    )


def _item(told: KnownIssue) -> "dict[str, AttributeValueTypeDef]":
    return {
        "target": {"S": _hash_key(told.key)},
        "kind": {"S": told.kind},
        "since": _number(told.since),
        "told_at": _number(told.at),
        "expires_at": {"N": str(int(told.at + _KEPT))},
    }


def _number(seconds: float) -> "AttributeValueTypeDef":
    return {"N": f"{seconds:.3f}"}
