"""Scheduled runs do not wake Aurora clusters without connections; RDS and CloudWatch are moto's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID

from infra.local.aws import REGION
from tests.integration.endpoints import reset_rds, resolve_here
from tests.integration.recorder import record_calls
from tests.integration.stage import policy, rule
from tests.integration.wire import Proxy, RewriteRows, as_another_server, aws_but_for, hang, http

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from threading import Event

    from tests.integration.stage import Run, Stage

SCHEDULED = {"source": "aws.scheduler", "detail-type": "Scheduled Event"}
PATIENT = policy(rule(idle_for="5m"))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster shop, whose members all lead to the stage's server."""

    stage: Stage
    port: int

    def make(
        self,
        *tiers: int,
        minimum: float = 0,
        kind: str = "db.serverless",
        is_target: bool = True,
    ) -> str:
        """Make shop-1, the writer, and a reader for each further tier; return the writer's host."""
        rds = boto3.client("rds")
        rds.create_db_cluster(
            DBClusterIdentifier="shop",
            Engine="aurora-postgresql",
            MasterUsername="root",
            MasterUserPassword="never-used",
            ServerlessV2ScalingConfiguration={"MinCapacity": minimum, "MaxCapacity": 4},
        )
        for number, tier in enumerate(tiers, start=1):
            rds.create_db_instance(
                DBInstanceIdentifier=f"shop-{number}",
                DBClusterIdentifier="shop",
                Engine="aurora-postgresql",
                DBInstanceClass=kind,
                Port=self.port,
                PromotionTier=tier,
            )
        if is_target:
            self.stage.target("shop-secret", dbClusterIdentifier="shop", port=self.port)
        (writer, *_) = rds.describe_db_instances()["DBInstances"]
        return writer["Endpoint"]["Address"]

    def put_metric(
        self, name: str, value: float, *, minutes: float = 2, metric: str = "DatabaseConnections"
    ) -> None:
        moment = datetime.now(UTC) - timedelta(minutes=minutes)
        datum: Any = {
            "MetricName": metric,
            "Dimensions": [{"Name": "DBInstanceIdentifier", "Value": name}],
            "Timestamp": moment,
            "Value": value,
        }
        boto3.client("cloudwatch").put_metric_data(Namespace="AWS/RDS", MetricData=[datum])

    def run(self, event: dict[str, Any] | None = None) -> Run:
        return self.stage.run(SCHEDULED if event is None else event)


@pytest.fixture
def proxy(stage: Stage) -> Iterator[Proxy]:
    with Proxy(stage.server.port, says=RewriteRows(as_another_server(1))) as made:
        yield made


@pytest.fixture
def cluster(stage: Stage, proxy: Proxy) -> Iterator[Cluster]:
    resolve_here(stage.monkeypatch, ".rds.amazonaws.com")
    stage.use_policy(PATIENT)
    yield Cluster(stage=stage, port=proxy.port)
    reset_rds()
    get_backend("cloudwatch")[DEFAULT_ACCOUNT_ID][REGION].reset()


def statuses(run: Run) -> dict[str, str]:
    return {each["name"]: each["status"] for each in run.document["targets"]}


@pytest.mark.parametrize("metric", ["DatabaseConnections", "ServerlessDatabaseCapacity"])
def test_a_cluster_without_connections_is_not_woken(
    cluster: Cluster, proxy: Proxy, metric: str
) -> None:
    cluster.make(1, 1)
    for name in ("shop-1", "shop-2"):
        cluster.put_metric(name, 0, metric=metric)
    run = cluster.run()
    assert statuses(run) == {"shop-1": "paused", "shop-2": "paused"}
    assert run.document["status"] == "ok"
    assert run.document["totals"]["failed"] == 0
    assert [each["error"] for each in run.document["targets"]] == [None, None]
    assert "shop-1: paused, not woken" in run.document["summary"]
    assert run.emails == []
    assert proxy.connections == 0


@pytest.mark.parametrize(
    "event", [{}, {"check": True}, {"record": True}, {"mode": "observe"}], ids=repr
)
def test_a_manual_run_connects_to_a_paused_cluster(cluster: Cluster, event: dict[str, Any]) -> None:
    cluster.make(1)
    cluster.put_metric("shop-1", 0)
    assert statuses(cluster.run(event)) == {"shop-1": "ok"}


def test_a_scheduled_run_connects_if_the_setting_says_so(cluster: Cluster) -> None:
    cluster.make(1)
    cluster.put_metric("shop-1", 0)
    cluster.stage.monkeypatch.setenv("PAUSED_CLUSTERS", "connect")
    assert statuses(cluster.run()) == {"shop-1": "ok"}


@pytest.mark.parametrize(("value", "minutes"), [(1, 2), (0, 7), (0, None)])
def test_connections_late_metrics_and_missing_ones_mean_connect(
    cluster: Cluster, value: float, minutes: float | None
) -> None:
    cluster.make(1)
    if minutes is not None:
        cluster.put_metric("shop-1", value, minutes=minutes)
    run = cluster.run()
    assert statuses(run) == {"shop-1": "ok"}
    assert "allow-pause-check" not in {each["code"] for each in run.target("shop-1")["advice"]}


def test_pausing_is_decided_by_the_instances_that_wake_together(cluster: Cluster) -> None:
    cluster.make(1, 1, 2)
    cluster.put_metric("shop-1", 3)
    cluster.put_metric("shop-2", 0)
    cluster.put_metric("shop-3", 0)
    assert statuses(cluster.run()) == {"shop-1": "ok", "shop-2": "ok", "shop-3": "paused"}


@pytest.mark.parametrize(("minimum", "kind"), [(0.5, "db.serverless"), (0, "db.r6g.large")])
def test_a_cluster_that_cannot_pause_costs_no_call_to_cloudwatch(
    cluster: Cluster, minimum: float, kind: str
) -> None:
    cluster.make(1, minimum=minimum, kind=kind)
    cluster.put_metric("shop-1", 0)
    with record_calls() as calls:
        assert statuses(cluster.run()) == {"shop-1": "ok"}
    made = Counter(each for each in calls if each.startswith(("rds", "cl")))
    assert made == {"rds:DescribeDBClusters": 1, "rds:DescribeDBInstances": 1}


def test_the_host_of_an_instance_in_a_secret_is_looked_up(cluster: Cluster, proxy: Proxy) -> None:
    host = cluster.make(1, is_target=False)
    cluster.put_metric("shop-1", 0)
    cluster.stage.target("orders", host=host, port=proxy.port)
    assert statuses(cluster.run()) == {"orders": "paused"}
    assert proxy.connections == 0


def test_several_secrets_of_a_paused_server_are_one_target(cluster: Cluster, proxy: Proxy) -> None:
    host = cluster.make(1)
    cluster.put_metric("shop-1", 0)
    cluster.stage.target("billing", host=host, port=proxy.port)
    run = cluster.run()
    assert statuses(run) == {"shop-1": "paused"}
    assert run.target("shop-1")["also"] == ["billing"]
    assert run.document["totals"]["targets"] == 1
    assert statuses(cluster.run({})) == {"shop-1": "ok"}


def test_without_an_endpoint_of_rds_nothing_is_looked_up(stage: Stage) -> None:
    stage.target()
    with record_calls() as calls:
        assert statuses(stage.run(SCHEDULED)) == {"orders": "ok"}
    assert not {each for each in calls if each.startswith(("rds", "cl"))}


DENIED = http("403 Forbidden", b'{"__type": "AccessDenied", "message": "not authorized"}')


@pytest.mark.thorough
@pytest.mark.parametrize("service", ["monitoring", "rds"])
@pytest.mark.parametrize(
    "answer",
    [DENIED, hang, http("200 OK", b"<html>")],
    ids=["denied", "silent", "a proxy"],
)
def test_if_rds_or_cloudwatch_cannot_be_read_the_run_connects_and_warns(
    cluster: Cluster,
    service: str,
    answer: Callable[[socket.socket, Event], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = cluster.make(1, is_target=False)
    cluster.put_metric("shop-1", 0)
    stage = cluster.stage
    stage.target("orders", host=host, port=cluster.port)
    with aws_but_for(f"/{service}/aws4_request".encode(), answer) as other:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{other.port}")
        run = stage.run(SCHEDULED)
    assert statuses(run) == {"orders": "ok"}
    (given,) = [each for each in run.target()["advice"] if each["code"] == "allow-pause-check"]
    assert "PAUSED_CLUSTERS" in given["message"]
    assert "paused clusters are unknown" in caplog.messages


@pytest.mark.usefixtures("table")
def test_an_issue_of_a_paused_cluster_has_not_ended(cluster: Cluster) -> None:
    """It is neither recovered nor reported as new while the cluster is paused."""
    stage = cluster.stage
    cluster.make(1)
    stage.root.run("ALTER DATABASE postgres CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, "ALTER DATABASE postgres CONNECTION LIMIT -1")
    assert cluster.run().target("shop-1")["error"]["code"] == "53300"
    cluster.put_metric("shop-1", 0)
    paused = cluster.run()
    assert statuses(paused)["shop-1"] == "paused"
    assert paused.emails == []
    get_backend("cloudwatch")[DEFAULT_ACCOUNT_ID][REGION].reset()
    stage.root.run("ALTER DATABASE postgres CONNECTION LIMIT -1")
    assert [each["kind"] for each in cluster.run().target("shop-1")["recovered"]] == ["full"]
