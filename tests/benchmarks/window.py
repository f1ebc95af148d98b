"""`make bench-window`: measures the time in which a session can change unnoticed between guard and signal.

PostgreSQL has no compare-and-terminate: the guard's statement reads the status of backends,
compares, and signals. This runs the project's own statement and reads the clock three times in it,
so that network and planner are left out: before the first row is read, between the comparison and
the call of the signal function, and after that call. The last reading is an upper bound, because
the terminated session may get the processor first. Each signal terminates a real session.
"Pipelined" sends all statements in one write, each with its own Sync.
"""

import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.local.postgres import Build, Server, npm_builds, server
from tests.frontend import (
    Frontend,
    bind_and_execute,
    close_sessions,
    open_sessions,
    parse,
    sync,
)

MAJORS = (13, 18)
_ROLE_FILE = Path("infra/database/reaper_role.sql")
_FUNCTION = "pg_terminate_backend"
# The condition on `b` keeps the inner query from starting before the clock is read.
_TIMED = """
SELECT
    s.signalled,
    extract(epoch FROM s.compared - b.began) * 1000000,
    extract(epoch FROM clock_timestamp() - b.began) * 1000000
FROM (SELECT clock_timestamp() AS began OFFSET 0) AS b
CROSS JOIN LATERAL (
    SELECT g.compared, g.signalled FROM ({guard}) AS g WHERE b.began IS NOT NULL OFFSET 0
) AS s
"""
# A SELECT list is evaluated from left to right.
_COMPARED = "SELECT clock_timestamp() AS compared, "
_IDENTITY = """
SELECT pid, backend_start, xact_start, state_change, query_start, state
FROM pg_stat_activity WHERE usename = 'app' AND pid IN ({pids})
"""
_NAMES = (
    *("pid", "backend_start", "xact_start", "state_change", "query_start", "state"),
    *("wait_event_type", "wait_event", "other_than", "none_of", "waits_for_lock"),
)
# As for a rule without conditions on waits: the session must not wait for a lock.
_WAIT_GUARD = (None, None, None, "{}", "f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A number of backends, some of which are terminated in each batch."""

    title: str
    backends: int
    victims: int
    batches: int
    query_bytes: int = 0  # of each backend's text

    @property
    def settings(self) -> Mapping[str, str]:
        """The server's settings."""
        sizes = {"track_activity_query_size": "1MB"} if self.query_bytes else {}
        return {"max_connections": str(self.backends + 20), **sizes}

    @property
    def sql(self) -> str:
        """The statements that each backend has run."""
        return f"BEGIN; SELECT length('{'x' * self.query_bytes}')" if self.query_bytes else "BEGIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One signal, in microseconds since the first reading of the clock."""

    compared: float  # until the signal function is called
    signalled: float  # until it has returned


CASES = (
    Case(title="10", backends=10, victims=10, batches=50),
    Case(title="1,000", backends=1000, victims=100, batches=5),
    Case(title="100 with texts of 1 MB", backends=100, victims=20, batches=10, query_bytes=2**20),
)


def main() -> None:
    """Measure and print the table."""
    builds = npm_builds(Path(sys.argv[1]))
    table = Table(title="the guard's window, from reading to signal", title_justify="left")
    table.add_column("PostgreSQL", justify="right")
    table.add_column("backends", justify="right")
    table.add_column("statements")
    for heading in ("compared: p50", "p99", "signalled: p50", "p99", "signals"):
        table.add_column(heading, justify="right")
    for major in MAJORS:
        for case in CASES:
            for pipelined in (False, True):
                windows = measure(builds[major], case, pipelined=pipelined)
                compared = statistics.quantiles((each.compared for each in windows), n=100)
                signalled = statistics.quantiles((each.signalled for each in windows), n=100)
                table.add_row(
                    str(major),
                    case.title,
                    "pipelined" if pipelined else "one by one",
                    f"{compared[49]:,.0f} µs",
                    f"{compared[98]:,.0f} µs",
                    f"{signalled[49]:,.0f} µs",
                    f"{signalled[98]:,.0f} µs",
                    str(len(windows)),
                )
    Console(width=130).print(table)


def measure(build: Build, case: Case, *, pipelined: bool) -> Sequence[Window]:
    """Return the window of each signal."""
    with server(build, settings=case.settings) as database, _connect_reaper(database) as reaper:
        bystanders = open_sessions(database.unix_sock, case.backends - case.victims, case.sql)
        windows: list[Window] = []
        for _ in range(case.batches):
            victims = open_sessions(database.unix_sock, case.victims, case.sql)
            windows += _signal(reaper, _make_executions(reaper, victims), pipelined=pipelined)
            close_sessions(victims)
        close_sessions(bystanders)
    wanted = case.victims * case.batches
    if len(windows) != wanted:
        raise SystemExit(f"{len(windows)} of {wanted} sessions were signalled")
    return windows


@contextmanager
def _connect_reaper(database: Server) -> Iterator[Frontend]:
    """Create the roles, connect as the reaper's, and prepare the statement."""
    with database.connect(unix_sock=database.unix_sock) as admin:
        admin.run(_ROLE_FILE.read_text())
        admin.run("CREATE ROLE app LOGIN")
    with Frontend(database.unix_sock, user="session_reaper", application="window") as reaper:
        reaper.run("SET search_path = pg_catalog")
        reaper.send(parse("window", _TIMED.format(guard=_read_guard())) + sync())
        reaper.receive()
        yield reaper


def _read_guard() -> str:
    """Return the project's statement with the clock added and its parameters numbered as in `_NAMES`."""
    path = files("session_reaper.postgres") / "queries" / "signal.sql"
    lines = path.read_text("utf-8").splitlines()
    sql = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    sql = sql.replace("SELECT ", _COMPARED, 1)
    sql = sql.replace("{function}", _FUNCTION)
    return re.sub(r"(?<!:):([a-z_]+)\b", lambda found: f"${_NAMES.index(found[1]) + 1}", sql)


def _make_executions(reaper: Frontend, victims: Sequence[Frontend]) -> Sequence[bytes]:
    """Return the messages that signal each victim in its current state."""
    pids = ", ".join(str(victim.pid) for victim in victims)
    identities = reaper.run(_IDENTITY.format(pids=pids))
    return [
        bind_and_execute("window", [*identity, *_WAIT_GUARD]) + sync() for identity in identities
    ]


def _signal(reaper: Frontend, executions: Sequence[bytes], *, pipelined: bool) -> list[Window]:
    if pipelined:
        reaper.send(b"".join(executions), len(executions))
        rows = reaper.receive()
    else:
        rows = []
        for execution in executions:
            reaper.send(execution)
            rows += reaper.receive()
    return [
        Window(compared=float(compared or 0), signalled=float(signalled or 0))
        for was_signalled, compared, signalled in rows
        if was_signalled == "t"
    ]


if __name__ == "__main__":
    main()
