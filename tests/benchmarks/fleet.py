"""Measures quiet runs over 60 targets beside runs over one, all 10 ms away, in one warm process.

All targets are one server on this machine, under the names of instances of RDS, because secrets of
one server would be one target. The ratio includes the work of that server and of the proxy for 60
targets. The event is a scheduled one, which uses cached secrets: the time to read them is that of
the stand-in, and counts in manual runs only.

`serve` is the process that is measured: for each line, it makes one run and prints how long it
took.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.aws import Aws
from infra.local.postgres import Server
from tests.benchmarks.distance import run_proxy
from tests.benchmarks.prepared import RESOLVE_HERE, as_instance
from tests.benchmarks.probe import Context

TARGETS = 60
ROUNDS = 15
# TCP handshake, TLS request, TLS 1.3 handshake, three for SCRAM, the snapshot.
ROUND_TRIPS = 7
_LEAVING = 0.5  # seconds until the last backends have ended
_SCHEDULED = Path("events/scheduled.json")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The seconds of each run, and the processor seconds and round trips per target."""

    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    by_hand: list[tuple[float, float]] = field(default_factory=list)  # over one, over many
    ours: list[float] = field(default_factory=list)  # seconds of processor time per target
    others: list[tuple[str, float]] = field(default_factory=list)  # of other processes, by name
    round_trips: set[int] = field(default_factory=set)

    def describe(self) -> Iterator[str]:
        """Describe the measurements beside the ratio."""
        low, middle, high = (each * 1000 for each in statistics.quantiles(self.ours, n=4))
        others = ", ".join(f"{whose} {each * 1000:.1f} ms" for whose, each in self.others)
        yield (
            f"processor time per target, in a run over {TARGETS}: {middle:.1f} ms, middle half"
            f" {low:.1f} to {high:.1f} (not ours, but on the same {os.cpu_count()} cores: {others})"
        )
        trips = " or ".join(str(each) for each in sorted(self.round_trips))
        yield (
            f"round trips per quiet target: {trips}, wanted {ROUND_TRIPS}"
            " (TCP, asking for TLS, TLS, three of SCRAM, one statement)"
        )
        one, many = (statistics.median(each) * 1000 for each in zip(*self.by_hand, strict=True))
        yield (
            f"by hand, which reads all secrets anew from the stand-in: {one:.1f} ms over one,"
            f" {many:.1f} ms over {TARGETS}"
        )


def measure(database: Server, cloud: Aws, secret: Mapping[str, object]) -> Fleet:
    """Measure runs over one and over all in turn; `secret` names the server without the proxy."""
    admin = database.connect()
    # Backends of the run before may still be ending.
    admin.run(f"ALTER ROLE session_reaper CONNECTION LIMIT {2 * TARGETS}")
    admin.close()
    names = [f"target-{number}" for number in range(1, TARGETS + 1)]
    scheduled = json.loads(_SCHEDULED.read_text())
    fleet = Fleet()
    proxy, connections = 0.0, 0
    with run_proxy(database.port) as way, _start_process() as process:
        for name in names:
            cloud.put_secret(name, as_instance(secret, name, way.port))

        def run(targets: list[str], event: object) -> tuple[float, float]:
            nonlocal proxy, connections
            took = process.run(targets, event)
            round_trips, processor = way.take_measurements()
            if len(round_trips) != len(targets):
                raise SystemExit(f"{len(targets)} targets took {len(round_trips)} connections")
            fleet.round_trips.update(round_trips)
            proxy, connections = proxy + processor, connections + len(targets)
            return took

        run(names, scheduled)  # the first run is cold
        proxy, connections, before = 0.0, 0, _read_backends_seconds(database)
        for _ in range(ROUNDS):
            fleet.one.append(run(names[:1], scheduled)[0])
            seconds, processor = run(names, scheduled)
            fleet.many.append(seconds)
            fleet.ours.append(processor / TARGETS)
            fleet.by_hand.append((run(names[:1], {})[0], run(names, {})[0]))
        time.sleep(_LEAVING)
        server = _read_backends_seconds(database) - before
    fleet.others.extend([("PostgreSQL", server / connections), ("the proxy", proxy / connections)])
    return fleet


def _read_backends_seconds(database: Server) -> float:
    """Return the processor seconds of the server's postmaster and of its backends that have ended."""
    stat = Path(f"/proc/{database.pid}/stat").read_text()
    user, system, childrens_user, childrens_system = stat.rpartition(")")[2].split()[11:15]
    ticks = int(user) + int(system) + int(childrens_user) + int(childrens_system)
    return ticks / os.sysconf("SC_CLK_TCK")


class _Process:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin
        assert process.stdout
        self._requests, self._answers = process.stdin, process.stdout

    def run(self, targets: list[str], event: object) -> tuple[float, float]:
        """Return the seconds and the processor seconds of one run."""
        print(json.dumps([targets, event]), file=self._requests, flush=True)
        seconds, processor, ok = json.loads(self._answers.readline())
        if ok != len(targets):
            raise SystemExit(f"{ok} of {len(targets)} targets were reached")
        return seconds, processor


@contextmanager
def _start_process() -> Iterator[_Process]:
    program = f"{RESOLVE_HERE}from tests.benchmarks.fleet import serve\nserve()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(  # noqa: S603 -- this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield _Process(process)


def serve() -> None:
    """Make a run for each line; what the handler logs goes to /dev/null."""
    os.environ["PAUSED_CLUSTERS"] = "connect"  # the stand-in has no such instances
    handler = importlib.import_module("session_reaper.handler").lambda_handler
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        targets, event = json.loads(line)
        os.environ["TARGET_SECRETS"] = ",".join(targets)
        started, processor = time.perf_counter(), time.process_time()
        answer = handler(event, Context())
        took = time.perf_counter() - started, time.process_time() - processor
        ok = sum(target["status"] == "ok" for target in answer["targets"])
        print(json.dumps([*took, ok]), file=out, flush=True)
