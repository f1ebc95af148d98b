"""One process of the benchmark: times a handler cold, warm, and with sessions to kill.

Its own output goes to the real stdout, what the handler logs to /dev/null.
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
    """What a handler may want of Lambda's context."""

    aws_request_id = "bench"

    def get_remaining_time_in_millis(self) -> int:
        """A minute, like template.yaml."""
        return 60_000


def main() -> None:
    """Say the quiet times, wait for the sessions to be there, say the time of the kill."""
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
