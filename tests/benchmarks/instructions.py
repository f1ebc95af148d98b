"""Counts the processor instructions of a start and of warm runs, for `make bench-instructions`.

Times differ by a tenth from minute to minute on a shared machine; these counts differ by at most
three hundredths, so two versions can be compared. Under valgrind everything takes about fifty times
as long.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console

from infra.local.aws import aws
from infra.local.certificates import make_tls
from infra.local.postgres import npm_builds, server
from tests.benchmarks.prepared import RESOLVE_HERE, as_instance, prepare_roles

TARGETS: Final = (1, 10)
_FIRST, _MORE = 3, 10  # runs until everything is cached, and those that are measured
_PROGRAM: Final = f"{RESOLVE_HERE}from tests.benchmarks.fleet import serve\nserve()"
_VALGRIND: Final = ("valgrind", "--tool=cachegrind", "--cache-sim=no")
_REFS: Final = re.compile(r"I\s+refs:\s+([\d,]+)")


def main() -> None:
    """Print the counts in millions."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(
            server(npm_builds(Path(sys.argv[1]))[18], tls=make_tls(folder))
        )
        cloud = stack.enter_context(aws())
        secret = prepare_roles(database, "bench")
        admin = database.connect()
        # Backends of the run before may still be ending.
        admin.run(f"ALTER ROLE session_reaper CONNECTION LIMIT {4 * max(TARGETS)}")
        admin.close()
        names = [f"target-{number}" for number in range(1, max(TARGETS) + 1)]
        for name in names:
            cloud.put_secret(name, as_instance(secret, name, database.port))
        os.environ |= {"TOPIC_ARN": cloud.topic_arn, "MODE": "enforce", "PYTHONHASHSEED": "0"}
        os.environ |= {"PYTHONPATH": os.pathsep.join(["functions", "."])}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        serve = ("-c", _PROGRAM)
        _run((sys.executable, *serve), names[:1], 1)  # writes the bytecode
        console = Console(highlight=False)
        console.print(
            f"import: {_count(('-c', 'import session_reaper.handler')):,.0f} million instructions"
        )
        for number in TARGETS:
            few = _count(serve, names[:number], _FIRST)
            many = _count(serve, names[:number], _FIRST + _MORE)
            each = (many - few) / _MORE / number
            console.print(
                f"warm quiet run over {number}: {each:,.2f} million instructions per target"
            )


def _count(arguments: Sequence[str], names: Sequence[str] = (), runs: int = 0) -> float:
    """Return the million instructions of a Python process that makes so many runs."""
    command = (*_VALGRIND, "--cachegrind-out-file=/dev/null", sys.executable, *arguments)
    found = _REFS.search(_run(command, names, runs))
    if found is None:
        raise SystemExit("valgrind printed no count")
    return int(found[1].replace(",", "")) / 1e6


def _run(command: Sequence[str], names: Sequence[str], runs: int) -> str:
    """Run a command that reads a line for each run, and return what it wrote to standard error."""
    line = json.dumps([names, json.loads(Path("events/scheduled.json").read_text())])
    process = subprocess.run(  # noqa: S603 -- our own process
        command, input=f"{line}\n" * runs, capture_output=True, text=True, check=False
    )
    answers = [json.loads(answer) for answer in process.stdout.splitlines()]
    if process.returncode or any(answer[-1] != len(names) for answer in answers):
        raise SystemExit(f"{process.stdout}{process.stderr}")
    return process.stderr


if __name__ == "__main__":
    main()
