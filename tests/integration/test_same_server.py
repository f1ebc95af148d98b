"""Only the server of the snapshot can verify what happened to its sessions."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from session_reaper.deadline import Deadline
from session_reaper.postgres.server import Server
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.sessions.snapshot import NO_SESSIONS
from session_reaper.settings import read_settings
from session_reaper.targets.target import Target

from tests.integration.stage import LEAK, Stage, rule, until
from tests.integration.wire import Action, Detour, Fault, Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.every_major


@pytest.fixture
def elsewhere(own_server: Callable[..., Stage]) -> Stage:
    """Another server, with a session of its own."""
    other = own_server()
    other.session(LEAK)
    return other


@pytest.mark.parametrize("moment", [Moment.TERMINATE, Moment.VERIFY])
@pytest.mark.parametrize("lost", [False, True])
def test_nothing_is_verified_if_the_second_connection_leads_to_another_server(
    stage: Stage, elsewhere: Stage, moment: Moment, *, lost: bool
) -> None:
    victims = stage.sessions(3)
    fault = Fault(action=Action.RESET, moment=moment, lost=lost)
    with Proxy(stage.server.port, fault, detour=Detour(port=elsewhere.server.port)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    outcomes = run.outcomes()
    assert "terminated" not in outcomes.values()
    for victim in victims:
        assert victim.is_there or outcomes[victim.pid] == "lingering"
    assert "lingering" in outcomes.values()
    assert run.target()["status"] == "failed"
    assert (
        run.target()["slots"]["used_after"] is None
    )  # the count of the other server would be wrong
    reasons = {session["reason"] for session in run.target()["sessions"]}
    assert any("another server" in reason for reason in reasons)


def test_nothing_is_signalled_if_the_second_snapshot_is_of_another_server(
    stage: Stage, elsewhere: Stage
) -> None:
    victim = stage.session()
    confirmed = {**rule(), "confirm_after": "100ms"}
    detour = Detour(port=elsewhere.server.port, moment=Moment.SNAPSHOT, nth=2)
    with Proxy(stage.server.port, detour=detour) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(confirmed)
    assert run.outcomes() == {victim.pid: "spared"}
    assert run.error()["code"] == "server-changed"
    assert victim.is_there


def test_nothing_is_verified_if_a_pooler_switches_servers_under_one_connection(
    stage: Stage, elsewhere: Stage
) -> None:
    victims = stage.sessions(2)
    detour = Detour(port=elsewhere.server.port, moment=Moment.PREPARE_VERIFY)
    with Proxy(stage.server.port, detour=detour) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert run.outcomes() == {victim.pid: "lingering" for victim in victims}
    assert run.error()["code"] == "server-changed"
    assert "one secret for each" in run.error()["hint"]
    assert run.target()["slots"]["used_after"] is None


def test_no_session_counts_as_escaped_if_the_server_switched_before_the_signals(
    stage: Stage, elsewhere: Stage
) -> None:
    victims = stage.sessions(2)
    detour = Detour(port=elsewhere.server.port, moment=Moment.PREPARE_TERMINATE)
    with Proxy(stage.server.port, detour=detour) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert run.outcomes() == {victim.pid: "spared" for victim in victims}
    assert run.error()["code"] == "server-changed"
    assert "another server" in run.session(victims[0])["reason"]
    assert run.target()["slots"]["used_after"] is None
    assert all(victim.is_there for victim in victims)


def _identify() -> object:
    (target,) = TargetDiscovery(read_settings(), bypass_cache=True).find([], Deadline(10))
    assert isinstance(target, Target)
    server = Server.connect(target, Deadline(10))
    try:
        return server.take_snapshot(NO_SESSIONS, Deadline(10)).server
    finally:
        server.close()


def test_every_connection_to_a_server_shows_the_same_identity(stage: Stage) -> None:
    stage.target()
    stage.root.run("ALTER ROLE session_reaper SET TimeZone = 'Asia/Kathmandu'")
    first = _identify()
    stage.root.run("ALTER ROLE session_reaper RESET TimeZone")
    assert _identify() == first


def test_the_snapshot_needs_no_privilege_on_the_control_file(stage: Stage) -> None:
    stage.root.run("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    stage.cleanup(stage.root.run, "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    leak = stage.session()
    assert stage.reap().outcomes() == {leak.pid: "terminated"}


def test_a_crash_after_the_signal_counts_as_a_restart(
    own_server: Callable[..., Stage],
) -> None:
    """When a backend crashes, the postmaster stays and restarts all other processes."""
    stage = own_server({"restart_after_crash": "on"})
    victim, bystander = stage.session(), stage.session(role="bystander")
    stage.root.run("CHECKPOINT")  # the crash would lose unwritten buffers

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_VERIFY and not _restart(stage):
            os.kill(bystander.pid, signal.SIGKILL)
            until(lambda: _restart(stage), "the server has recovered")

    leak = rule(role=["app"])
    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(leak)
    stage.reconnect()
    assert run.outcomes() == {victim.pid: "lingering"}
    assert "restarted" in run.session(victim)["reason"]
    assert run.target()["slots"]["used_after"] is None


def _restart(stage: Stage) -> bool:
    return "all server processes terminated; reinitializing" in stage.server.log.read_text() and (
        stage.server.log.read_text().count("ready to accept connections") > 1
    )
