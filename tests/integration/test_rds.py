"""Managed secrets and clusters, whose instances RDS lists."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from session_reaper.errors import ConfigurationError

from infra.local.aws import REGION
from tests.integration.endpoints import reset_rds, resolve_here
from tests.integration.stage import PASSWORD, REAPER, policy
from tests.integration.standby import Another, run_another
from tests.integration.wire import Impostor, aws_but_for, hang, http, unused_port

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from mypy_boto3_rds import RDSClient

    from infra.local.postgres import Build
    from tests.integration.stage import Run, Stage

AURORA = "aurora-postgresql"
SCHEDULED = {"source": "aws.scheduler", "detail-type": "Scheduled Event"}


@pytest.fixture(autouse=True)
def _rds_is_here(stage: Stage) -> Iterator[None]:
    resolve_here(stage.monkeypatch, ".rds.amazonaws.com")
    yield
    reset_rds()


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The instances of the stand-in's RDS."""

    stage: Stage
    rds: RDSClient

    def cluster(self, name: str, *members: str, engine: str = AURORA, managed: bool = False) -> str:
        """Create a cluster, writer first, on the stage's server; return the ARN of its secret, if any."""
        how: dict[str, Any] = {"ManageMasterUserPassword": True}
        if not managed:
            how = {"MasterUserPassword": "never-used"}
        made = self.rds.create_db_cluster(
            DBClusterIdentifier=name, Engine=engine, MasterUsername="root", **how
        )["DBCluster"]
        for member in members:
            self.member(name, member, engine=engine)
        return made.get("MasterUserSecret", {}).get("SecretArn", "")

    def member(self, cluster: str, name: str, port: int = 0, *, engine: str = AURORA) -> None:
        self.rds.create_db_instance(
            DBInstanceIdentifier=name,
            DBClusterIdentifier=cluster,
            Engine=engine,
            DBInstanceClass="db.r6g.large",
            Port=port or self.stage.server.port,
        )

    def instance(self, name: str, engine: str = "postgres") -> str:
        """Create an instance without a cluster; return the ARN of its secret."""
        made = self.rds.create_db_instance(
            DBInstanceIdentifier=name,
            Engine=engine,
            DBInstanceClass="db.r6g.large",
            AllocatedStorage=20,
            MasterUsername="root",
            ManageMasterUserPassword=True,
            Port=self.stage.server.port,
        )["DBInstance"]
        return made["MasterUserSecret"]["SecretArn"]

    def becomes(self, name: str, status: str) -> None:
        get_backend("rds")[DEFAULT_ACCOUNT_ID][REGION].databases[name].status = status

    def listed(self, arn: str) -> str:
        """Make a managed secret a target, in plaintext for the server here."""
        text = {"username": REAPER, "password": PASSWORD, "sslmode": "disable"}
        self.stage.aws.secrets.put_secret_value(SecretId=arn, SecretString=json.dumps(text))
        return self.stage.listed(arn)

    def target(self, cluster: str, **keys: object) -> str:
        """Make a cluster a target, with a secret in RDS's shape."""
        return self.stage.target(f"{cluster}-secret", dbClusterIdentifier=cluster, **keys)


@pytest.fixture
def fleet(stage: Stage) -> Fleet:
    return Fleet(stage=stage, rds=boto3.client("rds"))


@pytest.fixture
def reader(build: Build) -> Iterator[Another]:
    with run_another(build, standby=True) as made:
        yield made


def names(run: Run) -> list[str]:
    return sorted(target["name"] for target in run.document["targets"])


def advice(run: Run, name: str) -> list[str]:
    return [each["code"] for each in run.target(name)["advice"]]


# -- managed secrets ----------------------------------------------------------------------------


def test_the_host_of_a_managed_secret_of_an_instance_is_found(fleet: Fleet, stage: Stage) -> None:
    leak = stage.session()
    fleet.instance("other")
    fleet.listed(fleet.instance("orders"))
    run = stage.reap()
    assert run.document["status"] == "ok"
    assert names(run) == ["orders"]
    assert run.outcomes() == {leak.pid: "terminated"}


def test_managed_secrets_are_found_by_the_tag_that_rds_sets(fleet: Fleet, stage: Stage) -> None:
    for arn in (fleet.instance("orders"), fleet.cluster("shop", "shop-1", managed=True)):
        fleet.listed(arn)
    stage.monkeypatch.delenv("TARGET_SECRETS")
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "aws:secretsmanager:owningService=rds")
    assert names(stage.run({"policy": policy()})) == ["orders", "shop-1"]


def test_the_managed_secret_of_a_cluster_covers_writer_and_reader(
    fleet: Fleet, stage: Stage, reader: Another
) -> None:
    here, there = stage.session(), reader.leak()
    arn = fleet.cluster("shop", "shop-1", managed=True)
    fleet.member("shop", "shop-2", reader.server.port)
    fleet.listed(arn)
    run = stage.reap()
    assert names(run) == ["shop-1", "shop-2"]
    assert run.outcomes("shop-1") == {here.pid: "terminated"}
    assert run.outcomes("shop-2") == {there.pid: "terminated"}
    assert run.document["totals"]["terminated"] == 2
    assert "reader" not in run.target("shop-1")
    assert run.target("shop-2")["reader"] is True
    assert not here.is_there
    assert not there.is_there
    assert "shop-2 (reader)" in run.email.subject + run.email.body


def test_a_managed_secret_without_a_running_instance_fails(fleet: Fleet, stage: Stage) -> None:
    stage.target("healthy")
    fleet.listed(fleet.instance("orders"))
    fleet.listed(fleet.cluster("empty", managed=True))
    fleet.becomes("orders", "stopped")
    run = stage.reap()
    assert run.target("healthy")["status"] == "ok"
    assert run.document["totals"]["failed"] == 2
    for failed in run.document["targets"]:
        if failed["name"] != "healthy":
            assert failed["name"].startswith("rds!")
            assert failed["error"]["code"] == "secret"
            assert "host is missing" in failed["error"]["message"]
            assert failed["error"]["hint"]


@pytest.mark.parametrize("engine", ["mysql", "aurora-mysql"])
def test_a_managed_secret_of_another_engine_fails_without_a_connection(
    fleet: Fleet, stage: Stage, engine: str
) -> None:
    with Impostor() as mysql:
        if engine == "mysql":
            fleet.listed(fleet.instance("orders", engine))
            fleet.rds.modify_db_instance(DBInstanceIdentifier="orders", DBPortNumber=mysql.port)
        else:
            fleet.listed(fleet.cluster("shop", managed=True, engine=engine))
            fleet.member("shop", "shop-1", mysql.port, engine=engine)
        run = stage.reap()
        assert mysql.connections == 0
    (failed,) = run.document["targets"]
    assert f"engine {engine} is not PostgreSQL" in failed["error"]["message"]


# -- clusters -----------------------------------------------------------------------------------


def test_the_leaks_of_each_instance_are_terminated_once(
    fleet: Fleet, stage: Stage, build: Build
) -> None:
    with run_another(build, standby=False) as second, run_another(build, standby=False) as third:
        leaks = {"shop-1": stage.session(), "shop-2": second.leak(), "shop-3": third.leak()}
        fleet.cluster("shop", "shop-1")
        fleet.member("shop", "shop-2", second.server.port)
        fleet.member("shop", "shop-3", third.server.port)
        fleet.target("shop", port=1)  # not connected to
        run = stage.reap()
        assert run.document["status"] == "ok"
        assert {name: run.outcomes(name) for name in names(run)} == {
            name: {leak.pid: "terminated"} for name, leak in leaks.items()
        }
        assert not stage.survivors(leaks.values())


def test_instances_of_other_clusters_are_not_targets(fleet: Fleet, stage: Stage) -> None:
    fleet.cluster("shop", "shop-1")
    fleet.cluster("shop-staging", "shop-staging-1")
    fleet.instance("shop-solo")
    fleet.target("shop")
    assert names(stage.reap()) == ["shop-1"]


def test_with_cluster_targets_endpoint_a_cluster_is_one_target(fleet: Fleet, stage: Stage) -> None:
    leak = stage.session()
    fleet.cluster("shop")
    for name in ("shop-1", "shop-2"):
        fleet.member("shop", name, unused_port())
    fleet.target("shop")
    stage.monkeypatch.setenv("CLUSTER_TARGETS", "endpoint")
    run = stage.reap()
    assert names(run) == ["shop"]
    assert run.outcomes("shop") == {leak.pid: "terminated"}
    assert "list-cluster-instances" not in advice(run, "shop")


def test_with_cluster_targets_endpoint_a_managed_cluster_is_one_target_too(
    fleet: Fleet, stage: Stage
) -> None:
    leak = stage.session()
    arn = fleet.cluster("shop", "shop-1", managed=True)
    fleet.member("shop", "shop-2", unused_port())
    fleet.listed(arn)
    stage.monkeypatch.setenv("CLUSTER_TARGETS", "endpoint")
    run = stage.reap()
    assert names(run) == ["shop"]
    assert run.outcomes("shop") == {leak.pid: "terminated"}


def test_an_event_selects_a_cluster_or_one_of_its_instances(fleet: Fleet, stage: Stage) -> None:
    fleet.cluster("shop", "shop-1", "shop-2")
    fleet.target("shop")
    fleet.cluster("news", "news-1", "news-2")
    fleet.target("news", name="News")
    stage.target("orders", port=unused_port())

    def asked(*targets: str) -> list[str]:
        return names(stage.run({"targets": list(targets), "policy": policy()}))

    assert asked("shop") == ["shop-1", "shop-2"]
    assert asked("shop-2") == ["shop-2"]
    assert asked("shop", "shop-1", "orders") == ["orders", "shop-1", "shop-2"]
    assert asked("News") == ["News/news-1", "News/news-2"]
    assert asked("News/news-2") == ["News/news-2"]
    with pytest.raises(ConfigurationError, match=r"event\.targets\[1\]: .*shop-3.*shop-1"):
        asked("shop", "shop-3")


def test_an_event_selects_a_cluster_whose_instances_are_not_listed(
    fleet: Fleet, stage: Stage
) -> None:
    """An event that was saved for an emergency has to work in it."""
    fleet.target("shop")
    stage.target("orders", port=1)
    assert names(stage.run({"targets": ["shop"], "policy": policy()})) == ["shop"]


def test_an_auto_scaled_reader_is_a_target_while_it_exists(fleet: Fleet, stage: Stage) -> None:
    fleet.cluster("shop", "shop-1")
    fleet.target("shop")
    scaled = "application-autoscaling-0f2c"
    assert names(stage.run(SCHEDULED)) == ["shop-1"]
    fleet.member("shop", scaled)
    assert names(stage.run(SCHEDULED)) == [scaled, "shop-1"]
    fleet.rds.delete_db_instance(DBInstanceIdentifier=scaled, SkipFinalSnapshot=True)
    assert names(stage.run(SCHEDULED)) == ["shop-1"]


@pytest.mark.parametrize(
    "status", ["creating", "deleting", "failed", "starting", "stopped", "stopping"]
)
def test_an_instance_that_accepts_no_connections_is_not_a_target(
    fleet: Fleet, stage: Stage, status: str
) -> None:
    fleet.cluster("shop", "shop-1", "shop-2")
    fleet.becomes("shop-2", status)
    fleet.target("shop")
    assert names(stage.reap()) == ["shop-1"]


@pytest.mark.parametrize("status", ["available", "backing-up", "modifying", "storage-full"])
def test_a_busy_instance_is_a_target(fleet: Fleet, stage: Stage, status: str) -> None:
    fleet.cluster("shop", "shop-1", "shop-2")
    fleet.becomes("shop-2", status)
    fleet.target("shop")
    assert names(stage.reap()) == ["shop-1", "shop-2"]


def test_an_instance_without_an_endpoint_is_not_a_target(fleet: Fleet, stage: Stage) -> None:
    def without(answer: Any) -> None:  # noqa: ANN401 -- botocore's
        for instance in answer.get("DBInstances", []):
            if instance["DBInstanceIdentifier"] == "shop-2":
                del instance["Endpoint"]

    fleet.cluster("shop", "shop-1", "shop-2")
    fleet.target("shop")
    _change_answers(stage, without)
    assert names(stage.reap()) == ["shop-1"]


def test_an_instance_that_does_not_answer_does_not_affect_the_others(
    fleet: Fleet, stage: Stage
) -> None:
    leak = stage.session()
    fleet.cluster("shop", "shop-1")
    fleet.member("shop", "shop-2", unused_port())
    fleet.target("shop")
    run = stage.reap()
    assert run.document["status"] == "partial"
    assert run.outcomes("shop-1") == {leak.pid: "terminated"}
    assert run.error("shop-2")["code"] == "connection"
    assert run.target("shop-2")["reader"] is True  # as RDS says


def test_an_instance_on_a_later_page_is_found(fleet: Fleet, stage: Stage) -> None:
    fleet.cluster("big", *(f"big-{n:03}" for n in range(100)))
    fleet.cluster("shop", "shop-1")
    fleet.target("shop")
    assert names(stage.reap()) == ["shop-1"]


@pytest.mark.parametrize("engine", [None, "aurora-postgresql"])
def test_a_cluster_of_another_engine_fails_without_a_connection(
    fleet: Fleet, stage: Stage, engine: str | None
) -> None:
    with Impostor() as mysql:
        fleet.cluster("shop", engine="aurora-mysql")
        for name in ("shop-1", "shop-2"):
            fleet.member("shop", name, mysql.port, engine="aurora-mysql")
        fleet.target("shop", engine=engine, port=mysql.port)
        run = stage.reap()
        assert mysql.connections == 0
    assert names(run) == ["shop"]
    assert "engine aurora-mysql is not PostgreSQL" in run.error("shop")["message"]


# -- without a listing --------------------------------------------------------------------------


def _change_answers(stage: Stage, change: Callable[[Any], None]) -> list[str]:
    """Change AWS's responses; return the list of its operations."""
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- botocore's one way out
    asked: list[str] = []

    def change_answer(client: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        asked.append(operation)
        answer = call(client, operation, arguments)
        change(answer)
        return answer

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", change_answer)
    return asked


def _deny(stage: Stage, *operations: str) -> list[str]:
    """Deny operations, which the stand-in cannot; return the list of all operations."""
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- as above
    asked: list[str] = []

    def deny_call(client: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        asked.append(operation)
        if operation in operations:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)
        return call(client, operation, arguments)

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", deny_call)
    return asked


@pytest.mark.parametrize("operation", ["DescribeDBClusters", "DescribeDBInstances"])
def test_without_permission_to_list_the_secrets_own_host_is_the_target(
    fleet: Fleet, stage: Stage, operation: str
) -> None:
    leak = stage.session()
    fleet.cluster("shop", "shop-1", "shop-2")
    fleet.target("shop")
    managed = fleet.listed(fleet.instance("orders"))
    asked = _deny(stage, operation)
    run = stage.reap()
    assert run.document["status"] == "partial"
    assert run.outcomes("shop") == {leak.pid: "terminated"}
    assert "list-cluster-instances" in advice(run, "shop")
    (found,) = [
        each for each in run.target("shop")["advice"] if each["code"] == "list-cluster-instances"
    ]
    assert f"rds:{operation}" in found["message"]
    assert "AccessDenied" in found["message"]
    assert "CLUSTER_TARGETS" in found["message"]
    (failed,) = [each for each in run.document["targets"] if each["name"] != "shop"]
    assert failed["name"] in managed
    assert "host is missing" in failed["error"]["message"]
    assert f"rds:{operation}" in failed["error"]["hint"]
    assert asked.count(operation) == 1, "it is called for each target"


def test_if_rds_does_not_list_the_cluster_the_secrets_own_host_is_the_target(
    fleet: Fleet, stage: Stage
) -> None:
    leak = stage.session()
    fleet.target("shop")
    run = stage.reap()
    assert run.outcomes("shop") == {leak.pid: "terminated"}
    assert advice(run, "shop").count("list-cluster-instances") == 1


def test_rds_is_not_called_if_every_secret_names_its_host(fleet: Fleet, stage: Stage) -> None:
    fleet.cluster("shop", "shop-1")
    stage.target("orders")
    stage.target("solo", dbInstanceIdentifier="shop-1", dbClusterIdentifier="shop")
    asked = _deny(stage, "DescribeDBClusters", "DescribeDBInstances")
    assert stage.reap().document["status"] == "ok"
    assert not [each for each in asked if each.startswith("Describe")]


@contextmanager
def _rds_that(stage: Stage, deals: Callable[[socket.socket, Event], None]) -> Iterator[Impostor]:
    """Let RDS answer every call like this; the other services work."""
    with aws_but_for(b"/rds/aws4_request", deals) as other:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{other.port}")
        yield other


_ENDLESS = (
    b"<DescribeDBClustersResponse><DescribeDBClustersResult><DBClusters></DBClusters>"
    b"<Marker>%b</Marker></DescribeDBClustersResult></DescribeDBClustersResponse>"
)


def _pages_without_end(connection: socket.socket, stop: Event) -> None:
    http("200 OK", _ENDLESS % str(time.monotonic_ns()).encode(), 0.2)(connection, stop)


@pytest.mark.parametrize(
    ("deals", "why"),
    [
        pytest.param(
            hang, "ReadTimeoutError", marks=pytest.mark.thorough
        ),  # as in a VPC without an endpoint
        (http("403 Forbidden", b"<!doctype html><title>no"), "ResponseParserError"),  # a proxy
        (http("403 Forbidden", b"<html><body>no</body></html>"), "the answer is not from AWS"),
        (http("200 OK", b"<html><body>no</body></html>"), "KeyError"),
        pytest.param(_pages_without_end, "no answer in ", marks=pytest.mark.thorough),
    ],
    ids=["silent", "no XML", "a page", "a page of 200", "endless"],
)
def test_if_rds_fails_the_secrets_own_host_is_the_target(
    fleet: Fleet, stage: Stage, deals: Callable[[socket.socket, Event], None], why: str
) -> None:
    leak = stage.session()
    fleet.cluster("shop", "shop-1")
    fleet.target("shop")
    stage.target("orders", port=unused_port())
    with _rds_that(stage, deals):
        run = stage.reap()
    assert any(why in each["message"] for each in run.target("shop")["advice"])
    assert run.error("orders")["code"] == "connection"
    assert run.target("shop")["status"] == "ok", run.target("shop")
    assert "list-cluster-instances" in advice(run, "shop")
    assert not leak.is_there
    assert len(run.emails) == 1


def test_a_listing_that_is_late_but_in_time_is_used(fleet: Fleet, stage: Stage) -> None:
    leak = stage.session()
    fleet.listed(fleet.cluster("shop", "shop-1", managed=True))
    never = Event()

    def late(answer: Any) -> None:  # noqa: ANN401 -- botocore's
        if "DBInstances" in answer:
            never.wait(1)  # of these 12 s a listing may take 2.1

    _change_answers(stage, late)
    run = stage.run({"policy": policy()}, seconds=12)
    assert run.outcomes("shop-1") == {leak.pid: "terminated"}


@pytest.mark.thorough
def test_slow_secrets_leave_enough_time_for_the_listing(fleet: Fleet, stage: Stage) -> None:
    leak = stage.session()
    fleet.listed(fleet.cluster("shop", "shop-1", managed=True))
    never = Event()

    def late(answer: Any) -> None:  # noqa: ANN401 -- as above
        if "SecretString" in answer:
            never.wait(5)  # of these 24 s a list may take 4.2

    _change_answers(stage, late)
    # More than one page, so that the deadline is checked.
    backend = get_backend("rds")[DEFAULT_ACCOUNT_ID][REGION]
    for number in range(120):
        fleet.instance(f"other-{number}")
    assert len(backend.databases) > 100
    run = stage.run({"policy": policy()}, seconds=24)
    assert run.outcomes("shop-1") == {leak.pid: "terminated"}
