"""`make picture`: the README's picture of `session-reaper top`, from a real full server."""

import contextlib
import io
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pg8000.native
from rich.console import Console
from session_reaper_cli.connections.login import Invocation
from session_reaper_cli.connections.target import find_target
from session_reaper_cli.policies import load
from session_reaper_cli.stopping import StopRemark
from session_reaper_cli.top.command import show_top

from infra.local.postgres import Server, bundled_builds, server

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "pictures" / "top.svg"
WIDTH = 100
SETTINGS = {"max_connections": "40", "reserved_connections": "2"}
PRESSURE_SECONDS = 65  # the default policy's rule under-pressure matches after a minute


def main() -> int:
    """Fill a server, run the command, and write the picture."""
    _, build = max(bundled_builds().items())
    with ExitStack() as stack:
        database = stack.enter_context(server(build, settings=SETTINGS))
        with contextlib.closing(database.connect(unix_sock=database.unix_sock)) as admin:
            admin.run((ROOT / "infra/database/reaper_role.sql").read_text())
            for role in ("orders", "reports", "batch"):
                admin.run(f"CREATE ROLE {role} LOGIN")
            admin.run("CREATE TABLE stock (id integer); GRANT ALL ON stock TO PUBLIC")
            admin.run("INSERT INTO stock VALUES (1)")
        _connections = _fill(database)  # they stay open until the server ends
        print(f"Waiting {PRESSURE_SECONDS} s, until the default policy would act.")
        time.sleep(PRESSURE_SECONDS)
        svg = _take_picture(database)
    PICTURE.write_text(svg)
    print(f"{PICTURE.relative_to(ROOT)} is written.")
    return 0


def _fill(database: Server) -> list[pg8000.native.Connection]:
    """Fill the server; return the connections that hold its slots."""

    def connect(role: str, application: str) -> pg8000.native.Connection:
        return database.connect(
            user=role, application_name=application, unix_sock=database.unix_sock
        )

    blocker = connect("batch", "price-update")
    connections = [blocker]
    blocker.run("BEGIN")
    blocker.run("UPDATE stock SET id = 2")
    for _ in range(4):
        waiter = connect("orders", "orders-api")  # ends with the server
        Thread(target=_run, args=(waiter, "UPDATE stock SET id = 3"), daemon=True).start()
    for _ in range(14):
        leak = connect("reports", "nightly-import")
        connections.append(leak)
        leak.run("BEGIN")
        leak.run("SELECT count(*) FROM stock")
    with contextlib.suppress(pg8000.native.Error):  # until the server is full
        while True:
            connections.append(connect("orders", "orders-api"))
            connections[-1].run("SELECT 1")
    return connections


def _run(connection: pg8000.native.Connection, statement: str) -> None:
    with contextlib.suppress(pg8000.native.Error, OSError):
        connection.run(statement)


def _take_picture(database: Server) -> str:
    uri = f"postgres://session_reaper@/postgres?host={database.socket_dir}&port={database.port}"
    found = find_target(uri, os.environ, Path.home())
    console = Console(width=WIDTH, record=True, file=io.StringIO(), highlight=False)
    call = Invocation(
        target=found.target,
        wait=0,
        policy=load(""),
        output=console,
        say=print,
        stop_remark=StopRemark(""),
    )
    show_top(call, None)
    title = "session-reaper top postgres://…@db.example/orders"
    return console.export_svg(title=title, unique_id="top").replace(found.target.name, "db.example")


if __name__ == "__main__":
    sys.exit(main())
