"""A process of clients that leak: each begins a transaction and never ends it.

When the reaper terminates a session, its client leaks the next one: most of them together in waves,
so that a run finds many at once, the others after a random moment. Some queries never end, so the
reaper cancels them; some catch the cancel, so the reaper terminates them; and some transactions
block another session. Arguments: the socket's path and the number of leaks. The process ends when
its standard input is closed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from random import Random
from time import monotonic

from tests.storm.clients import Client, Loop

_LEAKS = (
    "BEGIN; SELECT 1",
    "BEGIN; INSERT INTO leaked VALUES (pg_backend_pid())",
    "BEGIN; SELECT 1/0",  # idle in transaction (aborted)
)
_RUNAWAY = "SELECT pg_sleep(600)"
_STUBBORN = (
    "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END;"
    " END LOOP; END $$"
)
_BLOCK = "BEGIN; UPDATE locked SET n = n + 1 WHERE id = {}"
_WAIT = "UPDATE locked SET n = n + 1 WHERE id = {}"
_LONGEST_PAUSE = 0.5  # seconds until a client leaks again
_WAVE = 1.0  # seconds between two moments at which all clients of the waves leak again
_IN_WAVES = 3  # of four clients; the others leak at random moments
_BLOCKED = 2  # rows, each with a blocker and a waiter
_RUNAWAYS = 4
_STUBBORN_ONES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Behaviour:
    application: str
    sql: str
    repeats: bool = False  # sends the statement again when the server is ready again
    in_waves: bool = False  # leaks again together with the others


class _Leak(Client):
    """Sends one statement in each session."""

    def __init__(self, loop: Loop, unix_sock: str, behaviour: _Behaviour) -> None:
        super().__init__(loop, unix_sock, behaviour.application)
        self._behaviour = behaviour
        self._has_sent = False
        self._random = Random(str(behaviour))  # noqa: S311 -- no secret
        self._connect_later()

    def _connect_later(self) -> None:
        random = self._random.uniform(0, _LONGEST_PAUSE)
        pause = _WAVE - monotonic() % _WAVE if self._behaviour.in_waves else random
        self.loop.call_after(pause, self.connect)

    def on_ready(self, status: bytes) -> None:
        del status
        if not self._has_sent:
            self._has_sent = True
            self.send(self._behaviour.sql)
        elif self._behaviour.repeats:
            self.loop.call_after(self._random.uniform(0, _LONGEST_PAUSE), self._repeat)

    def _repeat(self) -> None:
        if self._is_open:
            self.send(self._behaviour.sql)

    def on_closed(self) -> None:
        self._has_sent = False
        self._connect_later()


def main() -> None:
    """Leak until the standard input is closed."""
    unix_sock, number = sys.argv[1:]
    loop = Loop()
    loop.stop_with_stdin()
    behaviours = [
        _Behaviour(
            application=f"api-{'ab'[each % 2]}",
            sql=_LEAKS[each % len(_LEAKS)],
            in_waves=each % 4 < _IN_WAVES,
        )
        for each in range(int(number))
    ]
    for row in range(_BLOCKED):
        behaviours += [
            _Behaviour(application="blocker", sql=_BLOCK.format(row)),
            _Behaviour(application="waiter", sql=_WAIT.format(row), repeats=True),
        ]
    behaviours += [_Behaviour(application="report", sql=_RUNAWAY, repeats=True)] * _RUNAWAYS
    behaviours += [_Behaviour(application="report", sql=_STUBBORN)] * _STUBBORN_ONES
    for behaviour in behaviours:
        _Leak(loop, unix_sock, behaviour)
    loop.run()


if __name__ == "__main__":
    main()
