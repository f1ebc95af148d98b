"""A fallback secret's credentials are sent only to its own server, in a run and in a check."""

from __future__ import annotations

import json
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from infra.local.certificates import make_tls
from tests.integration.endpoints import error_response, reset_rds, resolve_here
from tests.integration.stage import LEAK, PASSWORD, REAPER
from tests.integration.wire import Impostor, Proxy, hang

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path
    from threading import Event

    from infra.local.postgres import Tls
    from tests.integration.conftest import Output
    from tests.integration.stage import Run, Stage

FALLBACK = "admin"  # a secret's name
THEIRS = "r00t-CANARY"  # the fallback's password
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
EVENTS: tuple[dict[str, bool], ...] = ({}, {"check": True})


@pytest.fixture(autouse=True)
def _rds_is_here(stage: Stage) -> Iterator[None]:
    resolve_here(stage.monkeypatch, ".rds.amazonaws.com", ".example")
    yield
    reset_rds()


@dataclass(kw_only=True)
class Thief:
    """A server that asks for passwords in clear text, and records them.

    To the reaper's own role it answers that it is full.
    """

    tls: Tls | None = None
    roles: list[str] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)  # server names in TLS handshakes

    def answer(self, connection: socket.socket, stop: Event) -> None:
        data = connection.recv(65536)
        if self.tls is not None:
            connection.sendall(b"S")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.tls.certificate, self.tls.key)
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)
            try:
                connection = context.wrap_socket(connection, server_side=True)
            except (ssl.SSLError, OSError):
                return
            data = connection.recv(65536)
        if data == _SSL_REQUEST:
            connection.sendall(b"N")
            return
        with connection, suppress(ssl.SSLError, OSError):
            role = data[8:].split(b"\0")[1].decode()
            self.roles.append(role)
            if role == REAPER:
                connection.sendall(
                    error_response("53300", "remaining connection slots are reserved")
                )
                return
            connection.sendall(b"R" + struct.pack("!ii", 8, 3))
            self.heard.append(connection.recv(65536))
            connection.sendall(error_response("28P01", "no"))
            hang(connection, stop)


@pytest.fixture
def thief() -> Iterator[tuple[Thief, Impostor]]:
    made = Thief()
    with Impostor(made.answer) as listening:
        yield made, listening


def message_of(run: Run, name: str = "orders") -> str:
    """The message of a run or a check about the fallback secret."""
    target = run.target(name)
    if target["error"] is not None:
        return str(target["error"]["message"])
    return " ".join(a["message"] for a in target["advice"] if a["code"] == "mend-fallback-secret")


# -- another server -----------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS, ids=["run", "check"])
@pytest.mark.parametrize("sslmode", ["disable", "require", None])
def test_a_targets_host_does_not_get_the_credentials_of_another_secret(
    stage: Stage, thief: tuple[Thief, Impostor], event: dict[str, bool], sslmode: str | None
) -> None:
    """The target's server claims to be full, so that the reaper tries the fallback secret on it."""
    stolen, listening = thief
    stage.aws.put_secret(FALLBACK, stage.secret(username="root", password=THEIRS, sslmode=sslmode))
    stage.target("evil", host="attacker.example", port=listening.port, fallback_secret=FALLBACK)
    run = stage.run(event, seconds=8)
    assert set(stolen.roles) == {REAPER}
    assert stolen.heard == []
    assert "it is for another server" in message_of(run, "evil")
    assert THEIRS not in json.dumps(run.document) + str(run.emails)


def test_a_check_refuses_the_fallback_secret_of_another_server(
    stage: Stage, output: Output
) -> None:
    with Proxy(stage.server.port) as attacker:
        stage.aws.put_secret(FALLBACK, stage.secret(username="root", password=THEIRS))
        stage.target(port=attacker.port, fallback_secret=FALLBACK)
        run = stage.run({"check": True})
        assert attacker.connections == 1, "the fallback secret connected as well"
    assert "it is for another server" in message_of(run)
    assert "same host and port" in message_of(run)
    assert "read replica needs a fallback secret of its own" in message_of(run)
    assert THEIRS not in output.readouterr().out + json.dumps(run.document)


@pytest.mark.parametrize("event", EVENTS, ids=["run", "check"])
def test_a_fallback_without_a_host_is_not_sent(
    stage: Stage, thief: tuple[Thief, Impostor], event: dict[str, bool]
) -> None:
    stolen, listening = thief
    stage.aws.put_secret(FALLBACK, {"username": "root", "password": THEIRS})
    stage.target(port=listening.port, fallback_secret=FALLBACK)
    run = stage.run(event, seconds=8)
    assert stolen.heard == []
    assert "host is missing" in message_of(run)


def test_the_fallbacks_own_tls_mode_applies(stage: Stage, thief: tuple[Thief, Impostor]) -> None:
    """The target's secret allows plaintext; the fallback's does not."""
    stolen, listening = thief
    place: dict[str, Any] = {"host": "127.0.0.1", "port": listening.port}
    theirs = stage.secret(username="root", password=THEIRS, sslmode=None, **place)
    stage.aws.put_secret(FALLBACK, theirs)
    stage.target(**place, sslmode="disable", fallback_secret=FALLBACK)
    run = stage.run(seconds=8)
    assert stolen.heard == []
    assert "does not offer TLS" in message_of(run)


# -- the same server ----------------------------------------------------------------------------


def test_a_fallback_with_the_same_endpoint_connects_in_a_run_and_a_check(
    stage: Stage,
) -> None:
    stage.role("rescuer", "SUPERUSER")
    keys = {
        "host": "LOCALHOST.example.",
        "fallback_secret": "nowhere",
    }  # the fallback's own fallback_secret has no effect
    same = stage.secret(username="rescuer", **keys)
    stage.aws.put_secret(FALLBACK, same)
    stage.target(host="localhost.example", fallback_secret=FALLBACK)
    leak = stage.session(LEAK)
    assert message_of(stage.run({"check": True})) == ""
    stage.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, f"ALTER ROLE {REAPER} CONNECTION LIMIT 5")
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.target()["fallback_secret"] == FALLBACK
    assert run.target()["secret"] == run.target()["name"]


# -- RDS ----------------------------------------------------------------------------------------


def a_cluster(port: int, *members: str) -> tuple[str, str]:
    """Create a cluster; return its writer endpoint and the ARN of its master secret."""
    rds = boto3.client("rds")
    made = rds.create_db_cluster(
        DBClusterIdentifier="shop",
        Engine="aurora-postgresql",
        MasterUsername="root",
        ManageMasterUserPassword=True,
        Port=port,
    )["DBCluster"]
    for member in members:
        rds.create_db_instance(
            DBInstanceIdentifier=member,
            DBClusterIdentifier="shop",
            Engine="aurora-postgresql",
            DBInstanceClass="db.r6g.large",
            Port=port,
        )
    return made["Endpoint"], made["MasterUserSecret"]["SecretArn"]


def limit_role(stage: Stage) -> None:
    """Leave no slot for the reaper's own role."""
    stage.role("rescuer", "SUPERUSER")
    stage.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, f"ALTER ROLE {REAPER} CONNECTION LIMIT 5")


def test_a_fallback_with_the_clusters_endpoint_is_used_for_each_instance(stage: Stage) -> None:
    endpoint, _ = a_cluster(stage.server.port, "shop-1", "shop-2")
    stage.aws.put_secret(FALLBACK, stage.secret(username="rescuer", host=endpoint))
    stage.target("shop", dbClusterIdentifier="shop", fallback_secret=FALLBACK)
    limit_role(stage)
    run = stage.reap()
    assert [each["fallback_secret"] for each in run.document["targets"]] == [FALLBACK] * 2


@pytest.mark.parametrize("kind", ["Endpoint", "CustomEndpoints"])
def test_without_permission_to_list_a_clusters_endpoint_is_refused(stage: Stage, kind: str) -> None:
    """A cluster's endpoints are accepted only if RDS lists them."""
    endpoint, _ = a_cluster(stage.server.port, "shop-1")
    custom = endpoint.replace("shop.cluster-", "reports.cluster-custom-")
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- botocore's one way out
    denying = False

    def answered(client: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        if denying and operation == "DescribeDBClusters":
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)
        answer = call(client, operation, arguments)
        for cluster in answer.get("DBClusters", []):
            cluster["CustomEndpoints"] = [custom]
        return answer

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", answered)
    host = endpoint if kind == "Endpoint" else custom
    stage.aws.put_secret(FALLBACK, stage.secret(username="rescuer", host=host))
    instance = f"shop-1.{endpoint.split('.cluster-')[1]}"
    rds = boto3.client("rds")
    (listed,) = rds.describe_db_instances(DBInstanceIdentifier="shop-1")["DBInstances"]
    instance = listed["Endpoint"]["Address"]
    stage.target("shop", host=instance, fallback_secret=FALLBACK)
    limit_role(stage)
    assert stage.reap().target("shop")["fallback_secret"] == FALLBACK
    denying = True
    run = stage.reap(seconds=8)
    assert run.target("shop")["status"] == "failed"
    assert "RDS instances cannot be listed" in message_of(run, "shop")
    assert "AccessDenied" in message_of(run, "shop")


@pytest.mark.parametrize("event", EVENTS, ids=["run", "check"])
def test_the_master_secret_of_the_cluster_is_sent_verified_to_an_rds_endpoint(
    stage: Stage, tmp_path: Path, event: dict[str, bool]
) -> None:
    """No server here has a certificate of AWS's authorities, so the password is not sent."""
    stolen = Thief(tls=make_tls(tmp_path))
    with Impostor(stolen.answer) as listening:
        endpoint, master = a_cluster(listening.port, "shop-1")
        text = {"username": "root", "password": THEIRS, "sslmode": "disable"}
        stage.aws.secrets.put_secret_value(SecretId=master, SecretString=json.dumps(text))
        stage.target(
            host=endpoint.upper(), port=listening.port, sslmode="require", fallback_secret=master
        )
        run = stage.run(event, seconds=8)
    assert stolen.roles
    assert set(stolen.roles) == {REAPER}, "an unverified server got the login"
    assert stolen.heard == []
    assert endpoint in stolen.names
    assert "CA that is not trusted" in message_of(run)


def test_the_master_secret_of_a_cluster_is_refused_on_any_other_server(
    stage: Stage, thief: tuple[Thief, Impostor]
) -> None:
    stolen, listening = thief
    _, master = a_cluster(stage.server.port, "shop-1")
    text = {"username": "root", "password": THEIRS}
    stage.aws.secrets.put_secret_value(SecretId=master, SecretString=json.dumps(text))
    stage.target(
        host="attacker.example",
        port=listening.port,
        dbInstanceIdentifier="shop-1",
        fallback_secret=master,
    )
    run = stage.run(seconds=8)
    assert set(stolen.roles) == {REAPER}
    assert stolen.heard == []
    assert "does not list it as the master secret" in message_of(run, "shop-1")


# -- form ---------------------------------------------------------------------------------------


def test_a_uri_in_place_of_a_secrets_name_is_not_shown(stage: Stage, output: Output) -> None:
    uri = f"postgres://root:{THEIRS}@db.example/orders"
    stage.target(fallback_secret=uri)
    for key in ("name", "host", "dbInstanceIdentifier"):
        stage.target(f"by-{key.lower()}", **{key: uri})
    run = stage.run()
    assert run.document["totals"]["failed"] == 4
    assert "fallback_secret must be" in run.error()["message"]
    logged = output.readouterr()
    emails = "".join(email.subject + email.body for email in run.emails)
    everything = logged.out + logged.err + json.dumps(run.document) + emails
    assert THEIRS not in everything
    assert PASSWORD not in everything
