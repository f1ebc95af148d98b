"""The CloudWatch API: reads when instances of Aurora had no connection."""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from session_reaper.aws.clients import AWS_ERRORS, call, describe_error, get_client, iterate_pages
from session_reaper.deadline import Deadline
from session_reaper.errors import NoAnswerError
from session_reaper.targets.pausing import IdleMoments

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import MetricDataQueryTypeDef

# A minimum of 0 of either: there was no connection, or the instance was paused.
_METRICS: Final = ("DatabaseConnections", "ServerlessDatabaseCapacity")
_PERIOD: Final = 60  # seconds
_INSTANCES_PER_CALL: Final = 250  # a call may ask for 500 metrics
_READ: Final = ("Complete", "PartialData")


def read_idle_moments(
    identifiers: Collection[str], now: float, window: float, deadline: Deadline
) -> IdleMoments:
    """Read the latest moment in the last `window` seconds at which each instance had no connection.

    The moment is the start of the minute with the datapoint.
    """
    ids = sorted(identifiers)

    def read() -> dict[str, float]:
        latest: dict[str, float] = {}
        for start in range(0, len(ids), _INSTANCES_PER_CALL):
            batch = ids[start : start + _INSTANCES_PER_CALL]
            for identifier, moment in _iterate_idle(batch, now, window, deadline):
                latest[identifier] = max(moment, latest.get(identifier, 0.0))
        return latest

    try:
        return IdleMoments(latest=call("cloudwatch", read, deadline))
    except AWS_ERRORS as error:
        return IdleMoments(problem=f"CloudWatch cannot be read: {describe_error(error)}")


def _iterate_idle(
    identifiers: Sequence[str], now: float, window: float, deadline: Deadline
) -> Iterator[tuple[str, float]]:
    asked = [(identifier, metric) for identifier in identifiers for metric in _METRICS]
    queries: list[MetricDataQueryTypeDef] = [
        {
            "Id": f"m{number}",
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/RDS",
                    "MetricName": metric,
                    "Dimensions": [{"Name": "DBInstanceIdentifier", "Value": identifier}],
                },
                "Period": _PERIOD,
                "Stat": "Minimum",
            },
        }
        for number, (identifier, metric) in enumerate(asked)
    ]
    cloudwatch: CloudWatchClient = get_client("cloudwatch")
    pages = cloudwatch.get_paginator("get_metric_data").paginate(
        MetricDataQueries=queries,
        StartTime=datetime.fromtimestamp(now - window, UTC),
        EndTime=datetime.fromtimestamp(now, UTC),
    )
    for page in iterate_pages(pages, "NextToken", deadline):
        for result in page["MetricDataResults"]:
            if result["StatusCode"] not in _READ:
                raise NoAnswerError(f"a metric has the status {result['StatusCode']}")
            identifier, _ = asked[int(result["Id"][1:])]
            for timestamp, value in zip(result["Timestamps"], result["Values"], strict=True):
                if value == 0:
                    yield identifier, timestamp.timestamp()
