"""A second server beside the stage's, which may be a standby."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pg8000.native import DatabaseError, InterfaceError

from infra.local.postgres import server
from tests.integration.conftest import prepare
from tests.integration.stage import Client, Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pg8000.native import Connection

    from infra.local.postgres import Build, Server


@dataclass(frozen=True, kw_only=True)
class Another:
    """A server beside the stage's."""

    server: Server
    root: Connection
    stack: ExitStack

    def leak(self) -> Victim:
        connection = Client(
            "app", unix_sock=self.server.unix_sock, database="postgres", ssl_context=False
        )
        victim = Victim(self.root, connection)
        self.stack.callback(victim.close)
        connection.run("BEGIN")
        connection.run("SELECT 1")
        until(lambda: victim.state == "idle in transaction", "the session leaks")
        return victim


@contextmanager
def run_another(build: Build, *, standby: bool) -> Iterator[Another]:
    with ExitStack() as stack:
        running = stack.enter_context(server(build))
        with running.connect(unix_sock=running.unix_sock) as root:
            prepare(root)
            root.run("CREATE ROLE app LOGIN")
            if standby:
                _crash_into_recovery(running, root)
        until(lambda: _is_there(running), "the server is there again")
        root = stack.enter_context(running.connect(unix_sock=running.unix_sock))
        assert root.run("SELECT pg_is_in_recovery()") == [[standby]]
        yield Another(server=running, root=root, stack=stack)


def _crash_into_recovery(running: Server, root: Connection) -> None:
    """Restart a server as a standby, like a reader: with this file it stays in recovery."""
    root.run("CHECKPOINT")
    (running.socket_dir / "data" / "standby.signal").touch()
    ((pid,),) = root.run("SELECT pg_backend_pid()")
    os.kill(pid, signal.SIGKILL)
    until(lambda: "entering standby mode" in running.log.read_text(), "it becomes a standby")


def _is_there(running: Server) -> bool:
    try:
        with running.connect(unix_sock=running.unix_sock):
            return True
    except (DatabaseError, InterfaceError):
        return False
