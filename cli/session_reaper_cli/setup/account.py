"""Looks at an AWS account: its PostgreSQL instances, their network, and the tagged secrets."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import boto3
from session_reaper.aws.clients import AWS_ERRORS, explain_error
from session_reaper.log_levels import silence_libraries
from session_reaper.settings import Tag

from session_reaper_cli.setup.listing import Lister, Refusal
from session_reaper_cli.setup.network import Database, Network, find_network

silence_libraries()

TAG_KEY: Final = "session-reaper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The findings. `problem` says why there are none, `refusals` why some are missing."""

    region: str = ""
    shell_region: str = ""  # where other commands look
    databases: tuple[Database, ...] = ()
    tags: tuple[Tag, ...] = ()  # of secrets, the most frequent first
    network: Network | None = None  # of the private databases, if it can be seen
    refusals: tuple[Refusal, ...] = ()
    problem: str = ""


def look_at_account(stack: str, region: str) -> Account:
    """Look at the account with the user's own credentials.

    `stack`: the name of its network stack. `region`: that of the stack, "" for the shell's.
    """
    shell_region = ""
    try:
        shell_region = boto3.Session().region_name or ""
        region = region or shell_region
        session: Any = boto3.Session(region_name=region or None)
        lister = Lister(session)
        databases = tuple(_find_databases(lister))
        return Account(
            region=region,
            shell_region=shell_region,
            databases=databases,
            tags=_find_tags(lister),
            network=find_network(lister, databases, stack),
            refusals=tuple(lister.refusals),
        )
    except AWS_ERRORS as error:
        return Account(region=region, shell_region=shell_region, problem=explain_error(error))


def _find_databases(lister: Lister) -> Iterator[Database]:
    clusters = {
        each["DBClusterIdentifier"]: each["Endpoint"]
        for each in lister.list("rds", "describe_db_clusters", "DBClusters") or ()
        if each.get("Endpoint")
    }
    seen = set()
    for each in lister.list("rds", "describe_db_instances", "DBInstances") or ():
        endpoint = each.get("Endpoint", {})
        cluster = each.get("DBClusterIdentifier", "")
        name = cluster or each["DBInstanceIdentifier"]
        if "postgres" not in each.get("Engine", "") or "Address" not in endpoint or name in seen:
            continue
        seen.add(name)
        groups = (g["VpcSecurityGroupId"] for g in each.get("VpcSecurityGroups", []))
        yield Database(
            name=name,
            host=clusters.get(cluster, endpoint["Address"]),
            port=endpoint["Port"],
            is_public=bool(each.get("PubliclyAccessible")),
            vpc=each.get("DBSubnetGroup", {}).get("VpcId", ""),
            security_groups=tuple(groups),
        )


def _find_tags(lister: Lister) -> tuple[Tag, ...]:
    filters = [{"Key": "tag-key", "Values": [TAG_KEY]}]
    secrets = lister.list("secretsmanager", "list_secrets", "SecretList", Filters=filters) or ()
    values = Counter(
        tag["Value"]
        for secret in secrets
        for tag in secret.get("Tags", [])
        if tag["Key"] == TAG_KEY
    )
    return tuple(Tag(key=TAG_KEY, value=value) for value, _ in values.most_common())
