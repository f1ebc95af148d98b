"""Amazon DynamoDB: the state of a fleet's stacks, one item per stack, read by one key."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, takewhile
from time import time
from typing import TYPE_CHECKING, Any, Final

from session_reaper.aws.clients import (
    AWS_ERRORS,
    PendingCall,
    call,
    describe_error,
    explain_error,
    get_client,
    iterate_pages,
)
from session_reaper.deadline import Deadline
from session_reaper.errors import QueueError
from session_reaper.fleet.message import Spoke
from session_reaper.fleet.state import SpokeState
from session_reaper.observability import logger
from session_reaper.report.known_issues import KnownIssue
from session_reaper.report.model import IssueKey, IssueKind
from session_reaper.targets.target import TargetKey

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

_SECONDS: Final = 3.0  # for writing an item
_PARALLEL: Final = 8  # calls
_HASH_KEY: Final = "fleet"
_KEPT_SECONDS: Final = 14 * 86400  # a stack that is silent for so long is forgotten
_MAX_KNOWN: Final = 300_000  # bytes of the issues of one stack: an item has 400 KB at most


def load_spoke_states(table: str, deadline: Deadline) -> dict[Spoke, SpokeState]:
    """Return the state of every stack. Raises QueueError if the table cannot be read.

    DynamoDB may take days to delete an expired item, which is not a stack any more.
    """

    def query() -> list[SpokeState | None]:
        paginator = _get_dynamodb().get_paginator("query")
        pages = paginator.paginate(
            TableName=table,
            ConsistentRead=True,
            KeyConditionExpression="#target = :fleet",
            FilterExpression="expires_at > :now",
            ExpressionAttributeNames={"#target": "target"},
            ExpressionAttributeValues={":fleet": {"S": _HASH_KEY}, ":now": _get_now()},
        )
        whole = iterate_pages(pages, "LastEvaluatedKey", deadline)
        return [_read_item(item) for page in whole for item in page["Items"]]

    try:
        read = call("dynamodb", query, deadline)
    except AWS_ERRORS as error:
        raise QueueError(f"table {table} cannot be read: {explain_error(error)}") from None
    return {state.spoke: state for state in read if state is not None}


def save_spoke_states(
    table: str, states: Sequence[SpokeState], deadline: Deadline
) -> Collection[Spoke]:
    """Save states until the deadline; return the stacks whose state is saved.

    Another run may have changed one meanwhile, which is then not saved.
    """
    saved = set()
    for start in range(0, len(states), _PARALLEL):
        within = deadline.capped_at(_SECONDS)
        pending = {
            state.spoke: PendingCall("dynamodb", partial(_put, table, state), within)
            for state in states[start : start + _PARALLEL]
        }
        for spoke, each in pending.items():
            try:
                each.result()
                saved.add(spoke)
            except AWS_ERRORS as error:
                extra = {"stack": spoke.label, "error": describe_error(error)}
                logger.warning("cannot write the state of a stack", extra=extra)
    return saved


def _put(table: str, state: SpokeState) -> None:
    _get_dynamodb().put_item(
        TableName=table,
        Item=to_item(state),
        ConditionExpression=(
            "attribute_not_exists(target) OR revision = :known OR expires_at <= :now"
        ),
        ExpressionAttributeValues={":known": {"N": str(state.revision)}, ":now": _get_now()},
    )


def _get_now() -> "AttributeValueTypeDef":
    return {"N": str(int(time()))}


def _get_dynamodb() -> "DynamoDBClient":
    # All items have one hash key, so DynamoDB may refuse some of many writes for a moment. A state
    # that is not saved causes the same digest again.
    return get_client("dynamodb", seconds=_SECONDS / 2, tries=3)  # type: ignore[no-any-return] # by name


def to_key(spoke: Spoke) -> dict[str, Any]:
    """Return the key of a stack's item, in the form of DynamoDB's requests."""
    return {"target": {"S": _HASH_KEY}, "kind": {"S": json.dumps(spoke)}}


def to_item(state: SpokeState) -> dict[str, Any]:
    """Return the item of a stack, in the form of DynamoDB's requests."""
    return {
        **to_key(state.spoke),
        "sent_at": {"N": f"{state.sent_at:.3f}"},
        "arrived_at": {"N": f"{state.arrived_at:.3f}"},
        "expected_by": {"N": f"{state.expected_by:.3f}"},
        "runs": {"S": " ".join(state.runs)},
        "targets": {"N": str(state.targets)},
        "known": {"S": _encode_known(state.known)},
        "revision": {"N": str(state.revision + 1)},
        "expires_at": {"N": str(int(max(state.expected_by, time()) + _KEPT_SECONDS))},
    }


def _encode_known(known: Iterable[KnownIssue]) -> str:
    """Return the issues as JSON, without the oldest ones if they are too long for an item."""
    rows = (
        (*issue.target, issue.since, issue.reported_at, issue.key.kind, *issue.key.detail)
        for issue in known
    )
    encoded = [json.dumps(row, ensure_ascii=False) for row in rows]
    sizes = accumulate(len(each.encode()) + 2 for each in reversed(encoded))
    kept = sum(1 for _ in takewhile(lambda size: size <= _MAX_KNOWN, sizes))
    return f"[{', '.join(encoded[len(encoded) - kept :])}]"


def _read_item(item: dict[str, Any]) -> SpokeState | None:
    """Read an item; one of another form counts as a new stack, so the next message replaces it."""
    state = None
    try:
        spoke = Spoke(*json.loads(item["kind"]["S"]))
        state = SpokeState(spoke=spoke, revision=int(item["revision"]["N"]))
        return replace(
            state,
            sent_at=float(item["sent_at"]["N"]),
            arrived_at=float(item["arrived_at"]["N"]),
            expected_by=float(item["expected_by"]["N"]),
            runs=tuple(item["runs"]["S"].split()),
            targets=int(item["targets"]["N"]),
            known=tuple(
                KnownIssue(
                    target=TargetKey(secret, instance),
                    key=IssueKey(IssueKind(kind), tuple(detail)),
                    since=since,
                    reported_at=reported_at,
                    previously=reported_at,
                )
                for secret, instance, since, reported_at, kind, *detail in json.loads(
                    item["known"]["S"]
                )
            ),
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        logger.warning("an item of the fleet's state is unreadable", extra={"item": item["kind"]})
        return state
