"""A process of healthy clients, each of which makes short transactions and counts its commits.

A transaction is `BEGIN`, an update of the client's own row, a random short time idle in
transaction, and `COMMIT`; some have a second statement and a second such time, some are active for
a moment. At the end, the row must have the number that the client counted. Arguments: the socket's
path, the number of clients, the number of transactions and the longest idle time in seconds. The
answer is one line of JSON: `HealthyResult`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from enum import Enum, auto
from functools import partial
from random import Random
from time import monotonic

from tests.storm.clients import Client, Loop

_SECOND_STATEMENT = 0.25  # share of the transactions
_ACTIVE = 0.10  # share of the statements
_WRITE = "UPDATE counters SET n = n + 1 WHERE client = {client}"
_CHECK_EVERY = 0.05  # seconds
_PATIENCE = 60.0  # seconds
_READ = "SELECT n FROM counters WHERE client = {client}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A transaction that ended by an error."""

    client: int
    pid: int
    code: str  # SQLSTATE; empty if the connection was closed without one
    had_gone_on: bool  # the client had sent its next statement
    seconds: float  # since the statement before: at least the time in the state


@dataclass(slots=True, kw_only=True)
class HealthyResult:
    """The results of the clients of one process."""

    transactions: int = 0
    seconds: float = 0.0
    longest_wait: float = 0.0  # seconds between two statements of a transaction
    breaks: list[Break] = field(default_factory=list)
    finished_in_doubt: int = 0  # commits without an answer that the data shows
    wrong_counts: list[str] = field(default_factory=list)
    counts: dict[int, int] = field(
        default_factory=dict
    )  # client -> commits that were confirmed to it

    @classmethod
    def from_json(cls, text: str) -> HealthyResult:
        """Read the line that the process prints."""
        document = json.loads(text)
        breaks = [Break(**each) for each in document.pop("breaks")]
        counts = {int(client): n for client, n in document.pop("counts").items()}
        return cls(**document, breaks=breaks, counts=counts)


class _Step(Enum):
    CONNECT = auto()
    READ_COUNT = auto()
    FIRST = auto()
    SECOND = auto()
    COMMIT = auto()
    ROLLBACK = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    unix_sock: str
    clients: int
    transactions: int  # of all clients together
    longest_idle: float  # seconds


class _HealthyClient(Client):
    def __init__(self, loop: Loop, load: _Load, number: int, result: HealthyResult) -> None:
        # Half of the clients have an application whose rule has `confirm_after`.
        super().__init__(loop, load.unix_sock, f"api-{'ab'[number % 2]}")
        self.is_finished = False
        self._load = load
        self._number = number
        self._result = result
        self._random = Random(number)  # noqa: S311 -- no secret; a storm can be run again
        self._step = _Step.CONNECT
        self._is_idle = False
        self._has_failed = False
        self._is_in_doubt = False
        self._before = 0.0  # when the statement before the last was sent
        self._count = 0
        self.connect()

    def on_ready(self, status: bytes) -> None:
        match self._step:
            case _Step.CONNECT:
                self._go(_Step.READ_COUNT, _READ)
            case _Step.FIRST | _Step.SECOND if status == b"T":
                self._is_idle = True
                self.loop.call_after(self._random.uniform(0, self._load.longest_idle), self._go_on)
            case _Step.FIRST | _Step.SECOND:
                self._go(_Step.ROLLBACK, "ROLLBACK")
            case _Step.COMMIT if self._has_failed:
                self._is_in_doubt = True
                self._go(_Step.READ_COUNT, _READ)
            case _Step.COMMIT:
                self._count += 1
                self._result.transactions += 1
                self._begin()
            case _Step.READ_COUNT | _Step.ROLLBACK:
                self._begin()

    def on_row(self, values: list[str | None]) -> None:
        if self._step is not _Step.READ_COUNT:
            return
        stored = int(values[0] or 0)
        if self._is_in_doubt and stored == self._count + 1:
            self._result.finished_in_doubt += 1
        elif stored != self._count:
            self._result.wrong_counts.append(
                f"client {self._number} committed {self._count}, the server has {stored}"
            )
        self._count = stored

    def on_error(self, code: str) -> None:
        if self._step is _Step.CONNECT:
            raise SystemExit(f"a healthy client cannot connect: {code}")
        self._record_break(code)

    def on_closed(self) -> None:
        if self.is_finished:
            return
        self._record_break("")
        self._is_in_doubt = self._step is _Step.COMMIT
        self._step, self._is_idle = _Step.CONNECT, False
        self.connect()

    def _record_break(self, code: str) -> None:
        """Record an error once: the end of the connection follows a fatal one."""
        if self._has_failed:
            return
        self._has_failed = True
        had_gone_on = not self._is_idle
        since = self._before if had_gone_on else self.sent_at
        self._result.breaks.append(
            Break(
                client=self._number,
                pid=self.pid,
                code=code,
                had_gone_on=had_gone_on,
                seconds=monotonic() - since,
            )
        )

    def _begin(self) -> None:
        if self._result.transactions >= self._load.transactions:
            self._finish()
            return
        self._has_failed = self._is_in_doubt = False
        self._go(_Step.FIRST, f"BEGIN; {_WRITE}{self._choose_activity()}")

    def _choose_activity(self) -> str:
        return "; SELECT pg_sleep(0.003)" if self._random.random() < _ACTIVE else ""

    def _go_on(self) -> None:
        if not self._is_idle:  # the session was terminated meanwhile
            return
        waited = monotonic() - self.sent_at
        self._result.longest_wait = max(self._result.longest_wait, waited)
        self._is_idle = False
        if self._step is _Step.FIRST and self._random.random() < _SECOND_STATEMENT:
            self._go(_Step.SECOND, f"SELECT 1{self._choose_activity()}")
        else:
            self._go(_Step.COMMIT, "COMMIT")

    def _go(self, step: _Step, sql: str) -> None:
        self._step, self._before = step, self.sent_at
        self.send(sql.format(client=self._number))

    def _finish(self) -> None:
        self.is_finished = True
        self._result.counts[self._number] = self._count
        self.close()


def main() -> None:
    """Run the clients until the transactions are done; print the result."""
    unix_sock, clients, transactions, longest_idle = sys.argv[1:]
    load = _Load(
        unix_sock=unix_sock,
        clients=int(clients),
        transactions=int(transactions),
        longest_idle=float(longest_idle),
    )
    loop, result = Loop(), HealthyResult()
    started = monotonic()
    loop.stop_with_stdin()
    everyone = [_HealthyClient(loop, load, number, result) for number in range(load.clients)]

    def check(transactions: int, since: float) -> None:
        """Stop when all clients have finished, or when none makes progress."""
        if all(client.is_finished for client in everyone):
            loop.stop()
        now = monotonic()
        if result.transactions > transactions:
            transactions, since = result.transactions, now
        elif now - since > _PATIENCE:
            raise SystemExit(f"no healthy transaction finished for {_PATIENCE:.0f} s")
        loop.call_after(_CHECK_EVERY, partial(check, transactions, since))

    check(0, started)
    loop.run()
    result.seconds = monotonic() - started
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
