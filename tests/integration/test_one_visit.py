"""Secrets of one server are one target, which is visited once; what a server claims changes nothing."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from contextlib import ExitStack, contextmanager, suppress
from threading import Event
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from infra.local.certificates import make_tls
from infra.local.postgres import HOST
from tests.integration.endpoints import has_ipv6, reset_rds, resolve_here
from tests.integration.stage import IDLE, REAPER, TABLE, Stage, identity_of, policy, until
from tests.integration.standby import run_another
from tests.integration.wire import (
    ENDLESS_SECONDS,
    Action,
    Fault,
    Impostor,
    Moment,
    Proxy,
    RewriteRows,
    hang,
    pump,
    relay,
    unused_port,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infra.local.postgres import Build, Tls
    from tests.integration.conftest import Output
    from tests.integration.stage import Run
    from tests.integration.standby import Another

SECRETS = "arn:aws:secretsmanager:eu-central-1:123456789012:secret"
WRONG = "not the password"
SCHEDULED = {"source": "aws.scheduler", "detail-type": "Scheduled Event"}


def names(run: Run) -> list[str]:
    return [target["name"] for target in run.document["targets"]]


@pytest.fixture
def another(build: Build) -> Iterator[Another]:
    with run_another(build, standby=False) as made:
        yield made


def test_secrets_of_three_databases_are_one_target_and_one_connection(stage: Stage) -> None:
    stage.session(IDLE)
    with Proxy(stage.server.port) as proxy:
        for name in ("orders", "billing", "stock"):
            stage.target(name, port=proxy.port, dbname=stage.database(name))
        run = stage.run({"targets": ["orders", "stock"], "policy": policy()})
        assert run.target()["also"] == ["billing", "stock"]
        assert proxy.connections == 1
        until(lambda: stage.clients == 2, "our connection has ended")
        proxy.connections = 0
        proxy.seen.clear()
        run = stage.reap()
        assert proxy.connections == 1
        assert proxy.seen.count(Moment.SNAPSHOT) == 1
        assert "also the server of billing, stock" in stage.run({"check": True}).said
    assert names(run) == ["orders"]
    assert run.target()["secret"] == "orders"  # noqa: S105 -- its name
    assert run.target()["also"] == ["billing", "stock"]
    assert run.target()["slots"]["used_before"] == 2  # the application's and the superuser's
    assert run.document["totals"]["targets"] == 1


def test_hosts_with_one_address_are_one_target(stage: Stage) -> None:
    resolve_here(stage.monkeypatch, ".example")
    with Proxy(stage.server.port) as proxy:
        stage.target("orders", port=proxy.port, host="orders.example")
        stage.target("billing", port=proxy.port, host="Billing.Example.")
        stage.target("stock", port=proxy.port)
        run = stage.reap()
        assert proxy.connections == 1
    assert names(run) == ["orders"]
    assert run.target()["also"] == ["billing", "stock"]


def test_tagged_secrets_of_one_server_are_named_by_the_first_arn(stage: Stage) -> None:
    for name in ("c", "a", "b"):
        stage.aws.put_secret(name, stage.secret())
        tags = [{"Key": "reap", "Value": "yes"}]
        stage.aws.secrets.tag_resource(SecretId=name, Tags=tags)  # type: ignore[arg-type] # moto's
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "reap=yes")
    run = stage.reap()
    assert names(run) == ["a"]
    assert run.target("a")["also"] == ["b", "c"]
    stage.listed("b")  # a configured secret comes before those with a tag
    assert names(stage.reap()) == ["b"]


def test_secrets_that_choose_one_name_for_one_server_keep_it(stage: Stage) -> None:
    stage.target("prod/a", dbInstanceIdentifier="orders")
    stage.target("prod/b", dbInstanceIdentifier="orders")
    run = stage.reap()
    assert run.target()["secret"] == "prod/a"  # noqa: S105 -- its name
    assert run.target()["also"] == ["prod/b"]


@pytest.mark.parametrize("asked", ["orders", "Invoices"])
def test_an_event_finds_a_server_by_the_name_of_each_of_its_secrets(
    stage: Stage, asked: str
) -> None:
    stage.target("orders")
    stage.target("billing", name="Invoices")
    stage.target("elsewhere", port=unused_port())
    run = stage.run({"policy": policy(), "targets": [asked]})
    assert names(run) == ["orders"]
    assert run.target()["also"] == ["billing"]


# -- which secret is used --------------------------------------------------------------------------


def test_the_next_secret_visits_if_the_login_of_the_first_fails(stage: Stage) -> None:
    leak = stage.session()
    stage.target("orders", password=WRONG)
    stage.target("billing")
    stage.target("stock", password=WRONG)
    stage.use_policy(policy())
    run = stage.run()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.target()["status"] == "ok"
    assert run.error()["code"] == "28P01"
    assert run.error()["message"].startswith("secret orders, logging in to")
    assert run.target()["also"] == ["billing", "stock"]
    assert run.document["verdict"].startswith(
        "ACTION NEEDED: Secret orders failed, so the run used another one on orders"
    )
    assert any("username and password" in step for step in run.document["steps"])
    assert run.email.attributes["severity"] == "warning"


@pytest.mark.usefixtures("table")
def test_a_secret_that_fails_is_reported_once_and_its_recovery_once(stage: Stage) -> None:
    stage.use_policy(policy())
    stage.target("billing")
    secrets = stage.aws.secrets
    secrets.put_secret_value(
        SecretId="orders", SecretString=json.dumps(stage.secret(password=WRONG))
    )
    assert stage.run().email.subject.startswith("orders: ")
    assert stage.run().emails == []
    (item,) = boto3.client("dynamodb").scan(TableName=TABLE)["Items"]
    assert item["kind"] == {"S": "secret orders 28P01"}
    secrets.put_secret_value(SecretId="orders", SecretString=json.dumps(stage.secret()))
    assert "recovered (secret orders, 28P01 for" in stage.run().email.subject
    assert stage.run().emails == []


@pytest.mark.usefixtures("table")
def test_an_issue_that_a_secret_had_as_a_target_of_its_own_ends_with_its_server(
    stage: Stage,
) -> None:
    """Before, it led to another port; the issue is known by its own key."""
    stage.use_policy(policy())
    stage.target("billing", port=unused_port())
    assert stage.run().email.subject.startswith("billing: failed")
    text = json.dumps(stage.secret())
    stage.aws.secrets.put_secret_value(SecretId="billing", SecretString=text)
    assert stage.run({}).email.subject.startswith("orders: recovered")
    assert boto3.client("dynamodb").scan(TableName=TABLE)["Items"] == []


def test_if_every_secret_of_a_server_fails_it_is_one_failed_target(stage: Stage) -> None:
    port = unused_port()
    for name in ("orders", "billing"):
        stage.target(name, port=port)
    run = stage.reap()
    assert names(run) == ["orders"]
    assert run.error()["code"] == "connection"
    assert run.document["status"] == "failed"
    assert run.target()["also"] == ["billing"]


def test_errors_that_differ_are_each_reported(stage: Stage) -> None:
    stage.target("orders", password=WRONG)
    stage.target("billing", dbname="no_such_database")
    run = stage.reap()
    assert run.error()["code"] == "28P01"
    assert run.target()["status"] == "failed"
    assert "(secret billing: 3D000, database" in run.error()["message"]
    assert "(secret billing: 3D000, database" in run.said


MAY_SEE = ("pg_read_all_stats",)
MAY_BOTH = ("pg_read_all_stats", "pg_signal_backend")


@pytest.mark.parametrize(
    ("rights", "chosen"),
    [([(), MAY_BOTH], 1), ([MAY_SEE, MAY_BOTH], 1), ([(), MAY_SEE], 1), ([MAY_SEE, ()], 0)],
)
@pytest.mark.parametrize("event", [{}, {"check": True}], ids=["run", "check"])
def test_the_secret_whose_role_sees_and_signals_is_used(
    stage: Stage, rights: list[tuple[str, ...]], chosen: int, event: dict[str, bool]
) -> None:
    for number, granted in enumerate(rights):
        stage.role(f"role{number}", f"IN ROLE {', '.join(granted)}" if granted else "")
        stage.target(f"secret{number}", username=f"role{number}")
    leak = stage.session()
    run = stage.run(event or {"policy": policy()})
    assert names(run) == ["secret0"]
    target = run.target("secret0")
    assert target["status"] == "ok"
    if event:
        assert target["check"]["role"]["name"] == f"role{chosen}"
    else:
        expected = "terminated" if MAY_BOTH in rights else "denied"
        assert run.outcomes("secret0") == {leak.pid: expected}


def test_a_server_that_no_secret_sees_is_blind_once(stage: Stage) -> None:
    for number in range(2):
        stage.role(f"role{number}")
        stage.target(f"secret{number}", username=f"role{number}")
    run = stage.reap()
    assert names(run) == ["secret0"]
    assert run.target("secret0")["status"] == "blind"
    assert "role0" in run.error("secret0")["hint"]


def test_a_limit_counts_once_for_a_server(stage: Stage) -> None:
    leaks = stage.sessions(5)
    for name in ("orders", "billing", "stock"):
        stage.target(name)
    run = stage.reap(limits={"max_terminations": 2})
    assert sorted(run.outcomes().values()) == ["spared"] * 3 + ["terminated"] * 2
    assert len(stage.survivors(leaks)) == 3
    assert run.document["totals"]["terminated"] == 2


def test_three_secrets_do_not_compete_for_the_last_slot(own_server: Callable[..., Stage]) -> None:
    stage = own_server({"max_connections": "20"})
    leaks = stage.fill()
    leaks.pop().close()
    for name in ("orders", "billing", "stock"):
        stage.target(
            name,
        )
    run = stage.reap()
    assert names(run) == ["orders"]
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert run.target()["error"] is None


def test_on_a_full_server_a_secret_with_reserved_slots_is_used(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": "20"})
    stage.role("rescuer", "SUPERUSER")
    leaks = stage.fill()
    stage.target("orders")
    stage.target("rescue", username="rescuer")
    run = stage.reap(seconds=20)
    assert names(run) == ["orders"]
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert run.error()["code"] == "53300"


def test_a_fallback_secret_of_a_later_secret_is_used(stage: Stage) -> None:
    stage.role("rescuer", "SUPERUSER")
    stage.aws.put_secret("admin", stage.secret(username="rescuer"))
    stage.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, f"ALTER ROLE {REAPER} CONNECTION LIMIT 5")
    leak = stage.session()
    stage.target("orders")
    stage.target("billing", fallback_secret="admin")  # noqa: S106 -- its name
    run = stage.reap()
    assert names(run) == ["orders"]
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.target()["fallback_secret"] == "admin"  # noqa: S105 -- its name


# -- servers that are different --------------------------------------------------------------------


def test_two_servers_on_one_host_are_two_targets(stage: Stage, another: Another) -> None:
    here, there = stage.session(), another.leak()
    stage.target("orders")
    stage.target("billing", port=another.server.port)
    run = stage.reap()
    assert run.outcomes() == {here.pid: "terminated"}
    assert run.outcomes("billing") == {there.pid: "terminated"}


def test_two_secrets_of_a_cluster_are_one_target_for_each_instance(
    stage: Stage, another: Another
) -> None:
    resolve_here(stage.monkeypatch, ".rds.amazonaws.com")
    stage.cleanup(reset_rds)
    rds = boto3.client("rds")
    engine = "aurora-postgresql"
    rds.create_db_cluster(
        DBClusterIdentifier="shop", Engine=engine, MasterUsername="u", MasterUserPassword="12345678"
    )
    for number, port in enumerate((stage.server.port, another.server.port), start=1):
        rds.create_db_instance(
            DBInstanceIdentifier=f"shop-{number}",
            DBClusterIdentifier="shop",
            Engine=engine,
            DBInstanceClass="db.r6g.large",
            Port=port,
        )
    here, there = stage.session(), another.leak()
    for name in ("orders", "billing"):
        stage.target(name, dbClusterIdentifier="shop")
    run = stage.reap()
    assert names(run) == ["shop-1", "shop-2"]
    assert [target["also"] for target in run.document["targets"]] == [["billing"]] * 2
    assert run.outcomes("shop-1") == {here.pid: "terminated"}
    assert run.outcomes("shop-2") == {there.pid: "terminated"}


def pooler(route: Callable[[str], int]) -> Impostor:
    """A pooler that leads each database to a port, and greets with a number of its own."""

    def answer(client: socket.socket, stop: Event) -> None:
        startup = client.recv(65536)
        words = startup[8:].split(b"\0")
        database = words[words.index(b"database") + 1].decode()
        relay(client, startup, route(database), stop, says=_greet)

    return Impostor(answer)


def _greet(data: bytes) -> bytes:
    head, key, rest = data.partition(b"K" + struct.pack("!i", 12))
    return head + key + struct.pack("!i", 7) + rest[4:] if key else data


def test_databases_behind_a_pooler_may_be_different_servers(stage: Stage, another: Another) -> None:
    for root in (stage.root, another.root):
        root.run("CREATE DATABASE other")
    stage.cleanup(stage.root.run, "DROP DATABASE other")
    here, there = stage.session(), another.leak()
    ports = {"postgres": stage.server.port, "other": another.server.port}
    with pooler(ports.__getitem__) as pool:
        stage.target("orders", port=pool.port)
        stage.target("billing", port=pool.port, dbname="other")
        stage.target("stock", port=pool.port)
        run = stage.reap()
        event = {"policy": policy(), "mode": "observe", "targets": ["billing"]}
        only = stage.run(event)
    assert sorted(names(run)) == ["billing", "orders"]
    assert run.target()["also"] == ["stock"]
    assert run.outcomes() == {here.pid: "terminated"}
    assert run.outcomes("billing") == {there.pid: "terminated"}
    assert names(only) == ["billing"]


def test_databases_of_one_server_behind_a_pooler_are_one_target(stage: Stage) -> None:
    leak = stage.session()
    with pooler(lambda _: stage.server.port) as pool:
        for name in ("orders", "billing"):
            stage.target(name, port=pool.port, dbname=stage.database(name))
        run = stage.reap()
        assert pool.connections == 2  # the second one stops after its login
    assert names(run) == ["orders"]
    assert run.target()["also"] == ["billing"]
    assert run.outcomes() == {leak.pid: "terminated"}


# -- what a server claims --------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["direct", "detour"])
def test_one_server_at_two_addresses_is_one_target(stage: Stage, first: str) -> None:
    leaks = stage.sessions(3)
    with Proxy(stage.server.port) as proxy:
        ports = {"direct": stage.server.port, "detour": proxy.port}
        second = next(name for name in ports if name != first)
        stage.target(first, port=ports[first])
        stage.target(second, port=ports[second])
        run = stage.reap(limits={"max_terminations": 1})
    assert names(run) == [first]
    assert run.target(first)["also"] == [second]
    assert run.document["totals"]["terminated"] == 1
    assert len(stage.survivors(leaks)) == 2


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("hosts", [[HOST, "::1"], ["::1", HOST]])
def test_one_server_with_ipv4_and_ipv6_is_one_target(
    own_server: Callable[..., Stage], hosts: list[str]
) -> None:
    stage = own_server({"listen_addresses": f"{HOST}, ::1"})
    leaks = stage.sessions(2)
    for name, host in zip(("orders", "billing"), hosts, strict=True):
        stage.target(name, host=host)
    run = stage.reap()
    assert names(run) == ["orders"]
    assert run.target()["also"] == ["billing"]
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}


def read_log(output: Output) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.readouterr().out.splitlines()]


def lines_of_sessions(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("message") in ("decision", "outcome")]


@contextmanager
def two_addresses(stage: Stage, *, fast: str, moment: Moment) -> Iterator[None]:
    """Make `orders` and then `billing` targets at two addresses of one server.

    One is fast: the other one's snapshot begins once the fast one has got the answer of that
    moment.
    """
    is_answered = Event()

    def lead(data: bytes) -> bytes:
        if moment in proxies[fast].seen:
            is_answered.set()
        return data

    def follow(moment: Moment) -> None:
        if moment is Moment.SNAPSHOT:
            is_answered.wait(20)

    proxies = {
        name: Proxy(stage.server.port, says=lead)
        if name == fast
        else Proxy(stage.server.port, before=follow)
        for name in ("orders", "billing")
    }
    with ExitStack() as stack:
        for name, proxy in proxies.items():
            stage.target(name, port=stack.enter_context(proxy).port)
        yield


@pytest.mark.parametrize("fast", ["orders", "billing"])
def test_log_and_metrics_name_a_server_as_its_report_does_whoever_connects_first(
    stage: Stage, output: Output, fast: str
) -> None:
    leaks = stage.sessions(2)
    with two_addresses(stage, fast=fast, moment=Moment.SNAPSHOT):
        stage.use_policy(policy())
        run = stage.run()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert run.target()["also"] == ["billing"]
    lines = read_log(output)
    sessions = lines_of_sessions(lines)
    assert len(sessions) == 2 * len(leaks)  # a decision and an outcome
    assert {line["target"] for line in sessions} == {"orders"}
    metrics = [line for line in lines if "_aws" in line and "target" in line]
    assert {line["target"] for line in metrics} == {"orders"}


def test_a_secret_that_gets_in_after_the_signals_gives_its_name_to_the_lines_before(
    stage: Stage, output: Output
) -> None:
    """No server waits long for another one; the log says by which name to find the lines."""
    leak = stage.session()
    with two_addresses(stage, fast="billing", moment=Moment.TERMINATE):
        stage.use_policy(policy())
        run = stage.run()
    assert names(run) == ["orders"]
    assert run.outcomes() == {leak.pid: "terminated"}
    lines = read_log(output)
    assert {line["target"] for line in lines_of_sessions(lines)} == {"billing"}
    (other,) = [line for line in lines if line.get("message") == "logged under another name"]
    assert (other["target"], other["logged_as"]) == ("orders", "billing")


@pytest.mark.parametrize("fast", ["orders", "billing"])
@pytest.mark.parametrize("able", ["orders", "billing"])
def test_the_secret_whose_role_signals_is_used_at_whatever_address(
    stage: Stage, output: Output, fast: str, able: str
) -> None:
    stage.role("watcher", "IN ROLE pg_read_all_stats")
    leak = stage.session()
    with two_addresses(stage, fast=fast, moment=Moment.SNAPSHOT):
        (unable,) = {"orders", "billing"} - {able}
        secrets = stage.aws.secrets
        document = json.loads(secrets.get_secret_value(SecretId=unable)["SecretString"])
        text = json.dumps({**document, "username": "watcher"})
        secrets.put_secret_value(SecretId=unable, SecretString=text)
        stage.use_policy(policy())
        run = stage.run()
    assert names(run) == ["orders"]
    assert run.outcomes() == {leak.pid: "terminated"}
    assert {line["target"] for line in lines_of_sessions(read_log(output))} == {"orders"}


@pytest.mark.parametrize("fast", ["orders", "billing"])
def test_a_server_at_two_addresses_is_one_target_also_if_it_has_no_slot_for_the_proof(
    own_server: Callable[..., Stage], fast: str
) -> None:
    stage = own_server({"max_connections": "20"})
    leaks = stage.fill()
    for _ in range(2):
        leaks.pop().close()
    until(lambda: stage.clients == len(leaks) + 1, "two slots are free")
    with two_addresses(stage, fast=fast, moment=Moment.SNAPSHOT):
        run = stage.reap()
    assert names(run) == ["orders"]
    assert run.target()["also"] == ["billing"]
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert run.document["totals"]["terminated"] == len(leaks)


@pytest.mark.thorough
def test_a_target_that_hangs_delays_another_server_for_a_short_time_only(
    stage: Stage,
) -> None:
    leak = stage.session()
    ended = Event()

    def watch(moment: Moment) -> None:
        if moment is Moment.TERMINATE:
            ended.set()

    def answer(client: socket.socket, _: Event) -> None:
        """Hang until the other server's session was signalled."""
        client.recv(65536)
        ended.wait(ENDLESS_SECONDS)

    with Impostor(answer) as server, Proxy(stage.server.port, before=watch) as proxy:
        stage.target("billing", port=server.port)
        stage.target("orders", port=proxy.port)
        run = stage.reap(seconds=ENDLESS_SECONDS)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.error("billing")["code"] != "timeout"


@pytest.mark.parametrize("order", [["evil", "orders"], ["orders", "evil"]])
def test_a_server_that_claims_to_be_another_stops_no_visit(
    stage: Stage, another: Another, order: list[str]
) -> None:
    claimed = identity_of(stage)

    def claim(value: bytes) -> bytes:
        if value.startswith(b'{"role"'):
            return json.dumps({**json.loads(value), **claimed}).encode()
        return b"t" if value == b"f" else value  # it also claims to see every session

    leak = stage.session()
    with Proxy(another.server.port, says=RewriteRows(claim)) as evil:
        ports = {"evil": evil.port, "orders": stage.server.port}
        for name in order:
            stage.target(name, port=ports[name])
        run = stage.reap()
    assert not leak.is_there
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.target()["also"] == []
    assert sorted(names(run)) == ["evil", "orders"]


class Order:
    """Lets one proxy's snapshot begin only after the visit of another one."""

    def __init__(self) -> None:
        self._is_visited = Event()

    def lead(self, moment: Moment) -> None:
        if moment is Moment.PREPARE_TERMINATE:
            self._is_visited.set()

    def follow(self, moment: Moment) -> None:
        if moment is Moment.SNAPSHOT:
            self._is_visited.wait(20)


@pytest.mark.parametrize(
    "action", [Action.RESET, pytest.param(Action.HANG, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("moment", [Moment.STARTUP, Moment.SNAPSHOT])
def test_a_server_that_does_not_show_our_session_stops_no_visit(
    stage: Stage, action: Action, moment: Moment
) -> None:
    """It passes logins on to the other server, but not every statement."""
    stage.session()
    faults = iter([(), (Fault(action=action, moment=moment),)])
    order = Order()

    def answer(client: socket.socket, stop: Event) -> None:
        with Proxy(stage.server.port, *next(faults), before=order.lead) as proxy:
            relay(client, client.recv(65536), proxy.port, stop)

    with Impostor(answer) as evil, Proxy(stage.server.port, before=order.follow) as proxy:
        stage.target("evil", port=evil.port)
        stage.target("orders", port=proxy.port)
        run = stage.reap()
    assert names(run) == ["evil", "orders"]
    assert run.target()["error"] is None


def proxy_tls(client: socket.socket, port: int, tls: Tls, stop: Event) -> None:
    """End TLS with that certificate, and pass everything on to a port here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    client.recv(8)
    client.sendall(b"S")
    with (
        suppress(ssl.SSLError),
        context.wrap_socket(client, server_side=True) as secure,
        socket.create_connection((HOST, port)) as behind,
    ):
        pump(secure, behind, stop)


def test_a_server_with_another_certificate_stops_no_visit(stage: Stage, tmp_path: Path) -> None:
    """It passes everything on to the other server; behind a NAT, that comes from our own address."""
    stage.session()
    order = Order()
    tls = make_tls(tmp_path)

    def answer(client: socket.socket, stop: Event) -> None:
        with Proxy(stage.server.port, before=order.lead) as proxy:
            proxy_tls(client, proxy.port, tls, stop)

    with Impostor(answer) as evil, Proxy(stage.server.port, before=order.follow) as proxy:
        authority = tls.authority.read_text()
        stage.target("evil", port=evil.port, sslmode="verify-full", sslrootcert=authority)
        stage.target("orders", port=proxy.port)
        run = stage.reap()
    assert names(run) == ["evil", "orders"]


@pytest.mark.parametrize("is_in_the_middle", [True, False])
def test_a_visit_that_trusted_another_authority_does_not_stop_one(
    stage: Stage, tmp_path: Path, *, is_in_the_middle: bool
) -> None:
    """A host that reroutes packets has a certificate of the authority that a hostile secret names."""
    real, evil = tmp_path / "real", tmp_path / "evil"
    for folder in (real, evil):
        folder.mkdir()
    tls, evil_tls = make_tls(real), make_tls(evil)
    authority = tls.authority.read_text()
    certificates = iter([evil_tls if is_in_the_middle else tls, tls])

    def answer(client: socket.socket, stop: Event) -> None:
        proxy_tls(client, stage.server.port, next(certificates), stop)

    with Impostor(answer) as host:
        keys = {"port": host.port, "sslmode": "verify-full"}
        both = evil_tls.authority.read_text() + authority
        stage.target("evil", sslrootcert=both, **keys)
        stage.target("orders", sslrootcert=authority, **keys)
        run = stage.reap()
    assert names(run) == (["evil", "orders"] if is_in_the_middle else ["evil"])


@pytest.mark.thorough
def test_a_secret_that_hangs_leaves_time_for_the_next_of_its_server(stage: Stage) -> None:
    leak = stage.session()
    turns = iter([hang])

    def answer(client: socket.socket, stop: Event) -> None:
        turn = next(turns, None)
        if turn:
            turn(client, stop)
        else:
            relay(client, client.recv(65536), stage.server.port, stop)

    with Impostor(answer) as server:
        stage.target("orders", port=server.port)
        stage.target("billing", port=server.port)
        run = stage.reap(seconds=20)
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.error()["code"] == "timeout"


def test_a_secret_that_leads_elsewhere_when_reread_stops_no_visit(
    stage: Stage, another: Another
) -> None:
    """Its login to the other secret's host failed, and the visit that follows is to another server."""
    stage.use_policy(policy())
    stage.target("evil", password=WRONG)
    stage.target("orders")
    stage.run(SCHEDULED)
    moved = json.dumps(stage.secret(port=another.server.port))
    stage.aws.secrets.put_secret_value(SecretId="evil", SecretString=moved)
    here, there = stage.session(), another.leak()
    run = stage.run(SCHEDULED)  # with the secrets that the first run read
    assert names(run) == ["evil", "orders"]
    assert run.outcomes() == {here.pid: "terminated"}
    assert run.outcomes("evil") == {there.pid: "terminated"}
