"""The RDS API: lists instances, and creates IAM tokens."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError

from session_reaper.aws.clients import AWS_ERRORS, call, describe_error, get_client, iterate_pages
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.targets.providers import find_rds_region
from session_reaper.targets.target import Auth, Instance, RdsListing, Target

if TYPE_CHECKING:
    from mypy_boto3_rds import RDSClient

_HINT: Final = (
    "Allow the function's role rds:DescribeDBClusters and rds:DescribeDBInstances, and check that the"
    " function can reach the RDS API (in a VPC: through an endpoint or a NAT)."
)
UNLISTED: Final = RdsListing(
    problem="RDS instances cannot be listed: the call did not end", hint=_HINT
)
# Instances in these states accept no connections. As targets they would fail in every run while a
# cluster scales.
_UNAVAILABLE: Final = ("creating", "deleting", "failed", "starting", "stopped", "stopping")


def list_instances(deadline: Deadline) -> RdsListing:
    """List the running instances of this account and region."""
    try:
        instances = call("rds", lambda: tuple(_iterate_instances(deadline)), deadline)
    except AWS_ERRORS as error:
        problem = f"RDS instances cannot be listed: {describe_error(error)}"
        return RdsListing(problem=problem, hint=_HINT)
    return RdsListing(instances=instances)


def with_iam_token(target: Target) -> Target:
    """Return the target with an IAM token as its password; unchanged if it has a password.

    The token is signed locally, without a call to AWS. Raises TargetError if there are no
    credentials to sign it with.
    """
    if target.auth is not Auth.IAM:
        return target
    rds: RDSClient = get_client("rds")
    # A token is for the region of the instance, which may differ from the function's.
    try:
        token = rds.generate_db_auth_token(
            DBHostname=target.host,
            Port=target.port,
            DBUsername=target.role,
            Region=find_rds_region(target.host) or rds.meta.region_name,
        )
    except BotoCoreError as error:
        message = f"cannot create an IAM token: {type(error).__name__}"
        raise TargetError("iam", message, "Check the function's role.") from None
    return replace(target, password=token)


_TIERS_OF_WRITER: Final = (0, 1)  # readers in these failover tiers pause and wake with the writer


def _iterate_instances(deadline: Deadline) -> Iterator[Instance]:
    rds: RDSClient = get_client("rds")
    pages = iterate_pages(rds.get_paginator("describe_db_clusters").paginate(), "Marker", deadline)
    clusters = {c["DBClusterIdentifier"]: c for page in pages for c in page["DBClusters"]}
    pages = iterate_pages(rds.get_paginator("describe_db_instances").paginate(), "Marker", deadline)
    for page in pages:
        for instance in page["DBInstances"]:
            endpoint = instance.get("Endpoint", {})
            if "Address" in endpoint and instance.get("DBInstanceStatus") not in _UNAVAILABLE:
                cluster = clusters.get(instance.get("DBClusterIdentifier", ""), {})
                yield _to_instance(instance, cluster)


def _to_instance(instance: Any, cluster: Any) -> Instance:  # noqa: ANN401 -- botocore's
    identifier = instance["DBInstanceIdentifier"]
    members = {each["DBInstanceIdentifier"]: each for each in cluster.get("DBClusterMembers", [])}
    is_writer = members.get(identifier, {}).get("IsClusterWriter", True)
    is_serverless = instance.get("DBInstanceClass") == "db.serverless"
    scaling = cluster.get("ServerlessV2ScalingConfiguration", {})
    secrets = (owner.get("MasterUserSecret", {}).get("SecretArn") for owner in (instance, cluster))
    own = (cluster.get("Endpoint"), cluster.get("ReaderEndpoint"))
    hosts = (*own, *cluster.get("CustomEndpoints", []))
    return Instance(
        identifier=identifier,
        cluster=instance.get("DBClusterIdentifier", ""),
        engine=instance["Engine"],
        host=instance["Endpoint"]["Address"],
        port=instance["Endpoint"]["Port"],
        is_reader=not is_writer,
        secret_arns=tuple(arn for arn in secrets if arn),
        cluster_hosts=tuple(host for host in hosts if host) if identifier in members else (),
        cluster_port=cluster.get("Port", 0),
        may_pause=is_serverless and scaling.get("MinCapacity") == 0,
        pauses_with_writer=is_writer
        or members[identifier].get("PromotionTier") in _TIERS_OF_WRITER,
    )
