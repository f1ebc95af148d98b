"""A warm process of the kill benchmark: runs a handler for each line that it gets.

A line is a JSON list: the secret's name and the event. The answer is a JSON list: the seconds that
the run took and the number of sessions that it terminated. What the handler logs goes to /dev/null.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.probe import Context


class KillProbe:
    """The benchmark's side of the process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin
        assert process.stdout
        self._requests, self._answers = process.stdin, process.stdout

    def run(self, secret: str, event: object) -> tuple[float, int]:
        """Return the seconds of one run and the number of sessions that it terminated."""
        print(json.dumps([secret, event]), file=self._requests, flush=True)
        seconds, terminated = json.loads(self._answers.readline())
        return seconds, terminated


@contextmanager
def start_kill_probe(module: str) -> Iterator[KillProbe]:
    """Start a process for the handler of this module."""
    command = [sys.executable, "-m", "tests.benchmarks.kill_probe", module]
    with subprocess.Popen(  # noqa: S603 -- this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield KillProbe(process)


def main() -> None:
    """Make a run for each line until the standard input is closed."""
    os.environ["AGE"] = "0 seconds"  # the yardstick's threshold
    handler = importlib.import_module(sys.argv[1]).lambda_handler
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        os.environ["TARGET_SECRETS"], event = json.loads(line)
        started = time.perf_counter()
        answer = handler(event, Context())
        seconds = time.perf_counter() - started
        terminated = answer.get("terminated", answer.get("totals", {}).get("terminated"))
        print(json.dumps([seconds, terminated]), file=out, flush=True)


if __name__ == "__main__":
    main()
