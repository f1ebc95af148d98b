"""A target of Aurora Serverless is skipped only if no session can be old enough for any rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from session_reaper.targets.pausing import IdleMoments, find_pause_group, may_skip
from session_reaper.targets.target import Instance, RdsListing, Secret

from tests.builders import a_policy, a_rule, a_secret, read_target

DOMAIN = "abc.eu-west-1.rds.amazonaws.com"
HOSTS = (f"shop.cluster-{DOMAIN}", f"shop.cluster-ro-{DOMAIN}", f"few.cluster-custom-{DOMAIN}")
NOW, WINDOW = 10_000.0, 300.0


def an_instance(name: str, tier: int = 1, **overrides: object) -> Instance:
    """A member of the cluster shop, which may pause; the first is the writer."""
    is_reader = not name.endswith("1")
    values: dict[str, object] = {
        "identifier": name,
        "cluster": "shop",
        "engine": "aurora-postgresql",
        "host": f"{name}.{DOMAIN}",
        "port": 5432,
        "is_reader": is_reader,
        "secret_arns": (),
        "cluster_hosts": HOSTS,
        "cluster_port": 5432,
        "may_pause": True,
        "pauses_with_writer": not is_reader or tier <= 1,
    }
    return Instance(**values | overrides)  # type: ignore[arg-type] # a table of defaults


WRITER, NEAR, FAR = an_instance("shop-1"), an_instance("shop-2"), an_instance("shop-3", tier=2)
CLUSTER = (WRITER, NEAR, FAR)


def group(host: str, *instances: Instance) -> set[str]:
    target = read_target(Secret(name="orders", arn="arn", text=a_secret()))
    listing = RdsListing(instances=instances or CLUSTER)
    return set(find_pause_group(replace(target, host=host), listing))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (WRITER.host, {"shop-1", "shop-2"}),
        (NEAR.host, {"shop-1", "shop-2"}),
        (FAR.host, {"shop-3"}),
        (HOSTS[0], {"shop-1", "shop-2"}),
        (HOSTS[1], {"shop-1", "shop-2", "shop-3"}),
        (HOSTS[2], {"shop-1", "shop-2", "shop-3"}),
        (FAR.host.upper() + ".", {"shop-3"}),
        (f"other.{DOMAIN}", set()),
        ("db.example", set()),
    ],
)
def test_instances_that_wake_together_are_one_group(host: str, expected: set[str]) -> None:
    assert group(host) == expected


def test_a_cluster_that_cannot_pause_is_in_no_group() -> None:
    awake = [each._replace(may_pause=False) for each in CLUSTER]
    for each in awake:
        assert group(each.host, *awake) == set()
    assert group(HOSTS[0], *awake) == set()


def test_a_reader_that_follows_a_provisioned_writer_does_not_pause() -> None:
    cluster = (WRITER._replace(may_pause=False), NEAR, FAR)
    assert group(NEAR.host, *cluster) == set()
    assert group(FAR.host, *cluster) == {"shop-3"}
    assert group(HOSTS[1], *cluster) == set()


def test_without_a_listed_writer_only_readers_of_their_own_can_be_assessed() -> None:
    assert group(NEAR.host, NEAR, FAR) == set()
    assert group(FAR.host, NEAR, FAR) == {"shop-3"}


def test_another_clusters_instances_are_in_another_group() -> None:
    other = WRITER._replace(identifier="other-1", cluster="other", host=f"other-1.{DOMAIN}")
    assert group(WRITER.host, *CLUSTER, other) == {"shop-1", "shop-2"}
    assert group(other.host, *CLUSTER, other) == {"other-1"}


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        ({"a": NOW - 60, "b": NOW - 240}, True),
        ({"a": NOW - WINDOW, "b": NOW}, True),
        ({"a": NOW - 60, "b": NOW - WINDOW - 1}, False),  # metrics come late
        ({"a": NOW - 60}, False),  # no datapoint
        ({}, False),
        ({"a": NOW - 60, "b": NOW + 1}, False),  # the clocks differ
    ],
)
def test_every_instance_of_the_group_must_have_been_without_connections(
    latest: dict[str, float], *, expected: bool
) -> None:
    assert may_skip({"a", "b"}, IdleMoments(latest=latest), NOW, WINDOW) is expected


def test_a_target_without_a_group_is_never_skipped() -> None:
    assert not may_skip(set(), IdleMoments(latest={"a": NOW}), NOW, WINDOW)


def test_metrics_that_cannot_be_read_skip_nothing() -> None:
    assert not may_skip({"a"}, IdleMoments(problem="denied"), NOW, WINDOW)


LEAK = {"state": ["idle in transaction"]}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([a_rule("a", **LEAK, idle_for="5m")], 300),
        ([a_rule("a", **LEAK, idle_for="5m"), a_rule("b", **LEAK, connected_for="90s")], 90),
        ([a_rule("a", **LEAK, idle_for="5m", transaction_for="1h")], 300),
        ([a_rule("a", **LEAK, idle_for="5m"), {**a_rule("b", **LEAK, idle_for="1m"), "mode": "observe"}], 60),
        ([a_rule("a", **LEAK, idle_for="5m"), {**a_rule("b", **LEAK, idle_for="1m"), "mode": "off"}], 300),
        ([a_rule("a", **LEAK, idle_for="5m"), {**a_rule("b", **LEAK, idle_for="1m"), "action": "keep"}], 300),
    ],
)  # fmt: skip
def test_the_shortest_clock_is_that_of_a_rule_that_reports_or_condemns(
    rules: list[dict[str, object]], expected: float
) -> None:
    assert a_policy(*rules).shortest_clock == expected
