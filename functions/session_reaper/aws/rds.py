"""The RDS API: which instances there are, and tokens that stand in for passwords."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError

from session_reaper.aws.clients import AWS_ERRORS, call, describe_error, get_client, iterate_pages
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.targets.providers import rds_region
from session_reaper.targets.target import Instance, Target

if TYPE_CHECKING:
    from mypy_boto3_rds import RDSClient

_HINT: Final = (
    "Allow the function's role rds:DescribeDBClusters and rds:DescribeDBInstances, and check that it"
    " reaches the RDS API (in a VPC: an endpoint or a NAT)."
)
# They take no connections, and say so by failing: in every run, while a cluster scales.
_DOWN: Final = ("creating", "deleting", "failed", "starting", "stopped", "stopping")


class Rds:
    """What one run asks of RDS. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._listed: tuple[Instance, ...] | TargetError | None = None

    def instances(self, deadline: Deadline) -> tuple[Instance, ...]:
        """All of this account and region that are running; asked for once, even if that fails.

        Raises TargetError.
        """
        with self._lock:
            if self._listed is None:
                try:
                    self._listed = call("rds", lambda: tuple(_list_instances(deadline)), deadline)
                except AWS_ERRORS as error:
                    problem = f"RDS instances cannot be listed: {describe_error(error)}"
                    self._listed = TargetError("rds", problem, _HINT)
        if isinstance(self._listed, TargetError):
            raise TargetError(self._listed.code, self._listed.message, self._listed.hint)
        return self._listed

    def with_iam_token(self, target: Target) -> Target:
        """The target with a token for a password. It is made here: no call goes out.

        Raises TargetError if there is nothing to sign it with.
        """
        rds: RDSClient = get_client("rds")
        # A token is for the region of the instance, which may be another than the function's.
        try:
            token = rds.generate_db_auth_token(
                DBHostname=target.host,
                Port=target.port,
                DBUsername=target.role,
                Region=rds_region(target.host) or rds.meta.region_name,
            )
        except BotoCoreError as error:
            message = f"no IAM token can be made: {type(error).__name__}"
            raise TargetError("iam", message, "Check the function's role.") from None
        return replace(target, password=token)


def _list_instances(deadline: Deadline) -> Iterator[Instance]:
    rds: RDSClient = get_client("rds")
    lists = iterate_pages(rds.get_paginator("describe_db_clusters").paginate(), "Marker", deadline)
    clusters = {c["DBClusterIdentifier"]: c for page in lists for c in page["DBClusters"]}
    for page in iterate_pages(
        rds.get_paginator("describe_db_instances").paginate(), "Marker", deadline
    ):
        for instance in page["DBInstances"]:
            endpoint = instance.get("Endpoint", {})
            if "Address" in endpoint and instance.get("DBInstanceStatus") not in _DOWN:
                cluster = clusters.get(instance.get("DBClusterIdentifier", ""), {})
                yield _to_instance(instance, cluster)


def _to_instance(instance: Any, cluster: Any) -> Instance:  # noqa: ANN401 -- two shapes of botocore's
    members = cluster.get("DBClusterMembers", [])
    identifier = instance["DBInstanceIdentifier"]
    secrets = (found.get("MasterUserSecret", {}).get("SecretArn") for found in (instance, cluster))
    is_member = any(member["DBInstanceIdentifier"] == identifier for member in members)
    own = (cluster.get("Endpoint"), cluster.get("ReaderEndpoint"))
    hosts = (*own, *cluster.get("CustomEndpoints", []))
    return Instance(
        identifier=identifier,
        cluster=instance.get("DBClusterIdentifier", ""),
        engine=instance["Engine"],
        host=instance["Endpoint"]["Address"],
        port=instance["Endpoint"]["Port"],
        reader=any(
            member["DBInstanceIdentifier"] == identifier and not member["IsClusterWriter"]
            for member in members
        ),
        secret_arns=tuple(arn for arn in secrets if arn),
        cluster_hosts=tuple(host for host in hosts if host) if is_member else (),
        cluster_port=cluster.get("Port", 0),
    )
