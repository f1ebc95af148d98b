"""One connection to one PostgreSQL server: snapshot, signal, verify.

Every statement is a transaction of its own: inside a transaction block pg_stat_activity stands still
after the first read, and a second look would see nothing new.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum, auto
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from pg8000.native import DatabaseError, PreparedStatement, literal

from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.policy.enums import Action
from session_reaper.postgres.budget import (
    ANSWER_MEMORY,
    UNCLAIMED_BYTES,
    MemoryBudget,
    MemoryClaim,
    NoMemoryLeftError,
)
from session_reaper.postgres.driver import Connection, Row
from session_reaper.postgres.errors import (
    INSUFFICIENT_PRIVILEGE,
    answering,
    connecting,
    sqlstate,
    statement_error,
    within_memory,
)
from session_reaper.postgres.rows import (
    QUERY_BYTES,
    USED_FUNCTIONS,
    USED_RELATIONS,
    memory_of,
    read_facts,
    read_grants,
    read_signal,
    read_snapshot,
    read_verification,
)
from session_reaper.postgres.tls import describe_tls, open_socket, wrap_tls
from session_reaper.sessions.server_facts import ServerFacts
from session_reaper.sessions.session import OWN_APPLICATION_NAME, Identity, WaitGuard
from session_reaper.sessions.snapshot import Snapshot, SnapshotScope, Verification
from session_reaper.targets.target import SslMode, Target

APPLICATION_NAME: Final = OWN_APPLICATION_NAME
CONNECT_SECONDS: Final = 10.0  # for name, TCP, TLS and login together
STATEMENT_SECONDS: Final = 10.0  # the server's own limit; ours is longer, so that the server tells
_ANSWER_SECONDS: Final = STATEMENT_SECONDS + 2
# 5,000 sessions whose queries all have QUERY_BYTES take 16 MB.
_SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
_ANSWER_BYTES: Final = 1024 * 1024

_STARTUP: Final = {
    # Our names mean the catalog's, whatever a database holds.
    "search_path": "pg_catalog",
    "client_encoding": "UTF8",
    "bytea_output": "hex",
    # Serializable and deferrable would wait for the very transactions that we are to end.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": f"{STATEMENT_SECONDS:.0f}s",
    "lock_timeout": "2s",
    "default_transaction_read_only": "on",
}
_QUERY_ID_SINCE: Final = 14  # the major version


class Signal(Enum):
    """What the server answered to one guarded signal."""

    SENT = auto()
    WAITING = auto()  # the session is the same, but waits for something that the rule excludes
    ESCAPED = auto()  # the session changed, or ended, since the snapshot
    DENIED = auto()
    HIDDEN = auto()  # we may not see the session any more: nothing was sent


_FUNCTIONS: Final = {
    Action.TERMINATE: "pg_terminate_backend",
    Action.CANCEL: "pg_cancel_backend",
}


class Server:
    """One connection to one server. Close it."""

    def __init__(self, target: Target, connection: Connection) -> None:
        self.role = target.role
        self._target = target
        self._ours = (target.role, target.instead_of)
        version = re.match(r"\d{1,3}", connection.server_version)
        self._major = int(version[0]) if version else 0
        self._connection = connection
        self._signal: dict[Action, PreparedStatement] = {}
        self._verify: PreparedStatement | None = None

    @classmethod
    def connect(
        cls, target: Target, deadline: Deadline, memory: MemoryBudget = ANSWER_MEMORY
    ) -> "Server":
        """Connect and log in. Raises TargetError; FullError if there is no slot for us.

        `memory`: what the answers of all servers may take.
        """
        where = f"{target.host}:{target.port}"
        deadline = deadline.capped_at(deadline.remaining_or_raise(CONNECT_SECONDS))
        with connecting(f"connecting to {where}", target.password):
            sock = open_socket(target.host, target.port, deadline)
        try:
            if target.sslmode is not SslMode.DISABLE:
                with connecting(f"securing the connection to {where}", target.password):
                    sock = wrap_tls(sock, target, deadline)
            with connecting(f"logging in to {where}", target.password):
                connection = Connection(
                    sock,
                    target,
                    application_name=APPLICATION_NAME,
                    startup_params=_STARTUP,
                    deadline=deadline,
                    memory=memory,
                )
        except BaseException:
            sock.close()
            raise
        return cls(target, connection)

    def close(self) -> None:
        """Log out, as far as the connection still allows it."""
        self._connection.close()

    def preflight(self, deadline: Deadline) -> ServerFacts:
        """Read what the server is and what our role may do there. Raises TargetError."""
        doing = "reading the server's facts"
        try:
            with self._answering(doing, deadline):
                row, claim = self._connection.run_for_row(_sql("preflight"))
        except TargetError as error:
            raise self._with_missing_grants(error, deadline) from None
        with self._decoding(doing, row, claim, deadline):
            return read_facts(row, describe_tls(self._connection.socket, self._target))

    def alter(self, statement: str, deadline: Deadline) -> None:
        """Run one statement that changes something, as nothing else here does. Raises TargetError."""
        with self._answering("altering", deadline):
            # One implicit transaction: neither an open block nor a writing connection outlives it.
            self._connection.run(f"SET TRANSACTION READ WRITE; {statement}")

    def look(self, scope: SnapshotScope, deadline: Deadline) -> Snapshot:
        """Take a snapshot: all that one run needs to know, in one statement. Raises TargetError."""
        statement = _sql("look").format(
            idle_for=literal(json.dumps(scope.idle_floors)),
            waits=_sql("waits") if scope.waits else "NULL",
            locks=str(scope.locks).lower(),
            query_id="a.query_id" if self._major >= _QUERY_ID_SINCE else "NULL",
            query_bytes=QUERY_BYTES,
        )
        doing = "taking the snapshot"
        try:
            with self._answering(doing, deadline, _SNAPSHOT_BYTES):
                row, claim = self._connection.run_for_row(statement)
        except TargetError as error:
            raise self._with_missing_grants(error, deadline) from None
        with self._decoding(doing, row, claim, deadline):
            look = read_snapshot(row, ours=self._ours, backend_pid=self._connection.backend_pid)
            size = memory_of(look)
            try:
                if size > UNCLAIMED_BYTES:
                    claim = claim or self._connection.memory.claim(0, deadline)
                    claim.resize(size)
                    for session in look.sessions:
                        session.hold(claim)
            except NoMemoryLeftError:
                del look  # before the next answer is decoded: the error would keep it
                raise
        return look

    def find_missing_grants(self, deadline: Deadline) -> tuple[str, ...]:
        """Ask which rights the statements here need and our role lacks: the statements that grant them.

        Raises TargetError.
        """
        doing = "asking for missing grants"
        with self._answering(doing, deadline):
            statement = _sql("missing_grants").format(
                functions=", ".join(map(literal, USED_FUNCTIONS)),
                relations=", ".join(map(literal, USED_RELATIONS)),
            )
            row, claim = self._connection.run_for_row(statement)
        with self._decoding(doing, row, claim, deadline):
            return read_grants(row, self.role)

    def _with_missing_grants(self, error: TargetError, deadline: Deadline) -> TargetError:
        if error.code != INSUFFICIENT_PRIVILEGE:
            return error
        try:
            grants = self.find_missing_grants(deadline)
        except TargetError:
            return error
        where = f"In database {self._target.database}, as a superuser or the master user: "
        return TargetError(
            error.code, error.message, where + " ".join(grants) if grants else error.hint
        )

    def signal(
        self,
        identities: Iterable[Identity],
        action: Action,
        deadline: Deadline,
        guards: Mapping[int, WaitGuard] = MappingProxyType({}),
    ) -> Iterator[Signal | TargetError]:
        """Signal sessions that are still those of the snapshot, in a pipeline.

        `guards`, by pid, say what must hold of each session's wait; without one it must not wait for
        a lock.

        An identity is taken just before its signal is sent; the answers have the same order. One
        that is an error leaves open whether its signal was sent. Raises DeadlineError if nothing was
        sent, any other TargetError if it is not known what became of the signals that were sent and
        not answered.
        """
        doing = f"signalling ({action})"
        with self._answering(doing, deadline):
            if action not in self._signal:
                guarded = _sql("signal").format(function=_FUNCTIONS[action])
                self._signal[action] = self._connection.prepare(guarded)
            executions = (_parameters_of(i, guards.get(i.pid, WaitGuard())) for i in identities)
            statement = self._signal[action]
            for answer in self._connection.run_each(
                statement, executions, deadline, _ANSWER_SECONDS
            ):
                if not isinstance(answer, DatabaseError):
                    yield _signal_of(answer)
                elif sqlstate(answer) == INSUFFICIENT_PRIVILEGE:
                    yield Signal.DENIED
                else:
                    yield statement_error(doing, self._target.password, answer)

    def verify(
        self, signalled: Collection[tuple[Identity, Action]], deadline: Deadline
    ) -> Verification:
        """Look which sessions are left, or still at the query that was cancelled. Raises TargetError."""
        with self._answering("verifying", deadline):
            if self._verify is None:
                self._verify = self._connection.prepare(_sql("verify"))
            rows = self._verify.run(
                pids=[identity.pid for identity, _ in signalled],
                starts=[identity.backend_start for identity, _ in signalled],
                changes=[
                    (identity.state_change or "") if action is Action.CANCEL else ""
                    for identity, action in signalled
                ],
            )
            (row,) = rows
        with self._decoding("verifying", row, None, deadline):
            return read_verification(row)

    @contextmanager
    def _decoding(
        self, doing: str, row: Row, claim: MemoryClaim | None, deadline: Deadline
    ) -> Iterator[None]:
        """Decode an answer in its turn; its claim ends if that fails, whoever keeps the error."""
        size = sum(len(value) for value in row if value is not None)
        try:
            with within_memory(doing), self._connection.memory.turn(size, deadline):
                yield
        except BaseException:
            if claim is not None:
                claim.release()
            raise

    @contextmanager
    def _answering(
        self, doing: str, deadline: Deadline, answer_bytes: int = _ANSWER_BYTES
    ) -> Iterator[None]:
        within = deadline.capped_at(deadline.remaining_or_raise(_ANSWER_SECONDS))
        self._connection.allow(within, answer_bytes)
        with answering(doing, self._target.password):
            yield


def _parameters_of(identity: Identity, guard: WaitGuard) -> dict[str, object]:
    return {
        "pid": identity.pid,
        "backend_start": identity.backend_start,
        "xact_start": identity.xact_start,
        "state_change": identity.state_change,
        "query_start": identity.query_start,
        "state": identity.state.value,
        **asdict(guard),
    }


def _signal_of(rows: Sequence[Row]) -> Signal:
    if not rows:
        return Signal.ESCAPED
    return _SIGNALS[read_signal(rows[0])]


_SIGNALS: Final = {
    "t": Signal.SENT,
    "f": Signal.ESCAPED,
    "waits": Signal.WAITING,
    None: Signal.HIDDEN,
}


@cache
def _sql(name: str) -> str:
    text = (files("session_reaper.postgres") / "queries" / f"{name}.sql").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
