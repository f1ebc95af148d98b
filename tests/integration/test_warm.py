"""A warm container: many invocations leave nothing behind."""

from __future__ import annotations

import gc
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.stage import LEAK, PATIENCE, until
from tests.integration.wire import Action, Fault, Impostor, Moment, Proxy, drip, hang_up

if TYPE_CHECKING:
    from tests.integration.stage import Stage


def _sockets() -> int:
    """Count the sockets of this process."""
    links = Path("/proc/self/fd").iterdir()
    return sum("socket:" in _target(link) for link in links)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the folder's own descriptor is gone by now
        return ""


def test_twenty_invocations_leave_nothing_behind(stage: Stage) -> None:
    stage.target()
    stage.target("refusing", port=1)
    stage.target("wrong", password="wrong")  # noqa: S106 -- it is
    stage.target("tls", sslmode="verify-full")
    stage.target("missing-db", dbname="nowhere")
    for _ in range(3):
        stage.reap()
    gc.collect()
    before = (threading.active_count(), _sockets())
    for _ in range(20):
        stage.session(LEAK).close()
        leak = stage.session(LEAK)
        assert stage.reap().outcomes() == {leak.pid: "terminated"}
        leak.close()
    gc.collect()
    until(lambda: stage.clients == 1, "no session is left behind")
    # The stand-in's own connections come and go with boto's.
    assert threading.active_count() < before[0] + 10
    assert _sockets() < before[1] + 10


@pytest.mark.thorough
def test_failing_targets_leave_nothing_behind(stage: Stage) -> None:
    reset = Fault(action=Action.RESET, moment=Moment.SNAPSHOT)
    hang = Fault(action=Action.HANG, moment=Moment.TERMINATE)
    stage.session(LEAK, "other")
    with ExitStack() as stack:
        stage.target("reset", port=stack.enter_context(Impostor(hang_up)).port)
        stage.target("hang", port=stack.enter_context(Impostor()).port)
        stage.target("drip", port=stack.enter_context(Impostor(drip(b"N\0\0\0\xff"))).port)
        for name, fault in (("look", reset), ("terminate", hang)):
            proxy = Proxy(stage.server.port, fault, every=True)
            stage.target(name, port=stack.enter_context(proxy).port)
        gc.collect()
        for _ in range(2):
            stage.session(LEAK)
            stage.reap(seconds=5)
        until(
            lambda: not [t for t in threading.enumerate() if "Worker" in type(t).__name__],
            "no thread of a run is left behind",
            seconds=PATIENCE,
        )
    until(lambda: stage.clients <= 7, "no session is left behind")
