"""The reaper's own connection ends during confirm_after."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.integration.stage import REAPER, Stage, rule, until
from tests.integration.standby import run_another
from tests.integration.wire import Detour, Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.local.postgres import Build

pytestmark = pytest.mark.every_major

CONFIRMED = {**rule(), "confirm_after": "100ms"}
OURS = f"FROM pg_stat_activity WHERE usename = '{REAPER}' AND backend_type = 'client backend'"


def end_own_session(stage: Stage, *, is_once: bool = True) -> Callable[[Moment], None]:
    """End the reaper's backend before its second snapshot, or before each later one."""
    numbers = count(1)

    def before(moment: Moment) -> None:
        if moment is Moment.SNAPSHOT and ((n := next(numbers)) == 2 or (n > 2 and not is_once)):
            stage.root.run(f"SELECT pg_terminate_backend(pid) {OURS}")
            until(lambda: not stage.root.run(f"SELECT pid {OURS}"), "our backend is there")

    return before


def test_a_connection_that_ends_in_the_pause_is_replaced(stage: Stage) -> None:
    leak = stage.session()
    with Proxy(stage.server.port, before=end_own_session(stage)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(CONFIRMED)
        assert proxy.connections == 2
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.target()["error"] is None
    assert run.document["status"] == "ok"
    assert not leak.is_there


def test_a_session_that_changed_meanwhile_has_escaped(stage: Stage) -> None:
    leak, pooled = stage.sessions(2)
    end = end_own_session(stage)

    def before(moment: Moment) -> None:
        if moment is Moment.SNAPSHOT and pooled.state != "idle" and proxy.connections == 2:
            pooled.connection.run("COMMIT")
        end(moment)

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(CONFIRMED)
    assert run.outcomes() == {leak.pid: "terminated", pooled.pid: "escaped"}
    assert pooled.is_there


def test_the_connection_is_replaced_once(stage: Stage) -> None:
    leak = stage.session()
    with Proxy(stage.server.port, before=end_own_session(stage, is_once=False)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(CONFIRMED)
        assert proxy.connections == 2
    assert run.outcomes() == {leak.pid: "spared"}
    assert run.target()["status"] == "failed"
    assert run.error()["message"] in run.session(leak)["reason"]
    assert leak.is_there


def test_nothing_is_signalled_if_the_new_connection_leads_to_another_server(
    stage: Stage, build: Build
) -> None:
    leak = stage.session()
    with run_another(build, standby=False) as other:
        theirs = other.leak()
        detour = Detour(port=other.server.port)
        with Proxy(stage.server.port, before=end_own_session(stage), detour=detour) as proxy:
            stage.target(port=proxy.port)
            run = stage.reap(CONFIRMED)
        assert theirs.is_there
    assert run.outcomes() == {leak.pid: "spared"}
    assert run.error()["code"] == "server-changed"
    assert leak.is_there
