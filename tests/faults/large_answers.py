"""A fresh process that takes a snapshot of one server many times at once and prints its peak memory.

The snapshots are kept as a run keeps them: to its end.
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

from tests.faults.peak_memory import peak

RUN_SECONDS = 44.0


def target(port: int) -> Target:
    """Return a target on this machine that asks for no password."""
    return Target(
        name="hostile",
        group="hostile",
        secret_arn="hostile",  # noqa: S106 -- a name
        host="127.0.0.1",
        port=port,
        role="session_reaper",
        auth=Auth.PASSWORD,
        is_auth_given=True,
        password="secret",  # noqa: S106 -- nobody asks for it
        database="postgres",
        sslmode=SslMode.DISABLE,
        sslrootcert=None,
        fallback_secret=None,
    )


def main() -> None:
    """Connect to the port so often."""
    port, servers = map(int, sys.argv[1:])
    deadline = Deadline(RUN_SECONDS)

    def take_snapshot(_: int) -> tuple[str, Snapshot | None]:
        server = Server.connect(target(port), deadline)
        try:
            return "ok", server.look(ALL_SESSIONS, deadline)
        except TargetError as error:
            return error.code, None
        finally:
            server.close()

    with ThreadPoolExecutor(servers) as pool:
        found = [*pool.map(take_snapshot, range(servers))]
    print(json.dumps({"mebibytes": peak(), "outcomes": Counter(code for code, _ in found)}))  # noqa: T201 -- its answer


if __name__ == "__main__":
    main()
