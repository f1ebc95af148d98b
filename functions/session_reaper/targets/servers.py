"""Finds the secrets that lead to one server, so that a run visits each server once.

A host and an address are facts; the name of a target is what its secret claims. A secret can name
any address, so the rules here must never let one secret keep another one's server from being
visited.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from session_reaper.targets.providers import find_rds_region, is_instance_of_rds, is_proxy
from session_reaper.targets.target import Endpoint, SslMode, Target

T = TypeVar("T")


class Place(NamedTuple):
    """The server that a connection has reached.

    `target`: the one that was to be visited. `address`: the IP address of the server.
    `is_verified`: TLS has proven the server's identity. `is_pooled`: a pooler answers, which may
    lead each database and role to another server.
    """

    target: Target
    address: str
    is_verified: bool
    is_pooled: bool

    def has_endpoint_of(self, other: Target) -> bool:
        """Return whether another target's host and port lead to the same place.

        Equal addresses suffice without TLS and for endpoints of RDS. With TLS, a router may choose
        the server by the host name that the client sends.
        """
        if self.target.endpoint == other.endpoint:
            return True
        if are_instances_of_rds(self.target, other):
            return False
        own = _list_address_routes(self.target, (self.address,))
        return not own.isdisjoint(_list_address_routes(other, other.addresses))

    @property
    def routes(self) -> list[Hashable]:
        """The routes that lead here; see `list_routes`."""
        routes = [self.target.endpoint, *_list_address_routes(self.target, (self.address,))]
        return _add_database(routes, self.target) if self.is_pooled else routes

    def leads_to_server_of(self, other: Target) -> bool:
        """Return whether the place is the server of another target, as far as connecting tells."""
        is_same_route = (self.target.database, self.target.role) == (other.database, other.role)
        return self.has_endpoint_of(other) and (is_same_route or not self.is_pooled)

    def is_as_secure_as(self, other: Target) -> bool:
        """Return whether this connection proves as much as another target's own would.

        A secret chooses its CA, so its connection proves nothing to a secret with another CA.
        """
        if not other.is_verified:
            return True
        return self.is_verified and self.target.sslrootcert in (None, other.sslrootcert)

    def covers(self, other: Target) -> bool:
        """Return whether a visit here does all that a visit by another target would do."""
        return self.leads_to_server_of(other) and self.is_as_secure_as(other)


class _AddressRoute(NamedTuple):
    """A route by an address alone, which finds a server of RDS, and any server without TLS."""

    address: str
    port: int
    is_rds: bool


def _list_address_routes(target: Target, addresses: Sequence[str]) -> set[_AddressRoute]:
    """List the routes to a target by its only address, if that is enough to find its server.

    Two targets have an equal route only if it is enough for both, and for the same reason.
    """
    if len(addresses) != 1:
        return set()
    routes = set()
    if target.sslmode is SslMode.DISABLE:
        routes.add(_AddressRoute(addresses[0], target.port, is_rds=False))
    if find_rds_region(target.host) and not is_proxy(target.host):
        routes.add(_AddressRoute(addresses[0], target.port, is_rds=True))
    return routes


def list_routes(target: Target) -> list[Hashable]:
    """List the routes to a target's server; a place that leads there has one of them."""
    routes = [target.endpoint, *_list_address_routes(target, target.addresses)]
    return [*routes, *_add_database(routes, target)]


def _add_database(routes: Iterable[Hashable], target: Target) -> list[Hashable]:
    return [(route, target.database, target.role) for route in routes]


class ServerIndex(Generic[T]):
    """Finds values by the servers that they belong to, without comparing each with each."""

    def __init__(self) -> None:
        self._values: dict[Hashable, list[T]] = defaultdict(list)

    def add(self, routes: Iterable[Hashable], value: T) -> None:
        """Add a value that belongs to the servers at these routes."""
        for route in routes:
            self._values[route].append(value)

    def find(self, routes: Iterable[Hashable]) -> Iterator[T]:
        """Find the values that have one of these routes; one value may come several times."""
        for route in routes:
            yield from self._values.get(route, ())

    def find_first(self, routes: Iterable[Hashable], is_match: Callable[[T], bool]) -> Iterator[T]:
        """Find, for each of these routes, the value that matches and was added first."""
        for route in routes:
            yield from islice(filter(is_match, self._values.get(route, ())), 1)


def are_instances_of_rds(one: Target, other: Target) -> bool:
    """Return whether two targets are different instances of RDS, by the names of their hosts."""
    are_named = all(is_instance_of_rds(each.host) for each in (one, other))
    return are_named and one.endpoint.host != other.endpoint.host


def are_one_server(one: Target, other: Target) -> bool:
    """Return whether two targets lead to one server, as far as hosts and addresses tell."""
    return find_place(one).has_endpoint_of(other)


def find_place(target: Target) -> Place:
    """Return the place that a target leads to, as far as host and address tell."""
    (address,) = target.addresses if len(target.addresses) == 1 else ("",)
    return Place(target=target, address=address, is_verified=False, is_pooled=False)


def group_by_server(targets: Sequence[Target]) -> list[tuple[Target, ...]]:
    """Group the targets that may be one server: those with an equal host or address, and port.

    Instances of RDS with different hosts are different servers, also where one address leads to
    all. Groups, and the targets in each, keep the order of the targets.
    """
    indexes: dict[Hashable, list[int]] = defaultdict(list)
    for index, target in enumerate(targets):
        for place in (target.endpoint, *((each, target.port) for each in target.addresses)):
            indexes[place].append(index)
    firsts = list(range(len(targets)))  # of each index, the index of an earlier one of its group
    for place, members in indexes.items():
        are_instances = all(is_instance_of_rds(targets[each].host) for each in members)
        if isinstance(place, Endpoint) or not are_instances:
            _join(firsts, members)
    groups: dict[int, list[Target]] = defaultdict(list)
    for index, target in enumerate(targets):
        groups[_find_first(firsts, index)].append(target)
    return [tuple(group) for group in groups.values()]


def _join(firsts: list[int], members: Iterable[int]) -> None:
    first, *others = sorted({_find_first(firsts, each) for each in members})
    for other in others:
        firsts[other] = first


def _find_first(firsts: Sequence[int], index: int) -> int:
    while firsts[index] != index:
        index = firsts[index]
    return index


def sort_by_trust(targets: Iterable[Target]) -> list[Target]:
    """Sort by what a visit proves to other targets, most first, so that it covers most of them."""
    return sorted(targets, key=lambda each: (not each.is_verified, each.sslrootcert is not None))
