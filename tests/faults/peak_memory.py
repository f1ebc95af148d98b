"""A process that runs the reaper once and prints its peak memory and the sessions' outcomes.

The peak is VmHWM, because on Linux `ru_maxrss` includes the memory of the parent at the fork.
Without /proc, it is `ru_maxrss`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """The peak memory of a process, and the number of each outcome."""

    mebibytes: float
    outcomes: dict[str, int]


class _Context:
    aws_request_id = "peak-memory"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def measure_peak_memory(event: object) -> PeakMemory:
    """Run the reaper on an event in a new process with our environment."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.faults.peak_memory"],
        input=json.dumps(event),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["functions", "."])},
        cwd=Path(__file__).parents[2],
    )
    return PeakMemory(**json.loads(answer.stdout))


def read_peak_memory() -> float:
    """Return the peak memory of this process in MiB."""
    if _STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        assert found
        return int(found[1]) / _KIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _KIB**2 if sys.platform == "darwin" else peak / _KIB


def main() -> None:
    """Read the event, run the reaper, print the result as JSON."""
    event = json.loads(sys.stdin.read())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    handler = importlib.import_module("session_reaper.handler").lambda_handler
    (target,) = handler(event, _Context())["targets"]
    outcomes = Counter(session["outcome"] for session in target["sessions"])
    print(json.dumps({"mebibytes": read_peak_memory(), "outcomes": outcomes}), file=out, flush=True)


if __name__ == "__main__":
    main()
