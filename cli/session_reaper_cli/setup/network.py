"""Finds where a function can run to reach private databases, and what it lacks there."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from session_reaper_cli.setup.listing import Lister

_MOST_SUBNETS: Final = 3


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
    """The VPC of most private databases, and what it has for the function."""

    vpc: str
    cidr: str  # "" if it is unknown
    databases: tuple[Database, ...]  # the private ones in it
    subnets: tuple[str, ...]
    has_nat: bool  # the subnets reach AWS's services without endpoints
    security_group: str  # "" if the databases admit none
    knows_groups: bool  # IAM does not hide security groups
    # The groups that a database admits; without those that also admit addresses, or that IAM hides.
    admitted_groups: Mapping[str, frozenset[str]]
    has_stack: bool  # infra/network.yaml was deployed here for this stack
    endpoints: frozenset[str]  # services whose own names lead to an interface endpoint
    route_tables: tuple[str, ...]  # of the subnets, without DynamoDB's gateway endpoint


def find_network(lister: Lister, databases: Iterable[Database], stack: str) -> Network | None:
    """Find the network of most private databases; None if there are none, or IAM hides it.

    `stack`: the name of the network stack.
    """
    private = [each for each in databases if not each.is_public and each.vpc]
    if not private:
        return None
    vpc = Counter(each.vpc for each in private).most_common(1)[0][0]
    inside = tuple(each for each in private if each.vpc == vpc)
    filters = [{"Name": "vpc-id", "Values": [vpc]}]

    def look(operation: str, key: str) -> list[Any] | None:
        return lister.list("ec2", operation, key, Filters=filters)

    subnets = look("describe_subnets", "Subnets")
    tables = look("describe_route_tables", "RouteTables")
    groups = look("describe_security_groups", "SecurityGroups")
    endpoints = look("describe_vpc_endpoints", "VpcEndpoints") or []
    (cidr,) = [v["CidrBlock"] for v in look("describe_vpcs", "Vpcs") or ()] or [""]
    if subnets is None or tables is None:
        return None
    table_of = {each["SubnetId"]: _find_table(each["SubnetId"], tables) for each in subnets}
    ways = {subnet: _find_way_out(table) for subnet, table in table_of.items()}
    best = next((way for way in ("nat-", "", "igw-") if way in ways.values()), "")
    zones = {
        each["AvailabilityZone"]: each["SubnetId"]
        for each in reversed(subnets)
        if ways[each["SubnetId"]] == best
    }
    chosen = tuple(zones[zone] for zone in sorted(zones)[:_MOST_SUBNETS])
    admitted = {each.name: _find_admitted(each, groups or ()) for each in inside}
    own = [g["GroupId"] for g in groups or () if g["Description"] == f"The function of {stack}"]
    return Network(
        vpc=vpc,
        cidr=cidr,
        databases=inside,
        subnets=chosen,
        has_nat=best == "nat-",
        security_group=_find_group(admitted.values(), groups or (), own),
        knows_groups=groups is not None,
        admitted_groups={
            each.name: admitted[each.name]
            for each in inside
            if groups is not None and not _admits_addresses(each, groups)
        },
        has_stack=bool(own),
        endpoints=frozenset(
            each["ServiceName"].rpartition(".")[2]
            for each in endpoints
            if each.get("VpcEndpointType") == "Interface" and each.get("PrivateDnsEnabled", True)
        ),
        route_tables=_find_tables_without_gateway((table_of[each] for each in chosen), endpoints),
    )


def _find_table(subnet: str, tables: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the route table of a subnet: its own, or the VPC's main one."""
    own: Mapping[str, Any] = {}
    main: Mapping[str, Any] = {}
    for table in tables:
        for association in table.get("Associations", []):
            if association.get("SubnetId") == subnet:
                own = table
            elif association.get("Main"):
                main = table
    return own or main


def _find_way_out(table: Mapping[str, Any]) -> str:
    """Return how a subnet reaches the internet: nat-, igw-, or "" if it does not."""
    for route in table.get("Routes", []):
        if route.get("DestinationCidrBlock") == "0.0.0.0/0":
            if route.get("NatGatewayId") or route.get("TransitGatewayId"):
                return "nat-"
            return str(route.get("GatewayId", ""))[:4]
    return ""


def _find_tables_without_gateway(
    tables: Iterable[Mapping[str, Any]], endpoints: Iterable[Mapping[str, Any]]
) -> tuple[str, ...]:
    served = {
        table
        for each in endpoints
        if each["ServiceName"].endswith(".dynamodb")
        for table in each.get("RouteTableIds", [])
    }
    wanted = dict.fromkeys(table["RouteTableId"] for table in tables if table)
    return tuple(each for each in wanted if each not in served)


def _find_group(
    admitted: Iterable[frozenset[str]], groups: Iterable[Mapping[str, Any]], own: Iterable[str]
) -> str:
    """Return the group that most databases admit, the network stack's if any; "" without one."""
    known = {group["GroupId"] for group in groups}
    admitting = Counter(group for each in admitted for group in each & known)
    return max(admitting, key=lambda each: (each in own, admitting[each], each), default="")


def _find_admitted(database: Database, groups: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the security groups that a database admits to its port."""
    rules = _find_rules(database, groups)
    return frozenset(p["GroupId"] for rule in rules for p in rule.get("UserIdGroupPairs", []))


def _admits_addresses(database: Database, groups: Iterable[Mapping[str, Any]]) -> bool:
    kinds = ("IpRanges", "Ipv6Ranges", "PrefixListIds")
    return any(rule.get(kind) for rule in _find_rules(database, groups) for kind in kinds)


def _find_rules(
    database: Database, groups: Iterable[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    for group in groups:
        if group["GroupId"] in database.security_groups:
            yield from (r for r in group["IpPermissions"] if _covers(r, database.port))


def _covers(rule: Mapping[str, Any], port: int) -> bool:
    if rule.get("IpProtocol") == "-1":
        return True
    return bool(rule.get("FromPort", 0) <= port <= rule.get("ToPort", 0))
