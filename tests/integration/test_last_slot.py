"""A full server at several addresses: the secrets that lead to it do not compete for its last slot."""

from __future__ import annotations

import json
import socket
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from infra.local.certificates import make_tls
from infra.local.postgres import HOST
from tests.integration.endpoints import error_response, has_ipv6
from tests.integration.stage import IDLE, LEAK, REAPER, Stage, Victim, identity_of, rule
from tests.integration.wire import Impostor, Moment, Proxy, RewriteRows, relay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.local.postgres import Build
    from tests.integration.stage import Run

    MakeFull = Callable[..., tuple[Stage, list[Victim]]]

pytestmark = pytest.mark.every_major

SLOTS = 12
HAS_RESERVED_SLOTS = 16
"""The major version from which on the reaper's role can have a reserved slot."""


HOSTS = {"orders": HOST, "billing": "127.0.0.2"} | ({"stock": "::1"} if has_ipv6() else {})
"""The addresses of one server, by the secret's name."""


@pytest.fixture(params=["plaintext", pytest.param("tls", marks=pytest.mark.tls)])
def make_full(
    request: pytest.FixtureRequest, build: Build, own_server: Callable[..., Stage], tmp_path: Path
) -> MakeFull:
    """Return a function that starts a server and fills it: the last slot is for the reaper."""
    is_encrypted = request.param == "tls"

    def make(
        state: str, *, free: int = 0, secrets: tuple[str, ...] = tuple(HOSTS)
    ) -> tuple[Stage, list[Victim]]:
        is_reserved = build.major >= HAS_RESERVED_SLOTS
        settings = {"max_connections": str(SLOTS), "listen_addresses": "*"}
        tls = make_tls(tmp_path) if is_encrypted else None
        stage = own_server(settings | ({"reserved_connections": "1"} if is_reserved else {}), tls)
        clients = stage.fill(state=state, free=free if is_reserved else free + 1)
        keys: dict[str, object] = {}
        if tls is not None:
            keys = {"sslmode": "verify-ca", "sslrootcert": tls.authority.read_text()}
        for name in secrets:
            stage.target(name, host=HOSTS[name], **keys)
        return stage, clients

    return make


def only_target(run: Run) -> dict[str, Any]:
    """Return the only target of a run, which has the names of all secrets."""
    (target,) = run.document["targets"]
    assert target["name"] == "orders"
    assert target["also"] == list(HOSTS)[1:]
    assert target["error"] is None
    return target  # type: ignore[no-any-return]


def test_a_full_server_from_which_nothing_is_freed_is_one_target(make_full: MakeFull) -> None:
    stage, clients = make_full(IDLE)
    target = only_target(stage.reap())
    usable = target["slots"]["usable"]
    is_exhausted = (
        stage.server.major >= HAS_RESERVED_SLOTS
    )  # else the slot was the last ordinary one
    used = usable if is_exhausted else usable - 1
    assert target["slots"]["used_before"] == target["slots"]["used_after"] == used
    assert used == len(clients) + 1  # the superuser's


def test_a_full_server_from_which_leaks_are_freed_is_one_target(make_full: MakeFull) -> None:
    stage, leaks = make_full(LEAK)
    run = stage.reap()
    only_target(run)
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert run.document["totals"]["terminated"] == len(leaks)
    assert run.target()["slots"]["used_before"] == len(leaks) + 1
    assert "CRITICAL" not in run.email.subject


def test_a_limit_counts_once_for_a_full_server(make_full: MakeFull) -> None:
    stage, leaks = make_full(LEAK)
    run = stage.reap(limits={"max_terminations": 1})
    only_target(run)
    assert run.document["totals"]["terminated"] == 1
    assert len(stage.survivors(leaks)) == len(leaks) - 1


def test_the_reapers_own_sessions_do_not_fill_a_server(make_full: MakeFull) -> None:
    """One ordinary slot is free; more of the reaper's sessions than that are there at a time."""
    stage, clients = make_full(IDLE, free=1)
    run = stage.reap()
    target = only_target(run)
    assert target["slots"]["used_after"] == len(clients) + 1 < target["slots"]["usable"]
    assert run.document["verdict"].startswith("QUIET")
    assert run.emails == []


def test_a_secret_waits_for_the_slot_of_a_visit_that_takes_long(make_full: MakeFull) -> None:
    """The visit lasts longer than the retries on a server that is full of others' sessions."""
    stage, leaks = make_full(LEAK)
    run = stage.reap({**rule(), "confirm_after": "4s"}, seconds=16)
    only_target(run)
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}


# -- hostile servers -------------------------------------------------------------------------------


class Liar(Impostor):
    """A server that claims to be another one, and to be full once it has been visited."""

    def __init__(self, port: int, claimed: dict[str, int]) -> None:
        super().__init__(self._lie)
        self._port = port
        self._claimed = claimed
        self.is_visited = Event()

    def _lie(self, client: socket.socket, stop: Event) -> None:
        request = client.recv(65536)
        if self.connections > 1:
            client.sendall(error_response("53300", "remaining connection slots are reserved"))
            return
        relay(client, request, self._port, stop, RewriteRows(self._claim))
        self.is_visited.set()

    def _claim(self, value: bytes) -> bytes:
        if value.startswith(b'{"role"'):
            return json.dumps({**json.loads(value), **self._claimed}).encode()
        return value

    def is_first(self, moment: Moment) -> None:
        """Let the other server be visited after this one."""
        if moment is Moment.STARTUP:
            self.is_visited.wait(20)


@pytest.mark.parametrize("order", [["evil", "orders"], ["orders", "evil"]])
def test_a_server_that_pretends_to_be_full_stops_no_visit(
    own_server: Callable[..., Stage], order: list[str]
) -> None:
    other, stage = own_server(), own_server()
    leak = stage.session()
    with (
        Liar(other.server.port, identity_of(stage)) as evil,
        Proxy(stage.server.port, before=evil.is_first) as proxy,
    ):
        ports = {"evil": evil.port, "orders": proxy.port}
        for name in order:
            stage.target(name, port=ports[name])
        run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.target()["also"] == []


@pytest.mark.majors(HAS_RESERVED_SLOTS, 99)  # before, the reaper cannot connect to a full server
def test_a_full_server_is_reported_as_full_whatever_another_one_claims(
    own_server: Callable[..., Stage],
) -> None:
    """With one slot, nothing proves that the other server lies."""
    other = own_server()
    stage = own_server({"max_connections": str(SLOTS), "reserved_connections": "1"})
    clients = stage.fill(state=IDLE)
    with (
        Liar(other.server.port, identity_of(stage)) as evil,
        Proxy(stage.server.port, before=evil.is_first) as proxy,
    ):
        stage.target("evil", port=evil.port)
        stage.target("orders", port=proxy.port)
        run = stage.reap()
    target = run.target("evil")
    assert target["also"] == ["orders"]
    assert target["slots"]["used_after"] == len(clients) + 1 == target["slots"]["usable"]
    assert target["holders"][0]["count"] == len(clients)
    assert "CRITICAL" in run.email.subject


# -- the reaper's own sessions ---------------------------------------------------------------------


def test_only_the_reapers_own_sessions_are_left_out_of_the_slots(stage: Stage) -> None:
    own = {"role": REAPER, "application_name": "session-reaper"}
    stage.session(IDLE, **own)
    stage.session(IDLE, **(own | {"application_name": "psql"}))
    stage.session(IDLE, **(own | {"role": "app"}))
    leak = stage.session(LEAK)
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated"}
    slots = run.target()["slots"]
    assert (slots["used_before"], slots["used_after"]) == (4, 3)  # with the superuser's


def test_sessions_of_the_reapers_other_roles_do_not_fill_a_server(
    own_server: Callable[..., Stage],
) -> None:
    """The secrets of one server may have different roles, which are connected at the same time."""
    stage = own_server({"max_connections": str(SLOTS)})
    both = [REAPER, stage.role("other_reaper", "SUPERUSER")]
    clients = stage.fill(state=IDLE, free=2)
    is_connected = {name: Event() for name in ("orders", "billing")}

    def meet(name: str, moment: Moment) -> None:
        """Take a snapshot once both have connected."""
        (other,) = {"orders", "billing"} - {name}
        if moment is Moment.SNAPSHOT:
            is_connected[name].set()
            is_connected[other].wait(20)

    proxies = {name: Proxy(stage.server.port, before=partial(meet, name)) for name in is_connected}
    with proxies["orders"], proxies["billing"]:
        for (name, proxy), role in zip(proxies.items(), both, strict=True):
            stage.target(name, port=proxy.port, username=role)
        run = stage.reap(rule(idle_for="1h"))
    (target,) = run.document["targets"]
    used = len(clients) + 1  # the superuser's
    assert target["slots"]["used_before"] == target["slots"]["used_after"] == used
    assert sum(holder["count"] for holder in target["holders"]) == used
    assert run.document["verdict"].startswith("QUIET")


@pytest.mark.majors(18, 18)
def test_a_login_that_the_server_shows_before_it_is_refused_is_left_out(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": str(SLOTS)})
    clients = stage.fill(state=IDLE, free=2)
    startup = b"\0\x03\0\0user\0app\0database\0postgres\0\0"
    with socket.create_connection((HOST, stage.server.port)) as login:
        login.sendall((len(startup) + 4).to_bytes(4) + startup)
        login.recv(1)  # the server asks for a password
        assert stage.clients == len(clients) + 2
        run = stage.reap()
    target = run.target()
    assert target["slots"]["used_before"] == len(clients) + 1
    assert sum(holder["count"] for holder in target["holders"]) == len(clients) + 1
