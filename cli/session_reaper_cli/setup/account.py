"""Looks at an AWS account: its PostgreSQL instances, their networks, and the tagged secrets."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import boto3
from botocore.config import Config
from session_reaper.aws.clients import AWS_ERRORS, explain_error
from session_reaper.log_levels import silence_libraries
from session_reaper.settings import Tag

silence_libraries()

TAG_KEY: Final = "session-reaper"
_MOST_SUBNETS: Final = 3
_CONFIG: Final = Config(connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 2})


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A PostgreSQL instance of RDS or Aurora."""

    name: str  # of the cluster, or else of the instance
    host: str
    port: int
    is_public: bool
    vpc: str
    security_groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where the function can run to reach databases. `security_group`: "" if none is let in."""

    vpc: str
    subnets: tuple[str, ...]
    has_nat: bool  # the subnets reach AWS's services without endpoints
    security_group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The findings; `problem` is the reason why there are none."""

    region: str = ""
    databases: tuple[Database, ...] = ()
    tags: tuple[Tag, ...] = ()  # of secrets, the most frequent first
    network: Network | None = None
    problem: str = ""


def look_at_account() -> Account:
    """Look at the account with the user's own credentials."""
    region = ""
    try:
        session: Any = boto3.Session()
        region = session.region_name or ""
        databases = _find_databases(session)
        return Account(
            region=region,
            databases=databases,
            tags=_find_tags(session),
            network=_find_network(session, databases),
        )
    except AWS_ERRORS as error:
        return Account(region=region, problem=explain_error(error))


def _list(session: Any, service: str, operation: str, key: str, **given: Any) -> Iterator[Any]:  # noqa: ANN401 -- botocore's
    client = session.client(service, config=_CONFIG)
    for page in client.get_paginator(operation).paginate(**given):
        yield from page[key]


def _find_databases(session: Any) -> tuple[Database, ...]:  # noqa: ANN401 -- as above
    clusters = {
        each["DBClusterIdentifier"]: each["Endpoint"]
        for each in _list(session, "rds", "describe_db_clusters", "DBClusters")
        if each.get("Endpoint")
    }
    found: dict[str, Database] = {}
    for each in _list(session, "rds", "describe_db_instances", "DBInstances"):
        endpoint = each.get("Endpoint", {})
        if "postgres" not in each.get("Engine", "") or "Address" not in endpoint:
            continue
        cluster = each.get("DBClusterIdentifier", "")
        name = cluster or each["DBInstanceIdentifier"]
        groups = (g["VpcSecurityGroupId"] for g in each.get("VpcSecurityGroups", []))
        found[name] = Database(
            name=name,
            host=clusters.get(cluster, endpoint["Address"]),
            port=endpoint["Port"],
            is_public=bool(each.get("PubliclyAccessible")),
            vpc=each.get("DBSubnetGroup", {}).get("VpcId", ""),
            security_groups=tuple(groups),
        )
    return tuple(found.values())


def _find_tags(session: Any) -> tuple[Tag, ...]:  # noqa: ANN401 -- as above
    filters = [{"Key": "tag-key", "Values": [TAG_KEY]}]
    secrets = _list(session, "secretsmanager", "list_secrets", "SecretList", Filters=filters)
    values = Counter(
        tag["Value"]
        for secret in secrets
        for tag in secret.get("Tags", [])
        if tag["Key"] == TAG_KEY
    )
    return tuple(Tag(key=TAG_KEY, value=value) for value, _ in values.most_common())


def _find_network(session: Any, databases: Iterable[Database]) -> Network | None:  # noqa: ANN401 -- as above
    """Find where most of the private databases can be reached from."""
    private = [each for each in databases if not each.is_public and each.vpc]
    if not private:
        return None
    vpc = Counter(each.vpc for each in private).most_common(1)[0][0]
    inside = [each for each in private if each.vpc == vpc]
    filters = [{"Name": "vpc-id", "Values": [vpc]}]
    subnets = list(_list(session, "ec2", "describe_subnets", "Subnets", Filters=filters))
    tables = list(_list(session, "ec2", "describe_route_tables", "RouteTables", Filters=filters))
    ways = {each["SubnetId"]: _find_way_out(each["SubnetId"], tables) for each in subnets}
    best = next((way for way in ("nat-", "", "igw-") if way in ways.values()), "")
    zones = {
        each["AvailabilityZone"]: each["SubnetId"]
        for each in reversed(subnets)
        if ways[each["SubnetId"]] == best
    }
    groups = list(
        _list(session, "ec2", "describe_security_groups", "SecurityGroups", Filters=filters)
    )
    return Network(
        vpc=vpc,
        subnets=tuple(zones[zone] for zone in sorted(zones)[:_MOST_SUBNETS]),
        has_nat=best == "nat-",
        security_group=_find_group(inside, groups),
    )


def _find_way_out(subnet: str, tables: Iterable[Any]) -> str:
    """Return how a subnet reaches the internet: nat-, igw-, or "" if it does not."""
    own, main = None, None
    for table in tables:
        for association in table.get("Associations", []):
            if association.get("SubnetId") == subnet:
                own = table
            elif association.get("Main"):
                main = table
    for route in (own or main or {}).get("Routes", []):
        if route.get("DestinationCidrBlock") == "0.0.0.0/0":
            if route.get("NatGatewayId") or route.get("TransitGatewayId"):
                return "nat-"
            return str(route.get("GatewayId", ""))[:4]
    return ""


def _find_group(databases: Iterable[Database], groups: Iterable[Mapping[str, Any]]) -> str:
    """Return the security group that most databases let in on their port, "" if none does."""
    by_id = {group["GroupId"]: group for group in groups}
    let_in: Counter[str] = Counter()
    for database in databases:
        rules = [
            r for g in database.security_groups if g in by_id for r in by_id[g]["IpPermissions"]
        ]
        admitted = {
            pair["GroupId"]
            for rule in rules
            if _covers(rule, database.port)
            for pair in rule.get("UserIdGroupPairs", [])
        }
        let_in.update(admitted & by_id.keys())
    return max(let_in, key=lambda each: (let_in[each], each), default="")


def _covers(rule: Mapping[str, Any], port: int) -> bool:
    if rule.get("IpProtocol") == "-1":
        return True
    return bool(rule.get("FromPort", 0) <= port <= rule.get("ToPort", 0))
