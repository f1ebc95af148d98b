"""A process of the benchmark: measures a handler cold, warm, and with sessions to kill.

It prints its own output to standard output; what the handler logs goes to /dev/null.
"""

import importlib
import json
import os
import statistics
import sys
import time

WARM_RUNS = 20
POLICY = {
    "version": 1,
    "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "0s"}}],
}


class Context:
    """The part of Lambda's context that a handler reads."""

    aws_request_id = "bench"

    def get_remaining_time_in_millis(self) -> int:
        """Return a minute, the timeout in template.yaml."""
        return 60_000


def main() -> None:
    """Print the times of quiet runs, wait until the sessions exist, and print the time of the kill."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    started = time.perf_counter()
    handler = importlib.import_module(sys.argv[1]).lambda_handler
    handler({}, Context())
    cold = time.perf_counter() - started
    warm = []
    for _ in range(WARM_RUNS):
        started = time.perf_counter()
        handler({}, Context())
        warm.append(time.perf_counter() - started)
    print(json.dumps({"cold": cold, "warm": statistics.median(warm)}), file=out, flush=True)
    sys.stdin.readline()
    os.environ["AGE"] = "0 seconds"  # the yardstick's threshold; ours is in the event
    started = time.perf_counter()
    answer = handler({"policy": POLICY}, Context())
    seconds = time.perf_counter() - started
    terminated = answer.get("terminated", answer.get("totals", {}).get("terminated"))
    print(json.dumps({"seconds": seconds, "terminated": terminated}), file=out, flush=True)


if __name__ == "__main__":
    main()
