"""A process that takes many snapshots of one server at once and prints its peak memory.

It keeps the snapshots to the end, as a run does.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.postgres.server import Server
from session_reaper.sessions.snapshot import ALL_SESSIONS, Snapshot
from session_reaper.targets.target import Auth, SslMode, Target

from tests.faults.peak_memory import read_peak_memory

RUN_SECONDS = 44.0


def make_target(port: int) -> Target:
    """Return a target on this machine."""
    return Target(
        name="hostile",
        group="hostile",
        secret_arn="hostile",  # noqa: S106 -- a name
        host="127.0.0.1",
        port=port,
        role="session_reaper",
        auth=Auth.PASSWORD,
        is_auth_given=True,
        password="secret",  # noqa: S106 -- the server does not request it
        database="postgres",
        sslmode=SslMode.DISABLE,
        sslrootcert=None,
        fallback_secret=None,
    )


def main() -> None:
    """Read port and number of connections; print the result as JSON."""
    port, servers = map(int, sys.argv[1:])
    deadline = Deadline(RUN_SECONDS)

    def take_snapshot(_: int) -> tuple[str, Snapshot | None]:
        server = Server.connect(make_target(port), deadline)
        try:
            return "ok", server.take_snapshot(ALL_SESSIONS, deadline)
        except TargetError as error:
            return error.code, None
        finally:
            server.close()

    with ThreadPoolExecutor(servers) as pool:
        found = [*pool.map(take_snapshot, range(servers))]
    outcomes = Counter(code for code, _ in found)
    print(json.dumps({"mebibytes": read_peak_memory(), "outcomes": outcomes}))  # noqa: T201 -- the result


if __name__ == "__main__":
    main()
