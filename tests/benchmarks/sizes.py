"""`make sizes`: measures runs at several memory sizes, their cost, and how many targets fit into a run.

Lambda gives a function a share of a processor with its memory: a whole one at 1,769 MB, by AWS's
guide. Here a control group sets the share, and Lambda's limits of 1,024 file descriptors and 1,024
threads apply. The artifact runs under the real Lambda runtime client; its databases use TLS, 10 ms
away in each direction.

Up to a hundred targets are one real PostgreSQL server, which shows each target a server of its own.
More than that are servers that replay a real one (`many_servers`), with their secrets found by a
tag (`many_secrets`), because PostgreSQL needs longer for a thousand logins than the function does.
`60 replayed` beside `60` shows what difference that makes.

All of them share one machine. So each run over many targets also shows who used the processor: if
the function used all of its share, its memory limited the run. If function and servers used the
whole machine, the machine limited it, and the run would be faster on Lambda.

A run may take up to Lambda's limit of 15 minutes. If it needs longer than the template's timeout,
one more run has that timeout, and must report each target that it did not reach.

It needs Linux with control groups of version 1, and root. Lambda may give more processor while a
function starts, so the cold starts are upper bounds.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from infra.local.aws import Aws, aws
from infra.local.certificates import make_tls
from infra.local.postgres import Server, npm_builds, server
from tests.artifact.runtime import Answer, Runtime
from tests.benchmarks import deployed
from tests.benchmarks.distance import Distance, run_proxy
from tests.benchmarks.many_secrets import TAG, ManySecrets, serve_secrets
from tests.benchmarks.many_servers import ManyServers, record, run_servers
from tests.benchmarks.prepared import RESOLVE_HERE, as_instance, prepare_roles

WHOLE = 1769  # MB that come with one processor
PERIOD = 20_000  # microseconds, as Lambda's
VICTIMS = 100
SESSIONS = 50  # of an application, idle on each server
REAL = 100  # targets that one PostgreSQL server serves at once
LIMIT = 1024  # of file descriptors and of threads
TIMEOUT = 60  # seconds, the template's
LONGEST = 900  # seconds, Lambda's
GB_SECOND = 0.0000133334  # dollars, arm64, us-east-1
RUNS = 8640  # a month, every 5 minutes
PASSWORD: Final = "bench"  # noqa: S105 -- of servers that live for minutes
_FITS: Final = 44  # seconds of the timeout for the targets; the rest is for the summary
_CORES = os.cpu_count() or 1
_GROUPS = Path("/sys/fs/cgroup")
_SCHEDULED = json.loads(Path("events/scheduled.json").read_text())
_KILL = {
    "policy": {
        "version": 1,
        "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "0s"}}],
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """The function, and the services and servers that it uses."""

    artifact: deployed.Deployed
    cloud: Aws
    secrets: ManySecrets
    database: Server
    way: Distance
    servers: ManyServers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """How many targets, and whether they are replayed."""

    targets: int
    is_replayed: bool

    def __str__(self) -> str:
        same = self.is_replayed and self.targets <= REAL
        return f"{self.targets:,}{' replayed' if same else ''}"


def main() -> None:
    """Measure the sizes in turn and print the table."""
    parser = argparse.ArgumentParser(prog="sizes", description=__doc__)
    parser.add_argument("servers", type=Path, help="the folder of `make matrix`'s servers")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 60, 1000, 3000, 5000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 1769, 3008], help="MB")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    counts = [
        _Count(targets=targets, is_replayed=is_replayed)
        for targets in given.targets
        for is_replayed in (False, True)
        if (targets > 1 if is_replayed else targets <= REAL)
    ]
    console = Console(width=110)
    measured: dict[int, dict[str, list[float]]] = {size: {} for size in given.sizes}
    with ExitStack() as stack:
        stage = _prepare(given.servers, max(given.targets), stack)
        for _ in range(given.rounds):
            for size in given.sizes:
                for count in counts:
                    for name, value in _measure(size, count, stage):
                        measured[size].setdefault(f"{count}: {name}", []).append(value)
                        console.log(f"{size:,} MB, {count}: {name} {value:.3f}")
    _print(
        {
            size: {name: statistics.median(values) for name, values in by_name.items()}
            for size, by_name in measured.items()
        },
        given.rounds,
        console,
    )


def _prepare(servers: Path, most: int, stack: ExitStack) -> _Stage:
    """Start the services and servers, until the stack is closed."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    tls = make_tls(folder)
    settings = {"max_connections": str(REAL + VICTIMS + SESSIONS + 20)}
    database = stack.enter_context(server(npm_builds(servers)[18], settings=settings, tls=tls))
    secret = prepare_roles(database, PASSWORD)
    for _ in range(SESSIONS):
        stack.callback(database.connect(user="app", unix_sock=database.unix_sock).close)
    admin = database.connect()
    own = Path(__file__).with_name("own_servers.sql").read_text()
    admin.run(own.replace("{count}", str(REAL)).replace("{password}", PASSWORD))
    admin.close()
    way = stack.enter_context(run_proxy(database.port))
    secrets: dict[str, dict[str, object]] = {}
    recording = record(database, secret)
    many = stack.enter_context(run_servers(recording, tls, PASSWORD, most))
    for number in range(most):
        name = f"target-{number}"
        given = {**secret, "dbname": name}
        secrets[name] = as_instance(given, name, many.find_port(number))
    for number in range(REAL):
        name = f"real-{number}"
        secrets[name] = as_instance({**secret, "username": f"reaper_{number}"}, name, way.port)
    cloud = stack.enter_context(aws())
    service = stack.enter_context(serve_secrets(secrets))
    os.environ |= {
        "TOPIC_ARN": cloud.topic_arn,
        "MODE": "enforce",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": service.url,
    }
    ours, _ = deployed.prepare_functions(folder)
    return _Stage(
        artifact=ours, cloud=cloud, secrets=service, database=database, way=way, servers=many
    )


def _measure(size: int, count: _Count, stage: _Stage) -> Iterator[tuple[str, float]]:
    """Measure each kind of run over a number of targets, and the peak memory."""
    with _limit_processes(size) as launcher, _make_runtime(size, count, stage, launcher) as runtime:
        seconds = runtime.start()
        cold = _run(runtime, stage, count)
        yield "cold", seconds + cold.seconds
        repeats = 5 if count.targets <= REAL else 1
        runs = [_run(runtime, stage, count) for _ in range(repeats)]
        run = sorted(runs, key=lambda each: each.seconds)[repeats // 2]
        yield "warm", run.seconds
        yield "processor", run.processor / count.targets
        yield "its share used", run.processor / run.seconds / (size / WHOLE)
        if count.is_replayed:
            yield "the machine used", (run.processor + run.others) / run.seconds / _CORES
        if max(cold.seconds, run.seconds) > _FITS:
            yield "reached in time", _count_reached_in_time(runtime, stage, count)
        if count.targets == 1:
            yield "kill", _kill(runtime, stage)
        status = Path(f"/proc/{runtime.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        yield "memory", int(peak.split()[1]) / 1000


def _make_runtime(size: int, count: _Count, stage: _Stage, launcher: list[str]) -> Runtime:
    if count.targets <= REAL:
        kind = "target" if count.is_replayed else "real"
        listed = ",".join(f"{kind}-{number}" for number in range(count.targets))
        targets = {"TARGET_SECRETS": listed, "TARGET_SECRET_TAG": ""}
    else:
        stage.secrets.tagged = count.targets
        targets = {"TARGET_SECRETS": "", "TARGET_SECRET_TAG": "=".join(TAG)}
    return Runtime(
        stage.artifact.artifact,
        stage.artifact.handler,
        stage.artifact.library,
        environment={
            **deployed.select_environment(),
            **targets,
            "PAUSED_CLUSTERS": "connect",  # the stand-in has no such instances
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(size),
        },
        launcher=launcher,
        preamble=RESOLVE_HERE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run: its processor seconds, and those of the services and servers that it used."""

    answer: Answer
    processor: float
    others: float
    snapshots: int

    @property
    def seconds(self) -> float:
        return self.answer.seconds

    @property
    def totals(self) -> dict[str, int]:
        payload: Any = self.answer.payload
        totals: dict[str, int] = payload["totals"]
        return totals


def _run(runtime: Runtime, stage: _Stage, count: _Count) -> _Run:
    """Run over all targets with the longest timeout of Lambda."""
    run = _invoke(runtime, stage, _SCHEDULED, LONGEST)
    if run.totals["failed"] or run.totals["targets"] != count.targets:
        raise SystemExit(f"{run.totals}\n{run.answer.log[-10_000:]}")
    if count.is_replayed and run.snapshots != count.targets:
        raise SystemExit(f"the servers took {run.snapshots} snapshots for {count}")
    return run


def _invoke(runtime: Runtime, stage: _Stage, event: object, seconds: int) -> _Run:
    stage.servers.take_measurements()
    own, its = time.process_time(), _read_processor_seconds(runtime)
    answer = runtime.invoke(event, timeout_ms=1000 * seconds)
    if answer.error is not None:
        raise SystemExit(f"{answer.error}\n{answer.log[-10_000:]}")
    snapshots, servers = stage.servers.take_measurements()
    return _Run(
        answer=answer,
        processor=_read_processor_seconds(runtime) - its,
        others=servers + time.process_time() - own,
        snapshots=snapshots,
    )


def _read_processor_seconds(runtime: Runtime) -> float:
    stat = Path(f"/proc/{runtime.pid}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _count_reached_in_time(runtime: Runtime, stage: _Stage, count: _Count) -> int:
    """Run with the template's timeout; count the reached targets, and check the report on the others."""
    run = _invoke(runtime, stage, _SCHEDULED, TIMEOUT)
    totals = run.totals
    reached = totals["targets"] - totals["failed"]
    # A server may take a snapshot that the run does not wait for.
    if totals["targets"] != count.targets or reached > run.snapshots:
        raise SystemExit(f"{totals}, but the servers took {run.snapshots} snapshots")
    subjects = [mail.subject for mail in stage.cloud.delivered()]
    true = f"{totals['failed']} of {count.targets} targets not reached"
    if totals["failed"] and not (len(subjects) == 1 and subjects[0].startswith(true)):
        raise SystemExit(f"{totals}, but the summary says: {subjects}")
    return reached


def _kill(runtime: Runtime, stage: _Stage) -> float:
    database = stage.database
    victims = [database.connect(user="app", unix_sock=database.unix_sock) for _ in range(VICTIMS)]
    for victim in victims:
        victim.run("BEGIN")
    run = _invoke(runtime, stage, _KILL, TIMEOUT)
    if run.totals["terminated"] != VICTIMS:
        raise SystemExit(f"{run.totals['terminated']} of {VICTIMS} were terminated")
    for victim in victims:
        victim._usock.close()  # noqa: SLF001 -- its session is gone
    stage.cloud.delivered()
    return run.seconds


@contextmanager
def _limit_processes(size: int) -> Iterator[list[str]]:
    """Yield a command that runs its arguments with the processor share and the limits of this size."""
    processor, threads = (
        _GROUPS / kind / f"session-reaper-{os.getpid()}" for kind in ("cpu", "pids")
    )
    for group in (processor, threads):
        group.mkdir()
    try:
        (processor / "cpu.cfs_period_us").write_text(str(PERIOD))
        (processor / "cpu.cfs_quota_us").write_text(str(PERIOD * size // WHOLE))
        (threads / "pids.max").write_text(str(LIMIT))
        join = f'echo $$ >{processor}/cgroup.procs; echo $$ >{threads}/cgroup.procs; ulimit -n {LIMIT}; exec "$@"'
        yield ["/bin/sh", "-c", join, "sh"]
    finally:
        for group in (processor, threads):
            group.rmdir()


_UNITS: Final[Mapping[str, tuple[float, str]]] = {
    "processor": (1000, ".2f ms"),
    "its share used": (100, ".0f %"),
    "the machine used": (100, ".0f %"),
    "reached in time": (1, ",.0f"),
    "memory": (1, ".0f MB"),
}


def _print(medians: Mapping[int, Mapping[str, float]], rounds: int, console: Console) -> None:
    """Print a row for each kind of value, and below each warm run the cost of a month."""
    title = f"medians of {rounds} rounds in turn" if rounds > 1 else "one round"
    table = Table(title=title, title_justify="left")
    for heading in ("targets", *(f"{size:,} MB" for size in medians)):
        table.add_column(heading, justify="left" if heading == "targets" else "right")
    # Smaller sizes may have rows that larger ones do not need.
    for name in dict.fromkeys(name for values in medians.values() for name in values):
        factor, form = _UNITS.get(name.partition(": ")[2], (1, ".2f s"))
        digits, _, unit = form.partition(" ")
        table.add_row(
            name,
            *(
                f"{factor * values[name]:{digits}} {unit}".strip() if name in values else "all"
                for values in medians.values()
            ),
        )
        if name.endswith(": warm"):
            table.add_row(
                "  a month, $",
                *(
                    f"{RUNS * values[name] * size / 1024 * GB_SECOND:.3f}"
                    for size, values in medians.items()
                ),
            )
    console.print(table)


if __name__ == "__main__":
    main()
