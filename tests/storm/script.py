"""A process that terminates leaks by a script, again and again, until its input is closed.

Its first argument is one of two scripts. `article` runs the statement of the article "How to Fix
PostgreSQL 'Remaining Connection Slots Reserved' Error", which measures the age of the connection.
`look-then-kill` reads the sessions that are idle in transaction, and then terminates each by its
pid. The other arguments: the socket's path, and the shortest age of a session in seconds.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from select import select

from pg8000.native import Connection

_PAUSE = 0.1  # seconds between two rounds
_ARTICLE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    " AND usename = 'app' AND now() - backend_start > :age * interval '1 second'"
)
_LOOK = (
    "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND usename = 'app'"
    " AND now() - state_change > :age * interval '1 second'"
)
_KILL = "SELECT pg_terminate_backend(:pid)"


class Script(StrEnum):
    """A script that terminates leaks in place of the reaper."""

    ARTICLE = "article"
    LOOK_THEN_KILL = "look-then-kill"


def main() -> None:
    """Run the script until the standard input is closed."""
    name, unix_sock, age = sys.argv[1:]
    connection = Connection("session_reaper", database="postgres", unix_sock=unix_sock)
    while not select([sys.stdin], [], [], _PAUSE)[0]:
        match Script(name):
            case Script.ARTICLE:
                connection.run(_ARTICLE, age=float(age))
            case Script.LOOK_THEN_KILL:
                for (pid,) in connection.run(_LOOK, age=float(age)):
                    connection.run(_KILL, pid=pid)


if __name__ == "__main__":
    main()
