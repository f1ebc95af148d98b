"""Targets that may be one server, and visits that cover other targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from session_reaper.targets.servers import (
    Place,
    are_instances_of_rds,
    are_one_server,
    group_by_server,
    list_routes,
    sort_by_trust,
)
from session_reaper.targets.target import Secret, SslMode, Target

from tests.builders import a_secret, read_target

VERIFIED, PLAIN = SslMode.VERIFY_FULL, SslMode.DISABLE
RDS = "abc.eu-west-1.rds.amazonaws.com"


def a_target(name: str = "orders", host: str = "db.example", **overrides: object) -> Target:
    secret = Secret(name=name, arn=f"arn:{name}", text=a_secret(host=host, port=5432))
    return replace(read_target(secret), **overrides)  # type: ignore[arg-type] # a table


def a_place(target: Target, **overrides: object) -> Place:
    values = {"address": "10.0.0.1", "is_verified": target.is_verified, "is_pooled": False}
    return Place(target=target, **values | overrides)  # type: ignore[arg-type] # a table


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {"host": "DB.example."}, True),
        ({}, {"port": 6432}, False),
        ({}, {"host": "alias.example"}, False),  # with TLS the name may choose the server
        ({"sslmode": PLAIN}, {"host": "alias.example", "sslmode": PLAIN}, True),
        ({"sslmode": PLAIN}, {"host": "alias.example"}, False),
        (
            {"sslmode": PLAIN},
            {"host": "alias.example", "sslmode": PLAIN, "addresses": ("10.0.0.1", "10.0.0.2")},
            False,
        ),
        ({"host": f"shop.cluster-{RDS}"}, {"host": f"shop-1.{RDS}"}, True),
        ({"host": f"shop-2.{RDS}"}, {"host": f"shop-1.{RDS}"}, False),
        ({"host": f"shop.proxy-{RDS}"}, {"host": f"shop-1.{RDS}"}, False),
    ],
)
def test_hosts_and_addresses_tell_whether_two_targets_are_one_server(
    one: dict[str, object], other: dict[str, object], *, expected: bool
) -> None:
    addresses = {"addresses": ("10.0.0.1",)}
    first, second = a_target(**addresses | one), a_target("billing", **addresses | other)  # type: ignore[arg-type] # a table
    assert are_one_server(first, second) is expected
    assert a_place(first).covers(second) is expected
    is_found = not set(a_place(first).routes).isdisjoint(list_routes(second))
    assert is_found is expected or are_instances_of_rds(first, second)


def test_a_visit_covers_no_target_whose_address_it_has_not_reached() -> None:
    """The name of the first one led elsewhere when it was connected to."""
    first = a_target(sslmode=PLAIN, addresses=("10.0.0.1",))
    second = a_target("billing", "alias.example", sslmode=PLAIN, addresses=("10.0.0.1",))
    assert a_place(first).covers(second)
    assert not a_place(first, address="203.0.113.7").covers(second)


def test_an_unverified_visit_does_not_cover_a_verified_target() -> None:
    verified, unverified = a_target(), a_target("billing", sslmode=SslMode.REQUIRE)
    assert a_place(verified).covers(unverified)
    assert not a_place(unverified).covers(verified)
    assert sort_by_trust([unverified, verified]) == [verified, unverified]


@pytest.mark.parametrize("changed", [{"database": "other"}, {"role": "other"}])
def test_a_visit_behind_a_pooler_covers_only_its_own_database_and_role(
    changed: dict[str, object],
) -> None:
    first, second = a_target(), a_target("billing", **changed)  # type: ignore[arg-type] # a table
    assert a_place(first).covers(second)
    assert not a_place(first, is_pooled=True).covers(second)
    assert a_place(first, is_pooled=True).covers(first)
    assert not set(a_place(first, is_pooled=True).routes).isdisjoint(list_routes(first))


def test_targets_are_grouped_by_host_or_address_in_their_order() -> None:
    a = a_target("a", "a.example", addresses=("10.0.0.1",))
    b = a_target("b", "b.example", addresses=("10.0.0.2",))
    c = a_target("c", "A.example")
    d = a_target("d", "d.example", addresses=("10.0.0.3", "10.0.0.2"))
    e = a_target("e", "e.example", addresses=("10.0.0.1", "10.0.0.3"))
    other_port = a_target("f", "a.example", port=6432)
    assert group_by_server([a, b, c, other_port]) == [(a, c), (b,), (other_port,)]
    assert group_by_server([a, b, c, d, e]) == [(a, b, c, d, e)]
    assert group_by_server([]) == []


def test_instances_of_rds_behind_one_address_are_servers_of_their_own() -> None:
    orders, billing = (
        a_target(name, f"{name}.c0ffee.eu-central-1.rds.amazonaws.com", addresses=("10.0.0.1",))
        for name in ("orders", "billing")
    )
    assert group_by_server([orders, billing]) == [(orders,), (billing,)]
    alias = a_target("alias", "orders.example", addresses=("10.0.0.1",))
    assert group_by_server([orders, billing, alias]) == [(orders, billing, alias)]
