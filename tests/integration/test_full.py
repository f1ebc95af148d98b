"""A server without a free slot: how the reaper connects, and what it reports if it cannot."""

from __future__ import annotations

import random
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

import pg8000.native
import pytest
from botocore.client import BaseClient

from tests.integration.rescue import RESCUE, store_superuser
from tests.integration.stage import LEAK, PASSWORD, REAPER, Client, Stage, rule, until
from tests.integration.wire import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Run

SLOTS = 16
REFUSED = (pg8000.native.Error, OSError, ValueError)


@pytest.fixture
def full(own_server: Callable[..., Stage], build: object) -> Stage:
    """A server with few slots; from PostgreSQL 16 on two are reserved for roles with the privilege."""
    settings = {"max_connections": str(SLOTS), "superuser_reserved_connections": "4"}
    if getattr(build, "major", 0) >= 16:
        settings["reserved_connections"] = "2"
    return own_server(settings)


class Storm:
    """An application that tries to connect without a pause, and works once it is connected."""

    def __init__(self, stage: Stage, threads: int = 4) -> None:
        self._stage = stage
        self._stop = Event()
        self.refused = 0
        self.answered = 0
        self._threads = [Thread(target=self._tries, daemon=True) for _ in range(threads)]

    def _tries(self) -> None:
        while not self._stop.is_set():
            try:
                connection = self._stage.connect(tcp=True)
            except REFUSED:
                self.refused += 1
                continue
            while not self._stop.is_set() and self._works(connection):
                self._stop.wait(random.uniform(0.001, 0.01))  # noqa: S311 -- not cryptographic
            connection.close()

    def _works(self, connection: Client) -> bool:
        try:
            connection.run("SELECT count(*) FROM pg_class")
        except REFUSED:
            return False
        self.answered += 1
        return True

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until(lambda: self.refused > 20, "the application is refused")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


def record_reads(stage: Stage) -> list[str]:
    """The names of the secrets that are read from now on."""
    asked: list[str] = []
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- botocore's one way out

    def counted(client: BaseClient, operation: str, arguments: dict[str, str]) -> object:
        if operation == "GetSecretValue":
            asked.append(arguments["SecretId"])
        return call(client, operation, arguments)

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", counted)
    return asked


# -- connected ------------------------------------------------------------------------------------


@pytest.mark.every_major
@pytest.mark.majors(15, 18)
def test_an_application_that_floods_a_full_server_recovers(full: Stage) -> None:
    """Before PostgreSQL 16 through the fallback secret, later through the role's reserved slot."""
    reserved = full.server.major >= 16
    full.target(fallback_secret=None if reserved else store_superuser(full))
    leaks = full.fill()
    assert len(leaks) >= SLOTS - 8
    with Storm(full) as storm:
        assert storm.answered == 0
        run = full.reap(rule(application=["*"]))
        until(lambda: storm.answered > 100, "the application works again")
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert full.survivors(leaks) == []
    assert run.target().get("fallback_secret") == (None if reserved else RESCUE)
    assert run.target()["slots"]["used_before"] >= len(leaks)


@pytest.mark.every_major
def test_the_fallback_secret_is_used_only_when_the_server_is_full(full: Stage) -> None:
    full.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT 5")
    if full.server.major >= 16:
        full.root.run(f"REVOKE pg_use_reserved_connections FROM {REAPER}")
    full.target(fallback_secret=store_superuser(full))
    asked = record_reads(full)
    quiet = full.reap()
    assert asked == ["orders"]
    assert "fallback_secret" not in quiet.target()
    assert quiet.emails == []

    leaks = full.fill()
    run = full.reap()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert run.target()["fallback_secret"] == RESCUE
    (advice,) = [a for a in run.target()["advice"] if a["code"] == "reserve-slots"]
    assert "rescuer" in advice["message"]
    assert advice["sql"] == f'GRANT pg_use_reserved_connections TO "{REAPER}";'
    assert "connected with the fallback secret" in run.email.subject
    assert PASSWORD not in str(run.document) + run.email.body


def test_sessions_of_the_targets_role_are_spared_if_the_fallback_connects(full: Stage) -> None:
    full.root.run(f"REVOKE pg_use_reserved_connections FROM {REAPER}")
    full.target(fallback_secret=store_superuser(full))
    ours = full.session(role=REAPER)
    leaks = full.fill()
    run = full.reap()
    assert run.target()["fallback_secret"] == RESCUE
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert ours.is_there


def test_a_slot_that_becomes_free_during_the_retries_is_used(full: Stage) -> None:
    full.root.run(f"REVOKE pg_use_reserved_connections FROM {REAPER}")
    full.target()
    leaks = full.fill()

    refusals = _refusals(full)

    def leaves() -> None:
        until(lambda: _refusals(full) > refusals, "the reaper is refused")
        leaks[0].connection.close()

    leaving = Thread(target=leaves, daemon=True)
    leaving.start()
    run = full.reap()
    leaving.join(10)
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks[1:]}


def _refusals(stage: Stage) -> int:
    return stage.server.log.read_text(errors="replace").count("remaining connection slots")


# -- refused --------------------------------------------------------------------------------------


def shut(stage: Stage) -> Run:
    """A run that finds no slot; its short time limits the retries."""
    stage.fill()
    return stage.reap(seconds=8)


@pytest.mark.every_major
def test_a_server_that_stays_full_is_critical_and_has_instructions(full: Stage) -> None:
    if full.server.major >= 16:
        full.root.run(f"REVOKE pg_use_reserved_connections FROM {REAPER}")
    full.target()
    run = shut(full)
    assert run.target()["status"] == "full"
    error = run.error()
    assert error["code"] == "53300"
    assert "connect as a superuser" in error["hint"]
    assert "pg_terminate_backend" in error["hint"]
    assert "fallback_secret" in error["hint"]
    assert run.email.subject.startswith("CRITICAL: orders: full, ")
    assert error["hint"] in run.said


@pytest.mark.parametrize("trouble", ["missing", "denied", "wrong password"])
def test_the_error_of_a_full_server_says_why_the_fallback_failed(full: Stage, trouble: str) -> None:
    full.root.run(f"REVOKE pg_use_reserved_connections FROM {REAPER}")
    if trouble == "missing":
        nowhere = "nowhere"
        full.target(fallback_secret=nowhere)
    else:
        store_superuser(full)
        if trouble == "wrong password":
            full.root.run("ALTER ROLE rescuer PASSWORD 'another'")
        else:
            full.root.run("ALTER ROLE rescuer NOSUPERUSER")
        full.target(fallback_secret=RESCUE)
    run = shut(full)
    assert run.target()["status"] == "full"
    expected = {
        "missing": "fallback_secret nowhere: secret nowhere cannot be read",
        "wrong password": "fallback_secret rescue: ",
        "denied": "remaining connection slots",
    }[trouble]
    assert expected in run.error()["message"]


def test_a_role_at_its_connection_limit_is_not_a_full_server(full: Stage) -> None:
    full.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT 1")
    full.session(role=REAPER)
    with Proxy(full.server.port) as proxy:
        full.target(port=proxy.port)
        run = full.reap()
    assert proxy.connections == 1  # no retries: only our own sessions could end
    assert run.target()["status"] == "failed"  # not full: applications can connect
    assert "our own role's CONNECTION LIMIT" in run.error()["hint"]
    assert "reserved_connections" not in run.error()["hint"]


def test_a_role_at_its_connection_limit_uses_the_fallback(full: Stage) -> None:
    full.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT 1")
    full.session(role=REAPER)
    leak = full.session(LEAK)
    full.target(fallback_secret=store_superuser(full))
    assert full.reap().outcomes() == {leak.pid: "terminated"}


def test_a_database_at_its_connection_limit_has_its_own_hint(full: Stage) -> None:
    full.database("small", "CONNECTION LIMIT 1")
    full.session(LEAK, database="small")
    full.target(dbname="small")
    run = full.reap()
    assert run.target()["status"] == "full"
    assert "the database's CONNECTION LIMIT" in run.error()["hint"]
