"""A process that runs the reaper back to back, by its real handler, until its input is closed.

For each run it prints one line of JSON: when it began and ended (seconds since 1970), its status,
and the pid, the outcome and the rule of each session.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from select import select
from uuid import uuid4

_SCHEDULED = Path(__file__).parents[2] / "events" / "scheduled.json"
_RUN_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOutcome:
    """The report of a run on one session."""

    pid: int
    outcome: str
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaperRun:
    """One run of the reaper; times in seconds since 1970."""

    began: float
    ended: float
    problem: str  # empty if the target's status is ok
    sessions: tuple[SessionOutcome, ...]

    @classmethod
    def from_json(cls, text: str) -> ReaperRun:
        """Read one line that the process prints."""
        document = json.loads(text)
        sessions = tuple(SessionOutcome(**each) for each in document.pop("sessions"))
        return cls(**document, sessions=sessions)


class _Context:
    """The part of Lambda's context that the handler reads."""

    def __init__(self) -> None:
        self.aws_request_id = str(uuid4())
        self._end = time.monotonic() + _RUN_SECONDS

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._end - time.monotonic()) * 1000))


def main() -> None:
    """Run and print until the standard input is closed; the handler's own log goes to /dev/null."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    handler = importlib.import_module("session_reaper.handler").lambda_handler
    event = json.loads(_SCHEDULED.read_text())
    while not select([sys.stdin], [], [], 0)[0]:
        began = time.time()
        (target,) = handler(event, _Context())["targets"]
        run = ReaperRun(
            began=began,
            ended=time.time(),
            problem="" if target["status"] == "ok" else f"{target['status']}: {target['error']}",
            sessions=tuple(
                SessionOutcome(pid=each["pid"], outcome=each["outcome"], rule=each["rule"])
                for each in target["sessions"]
            ),
        )
        print(json.dumps(asdict(run)), file=out, flush=True)


if __name__ == "__main__":
    main()
