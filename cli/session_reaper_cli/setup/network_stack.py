"""Plans the network stack, infra/network.yaml, for private databases."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from session_reaper_cli.setup.network import Network

_DEFAULT_PORT: Final = 5432
_MOST_GROUPS: Final = 4  # of the template
_SERVICES: Final = ("secretsmanager", "sns", "rds")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStack:
    """The parameters of the stack, and the databases that they do not cover."""

    parameters: Mapping[str, str]
    uncovered: tuple[str, ...]  # names


def plan_network_stack(
    network: Network, group: str, more_services: Iterable[str]
) -> NetworkStack | None:
    """Plan what the network lacks for a function in its subnets; None if it lacks nothing.

    `group`: the function's security group, "" if the stack has to make it. `more_services`: those
    that the function needs besides its usual ones.
    """
    services: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    if not network.has_nat:
        wanted = (*_SERVICES, *more_services)
        services = tuple(each for each in wanted if each not in network.endpoints)
        tables = network.route_tables
    if group and not services and not tables:
        return None
    port = Counter(each.port for each in network.databases).most_common(1)[0][0]
    admitting = {d.name: d.security_groups[:1] for d in network.databases if d.port == port}
    groups = list(dict.fromkeys(g for own in admitting.values() for g in own))[:_MOST_GROUPS]
    if group:
        groups = []
    given = {
        "VpcId": network.vpc,
        "VpcCidr": network.cidr or "CIDR",
        "DatabasePort": "" if port == _DEFAULT_PORT else str(port),
        "DatabaseSecurityGroupIds": ",".join(groups),
        "SubnetIds": ",".join(network.subnets) if services else "",
        "Endpoints": ",".join(services),
        "RouteTableIds": ",".join(tables),
    }
    return NetworkStack(
        parameters={name: value for name, value in given.items() if value},
        uncovered=tuple(
            each.name
            for each in network.databases
            if not group and not set(admitting.get(each.name, ())) & set(groups)
        ),
    )
