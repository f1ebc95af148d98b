"""`python -m tests.benchmarks.cold_starts SERVERS ARTIFACT...`: compares the cold starts of artifacts.

Each artifact is a folder as `sam build` leaves it, or a changed copy with bytecode. A round starts
a fresh interpreter for each of them, which imports the handler and makes a first quiet run. CPU
time is printed beside wall time, because other processes disturb it less.
"""

import compileall
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.local.aws import aws
from infra.local.certificates import make_tls
from infra.local.postgres import npm_builds, server
from tests.artifact.runtime import make_runtime_library
from tests.benchmarks.prepared import prepare_roles

ROUNDS = 60
FIRST_RUN = """
import os, sys
sys.path[:0] = sys.argv[1:]
from session_reaper.handler import lambda_handler
class Context:
    aws_request_id = "cold"
    get_remaining_time_in_millis = lambda self: 60_000
assert lambda_handler({}, Context())["status"] == "ok"
sys.stdout.flush()
os._exit(0)
"""


def main() -> None:
    """Measure the artifacts in turn and print a table; differences are to the first artifact."""
    servers, *artifacts = map(Path, sys.argv[1:])
    cpu: dict[Path, list[float]] = {artifact: [] for artifact in artifacts}
    wall: dict[Path, list[float]] = {artifact: [] for artifact in artifacts}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(server(npm_builds(servers)[18], tls=make_tls(folder)))
        cloud = stack.enter_context(aws())
        cloud.put_secret("orders", prepare_roles(database, "bench"))
        os.environ |= {"TARGET_SECRETS": "orders", "TOPIC_ARN": cloud.topic_arn}
        library = make_runtime_library(folder / "runtime")
        for package in library.iterdir():
            compileall.compile_dir(package.resolve(), quiet=2)
        for counted in [False, *[True] * ROUNDS]:
            for artifact in artifacts:
                seconds = _measure_cold_start(artifact, library)
                if counted:
                    cpu[artifact].append(seconds[0])
                    wall[artifact].append(seconds[1])
    table = Table("", "CPU minimum", "CPU median", "wall minimum")
    for artifact in artifacts:
        first = artifacts[0]
        table.add_row(
            artifact.name,
            _format_cell(min(cpu[artifact]), min(cpu[first])),
            _format_cell(statistics.median(cpu[artifact]), statistics.median(cpu[first])),
            _format_cell(min(wall[artifact]), min(wall[first])),
        )
    Console(width=100).print(table)


def _format_cell(seconds: float, first: float) -> str:
    return f"{1000 * seconds:.0f} ms ({1000 * (seconds - first):+.0f})"


def _measure_cold_start(artifact: Path, library: Path) -> tuple[float, float]:
    """Return the CPU seconds and the wall-clock seconds of one cold start."""
    command = [sys.executable, "-ISBc", FIRST_RUN, str(artifact), str(library)]
    began = time.perf_counter()
    no_output = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=no_output)
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"the first run of {artifact} failed")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began


if __name__ == "__main__":
    main()
