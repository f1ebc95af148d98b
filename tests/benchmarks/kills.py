"""`make bench-kills`: measures kills of 10, 100 and 1,000 sessions near and far, beside the yardstick.

Both run warm and in turn. Ours guards each signal, verifies that the sessions are gone, and reports
each; the yardstick signals all of them with one unguarded statement and verifies nothing. Both
connect by TLS through a proxy that adds a delay; the loopback has no proxy. "A further victim" is
the difference between 1,000 and 100 victims, divided by 900.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from pg8000.native import Connection
from rich.console import Console
from rich.table import Table

from infra.local.aws import Aws, aws
from infra.local.certificates import make_tls
from infra.local.postgres import Server, npm_builds, server
from tests.benchmarks.distance import measure_echoes, run_proxy
from tests.benchmarks.kill_probe import KillProbe, start_kill_probe
from tests.benchmarks.prepared import prepare_roles
from tests.frontend import close_sessions, open_sessions

OURS, YARDSTICK = "session_reaper.handler", "tests.benchmarks.yardstick"
ROUND_TRIPS = (0.0, 0.001, 0.010)  # seconds; 0 is the loopback
ROUNDS = {10: 15, 100: 11, 1000: 7}  # victims -> rounds
WANTED_RATIO = 2.0  # of what a further victim costs
MAJOR = 18
_MANY, _FEW = 1000, 100
_PATIENCE = 30.0  # seconds until the victims have left the server
_POLL = 0.01  # seconds
_EVENT = {
    "policy": {
        "version": 1,
        "limits": {"max_terminations": max(ROUNDS)},
        "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "0s"}}],
    }
}


@dataclass(frozen=True, slots=True)
class Kills:
    """Seconds of the kills of so many victims at one distance, in turn."""

    ours: list[float] = field(default_factory=list)
    yardstick: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self.ours, self.yardstick, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def main() -> None:
    """Measure and print the tables."""
    results: dict[tuple[float, int], Kills] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(
            server(
                npm_builds(Path(sys.argv[1]))[MAJOR],
                settings={"max_connections": str(max(ROUNDS) + 150)},
                tls=make_tls(folder),
            )
        )
        cloud = stack.enter_context(aws())
        secret = prepare_roles(database, "bench")
        os.environ |= {
            "TARGET_SECRETS": "",
            "TOPIC_ARN": cloud.topic_arn,
            "MODE": "enforce",
            "PYTHONPATH": os.pathsep.join(["functions", "."]),
        }
        probes = {
            module: stack.enter_context(start_kill_probe(module)) for module in (OURS, YARDSTICK)
        }
        admin = stack.enter_context(closing(database.connect(unix_sock=database.unix_sock)))
        scene = _Scene(database=database, admin=admin, probes=probes)
        for round_trip in ROUND_TRIPS:
            with _store_secret(cloud, secret, database, round_trip) as name:
                for victims, rounds in ROUNDS.items():
                    kills = Kills()
                    results[round_trip, victims] = kills
                    for number in range(-1, rounds):  # the first round is cold
                        seconds = _kill_once_each(scene, name, victims, number)
                        if number >= 0:
                            kills.ours.append(seconds[OURS])
                            kills.yardstick.append(seconds[YARDSTICK])
    _print(results)


@contextmanager
def _store_secret(
    cloud: Aws, secret: Mapping[str, object], database: Server, round_trip: float
) -> Iterator[str]:
    """Store a secret that leads to the server through the proxy; yield its name."""
    name = f"away-{round_trip * 1000:g}-ms"
    if not round_trip:
        cloud.put_secret(name, secret)
        yield name
        return
    with run_proxy(database.port, round_trip / 2) as way:
        cloud.put_secret(name, {**secret, "port": way.port})
        yield name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """The server, a superuser's connection to it, and a warm process for each handler."""

    database: Server
    admin: Connection
    probes: Mapping[str, KillProbe]


def _kill_once_each(scene: _Scene, secret: str, victims: int, number: int) -> dict[str, float]:
    """Return each handler's seconds; which of them begins alternates with the round's number."""
    modules = list(scene.probes) if number % 2 else list(reversed(list(scene.probes)))
    seconds: dict[str, float] = {}
    for module in modules:
        sessions = open_sessions(scene.database.unix_sock, victims)
        seconds[module], terminated = scene.probes[module].run(secret, _EVENT)
        close_sessions(sessions)
        if terminated != victims:
            raise SystemExit(f"{module} terminated {terminated} of {victims}")
        _wait_until_gone(scene.admin)
    return seconds


def _wait_until_gone(admin: Connection) -> None:
    """Wait until all victims have ended; the yardstick does not."""
    end = monotonic() + _PATIENCE
    while admin.run("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'") != [[0]]:
        if monotonic() > end:
            raise SystemExit("terminated sessions did not leave the server")
        sleep(_POLL)


def _print(results: Mapping[tuple[float, int], Kills]) -> None:
    rounds = ", ".join(f"{number} of {victims:,}" for victims, number in ROUNDS.items())
    table = Table(title=f"kills, medians of rounds in turn ({rounds})", title_justify="left")
    further = Table(title="a further victim costs", title_justify="left")
    headings = ("round trip", "session-reaper", "yardstick", "ratio")
    for heading in (headings[0], "victims", *headings[1:], "middle half of ours"):
        table.add_column(heading, justify="right")
    for heading in (*headings, "wanted"):
        further.add_column(heading, justify="right")
    for (round_trip, victims), kills in results.items():
        low, _, high = statistics.quantiles(kills.ours, n=4)
        table.add_row(
            _label_distance(round_trip),
            f"{victims:,}",
            f"{statistics.median(kills.ours) * 1000:.0f} ms",
            f"{statistics.median(kills.yardstick) * 1000:.0f} ms",
            f"{kills.ratio:.2f}",
            f"{low * 1000:.0f} to {high * 1000:.0f} ms",
        )
    for round_trip in ROUND_TRIPS:
        many, few = results[round_trip, _MANY], results[round_trip, _FEW]
        ours = _compute_further_cost(many.ours, few.ours)
        yardstick = _compute_further_cost(many.yardstick, few.yardstick)
        further.add_row(
            _label_distance(round_trip),
            f"{ours * 1000:.2f} ms",
            f"{yardstick * 1000:.2f} ms",
            f"{ours / yardstick:.2f}",
            f"≤ {WANTED_RATIO:.1f}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(further)
    for round_trip in filter(None, ROUND_TRIPS):
        byte, megabyte = measure_echoes(round_trip / 2)
        console.print(
            f"the proxy alone, {_label_distance(round_trip)}: 1 byte is back after"
            f" {byte * 1000:.2f} ms, 1 MB after {megabyte * 1000:.1f} ms",
            highlight=False,
        )


def _label_distance(round_trip: float) -> str:
    return f"{round_trip * 1000:g} ms" if round_trip else "loopback"


def _compute_further_cost(many: list[float], few: list[float]) -> float:
    return (statistics.median(many) - statistics.median(few)) / (_MANY - _FEW)


if __name__ == "__main__":
    main()
