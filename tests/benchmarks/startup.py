"""`make bench-startup`: measures the first overview of a local server, beside psql and pg_activity.

`session-reaper top` and psql run to their end without a terminal; psql runs one statement that
groups the sessions. pg_activity has no such mode: it runs on a terminal until its first screen is
drawn.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pexpect
from rich.console import Console
from rich.table import Table

from infra.local.postgres import Server, bundled_builds, server

ROOT = Path(__file__).parents[2]
ROUNDS = 15
SESSIONS = 50
LIMIT = 1.0  # seconds, of session-reaper
GROUPS = (
    "SELECT application_name, usename, client_addr, state, count(*), max(now() - state_change)"
    " FROM pg_stat_activity GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC"
)


def main() -> None:
    """Measure all in turn and print a table; fail if ours is slow."""
    pg_activity = Path(sys.argv[1]) / "bin" / "pg_activity"
    _, build = max(bundled_builds().items())
    with server(build) as database, contextlib.ExitStack() as stack:
        for number in range(SESSIONS):
            connection = database.connect(
                unix_sock=database.unix_sock, application_name=f"web-{number % 7}"
            )
            stack.callback(connection.close)
        environment = {
            "PATH": os.defpath,
            "HOME": str(Path.home()),
            "PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("cli", "functions")),
            "PGHOST": str(database.socket_dir),
            "PGPORT": str(database.port),
            "PGUSER": "postgres",
            "LD_LIBRARY_PATH": str(build.lib or ""),
        }
        top = [sys.executable, "-m", "session_reaper_cli", "top"]
        psql = [str(build.bin / "psql"), "-XAt", "-c", GROUPS, "postgres"]
        overviews: Mapping[str, Callable[[], None]] = {
            "session-reaper top": lambda: _run(top, environment),
            "psql, one statement": lambda: _run(psql, environment),
            "pg_activity, first screen": lambda: _draw(pg_activity, database, environment),
        }
        seconds: dict[str, list[float]] = {name: [] for name in overviews}
        for counted in [False, *[True] * ROUNDS]:
            for name, show in overviews.items():
                began = time.perf_counter()
                show()
                if counted:
                    seconds[name].append(time.perf_counter() - began)
    _print(seconds)
    if statistics.median(seconds["session-reaper top"]) > LIMIT:
        raise SystemExit(f"session-reaper top takes more than {LIMIT:g} s")


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 -- our own


def _draw(pg_activity: Path, database: Server, environment: Mapping[str, str]) -> None:
    arguments = ["-h", str(database.socket_dir), "-p", str(database.port), "-U", "postgres"]
    env = {**environment, "TERM": "xterm-256color"}
    del env["LD_LIBRARY_PATH"], env["PYTHONPATH"]
    terminal = pexpect.spawn(str(pg_activity), arguments, env=env, dimensions=(40, 120), timeout=60)
    # It asks the terminal where the cursor is, and waits 5 s for each answer.
    while terminal.expect_exact([b"RUNNING QUERIES", b"\x1b[6n"]):
        terminal.send(b"\x1b[1;1R")
    terminal.close(force=True)


def _print(seconds: Mapping[str, list[float]]) -> None:
    table = Table(title=f"{ROUNDS} rounds in turn, {SESSIONS} sessions", title_justify="left")
    for heading in ("", "median", "minimum"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, each in seconds.items():
        table.add_row(
            name, f"{statistics.median(each) * 1000:.0f} ms", f"{min(each) * 1000:.0f} ms"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
