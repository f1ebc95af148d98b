"""`make sizes`: what memory buys, and what it costs: the function's MemorySize and Timeout are chosen by it.

Lambda gives a function a share of a processor with its memory: one at 1,769 MB, by AWS's guide. Here
a control group gives it, with Lambda's limits of 1,024 file descriptors and as many threads. The
artifact runs under the real Lambda runtime client, its databases are 10 ms away in each direction and
speak TLS; PostgreSQL, the proxy and the AWS stand-in have the rest of the machine.

Linux with control groups of version 1, as root. Lambda may give more while a function starts, so a cold
start is at most what is said here.

`--targets 1000 3000 5000` finds out how many targets one function can have: a run that does not reach all
of them in its time is shown as inf.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.local.aws import aws
from infra.local.certificates import make_tls
from infra.local.postgres import Server, npm_builds, server
from tests.artifact.runtime import Runtime
from tests.benchmarks import deployed
from tests.benchmarks.distance import distance
from tests.benchmarks.prepared import RESOLVE_HERE, as_instance, reaper_secret

WHOLE = 1769  # MB that come with one processor
PERIOD = 20_000  # microseconds, as Lambda's
VICTIMS = 100
LIMIT = 1024  # of file descriptors and of threads
GB_SECOND = 0.0000133334  # dollars, arm64, us-east-1
RUNS = 8640  # a month, every 5 minutes
_GROUPS = Path("/sys/fs/cgroup")
_SCHEDULED = json.loads(Path("events/scheduled.json").read_text())
_KILL = {
    "policy": {
        "version": 1,
        "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "0s"}}],
    }
}


def main() -> None:
    """Measure the sizes in turn and print the table."""
    parser = argparse.ArgumentParser(prog="sizes", description=__doc__)
    parser.add_argument("servers", type=Path, help="the folder of `make matrix`'s servers")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 60, 1000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 1769], help="MB")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    most = max(given.targets)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(
            server(
                npm_builds(given.servers)[18],
                settings={"max_connections": str(most + VICTIMS + 20)},
                tls=make_tls(folder),
            )
        )
        cloud = stack.enter_context(aws())
        way = stack.enter_context(distance(database.port))
        secret = reaper_secret(database, "bench")
        admin = database.connect()
        admin.run(f"ALTER ROLE session_reaper CONNECTION LIMIT {most + 10}")
        admin.close()
        names = [f"target-{number}" for number in range(most)]
        for name in names:
            cloud.put_secret(name, as_instance(secret, name, way.port))
        os.environ |= {"TOPIC_ARN": cloud.topic_arn, "MODE": "enforce"}
        ours, _ = deployed.deployed(folder)
        measured: dict[int, dict[str, list[float]]] = {size: {} for size in given.sizes}
        for _ in range(given.rounds):
            for size in given.sizes:
                for name, value in _measured(size, given.targets, ours, database, names):
                    measured[size].setdefault(name, []).append(value)
    _print(
        {
            size: {name: statistics.median(values) for name, values in by_name.items()}
            for size, by_name in measured.items()
        },
        given.rounds,
    )


def _measured(
    size: int,
    targets: list[int],
    ours: deployed.Deployed,
    database: Server,
    names: list[str],
) -> Iterator[tuple[str, float]]:
    """Seconds of each kind of run, and the most MB that each number of targets took."""
    for count in targets:
        environment = (
            deployed.lambda_environment()
            | {
                "TARGET_SECRET_TAG": "",
                "PAUSED_CLUSTERS": "connect",  # the stand-in has no such instances
                "TARGET_SECRETS": ",".join(names[:count]),
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(size),
            }
        )
        with (
            _share(size) as launcher,
            Runtime(
                ours.artifact,
                ours.handler,
                ours.library,
                environment=environment,
                launcher=launcher,
                preamble=RESOLVE_HERE,
            ) as runtime,
        ):
            seconds = runtime.start()
            first = _seconds(runtime, _SCHEDULED, count)
            yield f"cold, {count:,}", seconds + first
            yield (
                f"warm, {count:,}",
                statistics.median(
                    _seconds(runtime, _SCHEDULED, count) for _ in range(5 if count < 100 else 1)
                ),
            )
            if count == 1:
                victims = [
                    database.connect(user="app", unix_sock=database.unix_sock)
                    for _ in range(VICTIMS)
                ]
                for victim in victims:
                    victim.run("BEGIN")
                yield "kill", _seconds(runtime, _KILL, count)
                for victim in victims:
                    victim._usock.close()  # noqa: SLF001 -- its session is gone
            status = Path(f"/proc/{runtime.pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            yield f"memory, {count:,}", int(peak.split()[1]) / 1000


def _seconds(runtime: Runtime, event: object, count: int) -> float:
    """Of one run that reached every target; infinite if it did not."""
    answer = runtime.invoke(event)
    if answer.error is not None:
        raise SystemExit(f"{answer.error}\n{answer.log}")
    payload: Any = answer.payload
    totals = payload["totals"]
    if totals["failed"]:
        return math.inf  # its time was over before all were done
    if totals["targets"] != count:
        raise SystemExit(f"{totals}: {payload['summary']}")
    if event is _KILL and totals["terminated"] != VICTIMS:
        raise SystemExit(f"{totals['terminated']} of {VICTIMS} were terminated")
    return answer.seconds


@contextmanager
def _share(size: int) -> Iterator[list[str]]:
    """A command that gives what follows it the processor's share and the limits of this size."""
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


def _print(medians: dict[int, dict[str, float]], rounds: int) -> None:
    table = Table(title=f"medians of {rounds} rounds in turn", title_justify="left")
    for heading in ("", *(f"{size:,} MB" for size in medians)):
        table.add_column(heading, justify="right" if heading else "left")
    for name in next(iter(medians.values())):
        unit = "MB" if name.startswith("memory") else "s"
        table.add_row(
            name,
            *(
                f"{values[name]:.2f} {unit}" if unit == "s" else f"{values[name]:.0f} {unit}"
                for values in medians.values()
            ),
        )
        if name.startswith("warm"):
            table.add_row(
                "  a month, $",
                *(
                    f"{RUNS * values[name] * size / 1024 * GB_SECOND:.3f}"
                    for size, values in medians.items()
                ),
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
