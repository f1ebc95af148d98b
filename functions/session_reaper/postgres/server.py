"""One connection to one PostgreSQL server: snapshot, signal, verify.

Every statement is a transaction of its own, because inside a transaction block pg_stat_activity
does not change after it was first read.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial
from importlib.resources import files
from types import MappingProxyType
from typing import Final, Self
from weakref import finalize

from pg8000.native import DatabaseError, PreparedStatement, literal

from session_reaper.deadline import Deadline
from session_reaper.errors import INSUFFICIENT_PRIVILEGE, ConnectionLostError, TargetError
from session_reaper.policy.enums import Action
from session_reaper.postgres.budget import (
    ANSWER_MEMORY,
    UNCLAIMED_BYTES,
    MemoryBudget,
    NoMemoryLeftError,
)
from session_reaper.postgres.driver import Connection, Row
from session_reaper.postgres.errors import (
    explain_no_memory,
    read_sqlstate,
    translate_errors,
    translate_server_error,
)
from session_reaper.postgres.rows import (
    QUERY_BYTES,
    QUERY_END_BYTES,
    SESSION_COLUMNS,
    USED_FUNCTIONS,
    USED_RELATIONS,
    estimate_memory,
    read_facts,
    read_grants,
    read_holders,
    read_signal,
    read_snapshot,
    read_verification,
)
from session_reaper.postgres.signals import Signal
from session_reaper.postgres.tls import describe_tls, open_socket, read_certificate, wrap_tls
from session_reaper.sessions.server_facts import ServerFacts
from session_reaper.sessions.session import OWN_APPLICATION_NAME, Identity, Slots, WaitGuard
from session_reaper.sessions.snapshot import (
    HOLDERS_FROM,
    Holder,
    Snapshot,
    SnapshotScope,
    Verification,
)
from session_reaper.targets.target import Target

APPLICATION_NAME: Final = OWN_APPLICATION_NAME
CONNECT_SECONDS: Final = 10.0  # for DNS, TCP, TLS and login together
STATEMENT_SECONDS: Final = 10.0  # enforced by the server
_ANSWER_SECONDS: Final = STATEMENT_SECONDS + 2  # longer, so that the server's own error arrives
# 5,000 sessions whose queries all have QUERY_BYTES take 16 MB.
_SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
_QUERY_ENDS_BYTES: Final = 4 * 1024 * 1024  # more, with the ends of these queries
_ANSWER_BYTES: Final = 1024 * 1024

_STARTUP: Final = {
    # Our statements use the catalog's names, whatever else a database contains.
    "search_path": "pg_catalog",
    "client_encoding": "UTF8",
    "bytea_output": "hex",
    # A serializable, deferrable transaction would wait for the transactions that we terminate.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": f"{STATEMENT_SECONDS:.0f}s",
    "lock_timeout": "2s",
    "default_transaction_read_only": "on",
}
_QUERY_ID_SINCE: Final = 14  # the major version


_SIGNAL_FUNCTIONS: Final = {
    Action.TERMINATE: "pg_terminate_backend",
    Action.CANCEL: "pg_cancel_backend",
}


class Server:
    """An open connection to one server; the caller closes it."""

    def __init__(self, target: Target, connection: Connection, application_name: str) -> None:
        self.role = target.role
        self.application_name = application_name
        self.address = str(connection.socket.getpeername()[0])  # IP
        # Our own IP and port, or the empty name of a client's Unix socket.
        self.origin = connection.socket.getsockname()[:2] or ("", 0)
        self.certificate = read_certificate(connection.socket)  # in DER; None in plaintext
        self._target = target
        self._own_roles = (target.role, target.instead_of)
        version = re.match(r"\d{1,3}", connection.server_version)
        self._major = int(version[0]) if version else 0
        self._connection = connection
        self._signal_statements: dict[Action, PreparedStatement] = {}
        self._verify_statement: PreparedStatement | None = None

    @classmethod
    def connect(
        cls,
        target: Target,
        deadline: Deadline,
        memory: MemoryBudget = ANSWER_MEMORY,
        *,
        application_name: str = APPLICATION_NAME,
    ) -> Self:
        """Connect and log in. Raises TargetError; FullError if no slot is free.

        `memory`: the budget that the answers of all servers share.
        """
        where = f"{target.host}:{target.port}"
        reached = target.via or target
        deadline.check()
        deadline = deadline.capped_at(CONNECT_SECONDS)
        translate = partial(translate_errors, secret=target.password, is_connected=False)
        with translate(f"connecting to {reached.host}:{reached.port}"):
            sock = open_socket(reached.host, reached.port, deadline)
        try:
            if target.is_encrypted:
                with translate(f"securing the connection to {where}"):
                    sock = wrap_tls(sock, target, deadline)
            with translate(f"logging in to {where}"):
                connection = Connection(
                    sock,
                    target,
                    application_name=application_name,
                    startup_params=_STARTUP,
                    deadline=deadline,
                    memory=memory,
                )
                return cls(target, connection, application_name)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Log out, if the connection still allows it, and close the connection."""
        self._connection.close()

    def find_application(
        self, wanted: str, origin: tuple[str, int], *, own_name: str, deadline: Deadline
    ) -> bool:
        """Rename our own session; return whether the server shows another one by its name.

        Only a session from our own address counts, or from this IP and port. Raises TargetError.
        """
        step = "comparing servers"
        with self._expect_answer(step, deadline):
            address, port = origin
            statement = _load_sql("find_application").format(
                own_name=literal(own_name),
                wanted=literal(wanted),
                address=literal(address),
                port=int(port),
            )
            self.application_name = own_name
            rows = self._connection.run(statement)
        return bool(rows == [[b"t"]])

    def rename(self, name: str, deadline: Deadline) -> None:
        """Rename our own session. Raises TargetError."""
        self.find_application("", ("", 0), own_name=name, deadline=deadline)

    def read_facts(self, deadline: Deadline) -> ServerFacts:
        """Read facts about the server and our role on it. Raises TargetError."""
        step = "reading the server's facts"
        with self._run_for_row(step, _load_sql("server_facts"), deadline) as row:
            return read_facts(row, describe_tls(self._connection.socket, self._target))

    def alter(self, statement: str, deadline: Deadline) -> None:
        """Run the one kind of statement that writes: an ALTER. Raises TargetError."""
        with self._expect_answer("altering", deadline):
            # Both are one implicit transaction, so the connection is read-only again afterwards.
            self._connection.run(f"SET TRANSACTION READ WRITE; {statement}")

    def take_snapshot(self, scope: SnapshotScope, deadline: Deadline) -> Snapshot:
        """Read everything that one run needs. Raises TargetError.

        One statement reads all but the holders of the slots. If many slots are used, a second one
        reads these; the snapshot has none if the server refuses it. The sessions of a large
        snapshot claim memory until they are deleted.
        """
        snapshot = self._take_snapshot(scope, deadline)
        if not _is_crowded(snapshot):
            return snapshot
        try:
            holders = self._read_holders(snapshot.slots, deadline)
        except TargetError as error:
            # A crowded server needs the run most, and no decision depends on the holders.
            if not isinstance(error, ConnectionLostError):
                return snapshot
            del snapshot  # the error's traceback would keep it in memory
            raise
        return replace(snapshot, holders=holders)

    def _take_snapshot(self, scope: SnapshotScope, deadline: Deadline) -> Snapshot:
        step = "taking the snapshot"
        most = _SNAPSHOT_BYTES + (_QUERY_ENDS_BYTES if scope.query_ends else 0)
        statement = _write_snapshot(
            json.dumps(scope.idle_floors),
            waits=scope.waits,
            locks=scope.locks,
            query_ends=scope.query_ends,
            has_query_id=self._major >= _QUERY_ID_SINCE,
        )
        with self._run_for_row(step, statement, deadline, most) as row:
            snapshot = read_snapshot(
                row,
                own_roles=self._own_roles,
                backend_pid=self._connection.backend_pid,
                has_waits=scope.waits,
            )
            sizes = [*map(estimate_memory, snapshot.sessions)]
            if sum(sizes) > UNCLAIMED_BYTES:
                try:
                    release = self._connection.replace_claim(sum(sizes))
                except NoMemoryLeftError:
                    del snapshot  # the error's traceback would keep it in memory
                    raise
                for session, size in zip(snapshot.sessions, sizes, strict=True):
                    finalize(session, release, size)
        return snapshot

    def _read_holders(self, slots: Slots, deadline: Deadline) -> tuple[Holder, ...]:
        step = "reading the holders of the slots"
        statement = _load_sql("holders").format(is_transient=_write_is_transient())
        # An answer that needs a claim could wait for the memory that the snapshot's sessions hold.
        most = UNCLAIMED_BYTES
        with self._run_for_row(step, statement, deadline, most) as row:
            return read_holders(row, slots)

    def find_missing_grants(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the GRANT statements for all that our statements use and our role may not use.

        Raises TargetError.
        """
        statement = _load_sql("missing_grants").format(
            functions=", ".join(map(literal, USED_FUNCTIONS)),
            relations=", ".join(map(literal, USED_RELATIONS)),
        )
        with self._read_row("reading the missing grants", statement, deadline) as row:
            return read_grants(row, self.role)

    def signal(
        self,
        identities: Iterable[Identity],
        action: Action,
        deadline: Deadline,
        guards: Mapping[int, WaitGuard] = MappingProxyType({}),
    ) -> Iterator[Signal | TargetError]:
        """Signal the sessions that have not changed since the snapshot, in a pipeline.

        `guards`, by pid, say what must hold of each session's wait; without one it must not wait
        for a lock.

        Takes an identity just before sending its signal, and yields the answers in the same order;
        an error means that it is unknown whether the server sent that signal. Raises DeadlineError
        if nothing was sent. Any other TargetError means that it is unknown whether the unanswered
        signals were sent.
        """
        step = f"signalling ({action})"
        with self._expect_answer(step, deadline):
            if action not in self._signal_statements:
                guarded = _load_sql("signal").format(function=_SIGNAL_FUNCTIONS[action])
                self._signal_statements[action] = self._connection.prepare(guarded)
            executions = (
                _to_parameters(identity, guards.get(identity.pid, WaitGuard()))
                for identity in identities
            )
            statement = self._signal_statements[action]
            run_each = self._connection.run_each
            for answer in run_each(statement, executions, deadline, _ANSWER_SECONDS):
                if not isinstance(answer, DatabaseError):
                    yield read_signal(answer[0]) if answer else Signal.ESCAPED
                elif read_sqlstate(answer) == INSUFFICIENT_PRIVILEGE:
                    yield Signal.DENIED
                else:
                    yield translate_server_error(step, self._target.password, answer)

    def verify(
        self, signalled: Collection[tuple[Identity, Action]], deadline: Deadline
    ) -> Verification:
        """Find the sessions that remain, or still run their cancelled query. Raises TargetError."""
        step = "verifying"
        with self._expect_answer(step, deadline):
            if self._verify_statement is None:
                self._verify_statement = self._connection.prepare(
                    _load_sql("verify").format(is_transient=_write_is_transient())
                )
            (row,) = self._verify_statement.run(
                pids=[identity.pid for identity, _ in signalled],
                starts=[identity.backend_start for identity, _ in signalled],
                changes=[
                    (identity.state_change or "") if action is Action.CANCEL else ""
                    for identity, action in signalled
                ],
            )
        with self._decode_answer(step, deadline):
            return read_verification(row)

    @contextmanager
    def _run_for_row(
        self, step: str, statement: str, deadline: Deadline, answer_bytes: int = _ANSWER_BYTES
    ) -> Iterator[Row]:
        """Read a row as `_read_row` does; an error for lack of a privilege has the grants."""
        try:
            with self._read_row(step, statement, deadline, answer_bytes) as row:
                yield row
        except TargetError as error:
            grants: Sequence[str] = ()
            if error.code == INSUFFICIENT_PRIVILEGE:
                with suppress(TargetError):
                    grants = self.find_missing_grants(deadline)
            if not grants:
                raise
            where = f"In database {self._target.database}, as a superuser or the master user: "
            hint = where + " ".join(grants)
            raise TargetError(error.code, error.cause, hint, step=error.step) from None

    @contextmanager
    def _read_row(
        self, step: str, statement: str, deadline: Deadline, answer_bytes: int = _ANSWER_BYTES
    ) -> Iterator[Row]:
        """Run a statement that answers one row, and decode the row in the block."""
        with self._expect_answer(step, deadline, answer_bytes):
            row = self._connection.run_for_row(statement)
        with self._decode_answer(step, deadline):
            yield row

    @contextmanager
    def _decode_answer(self, step: str, deadline: Deadline) -> Iterator[None]:
        try:
            with self._connection.decode_answer(deadline):
                yield
        except NoMemoryLeftError:
            raise explain_no_memory(step) from None

    @contextmanager
    def _expect_answer(
        self, step: str, deadline: Deadline, answer_bytes: int = _ANSWER_BYTES
    ) -> Iterator[None]:
        """Bound the time and the size of the answer to the statement in the block."""
        deadline.check()
        self._connection.allow(deadline.capped_at(_ANSWER_SECONDS), answer_bytes)
        with translate_errors(step, self._target.password, is_connected=True):
            yield


def _is_crowded(snapshot: Snapshot) -> bool:
    """Return whether visible sessions use so many slots that the report names their holders."""
    visible = snapshot.slots.used - snapshot.hidden
    return visible / max(1, snapshot.slots.usable) >= HOLDERS_FROM


@lru_cache(maxsize=100)  # a run has one policy, and writing it takes 0.09 ms for each target
def _write_snapshot(
    idle_floors: str, *, waits: bool, locks: bool, query_ends: bool, has_query_id: bool
) -> str:
    """Write snapshot.sql with the parts that a scope needs; `idle_floors` as JSON."""
    sizes = {"query_bytes": QUERY_BYTES, "query_end_bytes": QUERY_END_BYTES}
    columns = _load_sql("session_columns").format(
        query_id="a.query_id" if has_query_id else "NULL",
        locks="coalesce(l.locks, 0)" if locks else "NULL",
        query_end=_load_sql("query_end").format(**sizes) if query_ends else "NULL",
        **sizes,
    )
    by_name = {name: value for value, name in _COLUMN.findall(columns)}
    return _load_sql("snapshot").format(
        is_transient=_write_is_transient(),
        columns=", ".join(by_name[name] for name in SESSION_COLUMNS),
        idle_for=literal(idle_floors),
        waits=_load_sql("waits") if waits else "NULL",
        locks=_load_sql("locks") if locks else "",
    )


_COLUMN: Final = re.compile(r"(.+?) AS (\w+),(?:\n|$)", re.DOTALL)


def _write_is_transient() -> str:
    return _load_sql("transient_sessions").format(own_name=literal(f"{APPLICATION_NAME}%"))


def _to_parameters(identity: Identity, guard: WaitGuard) -> dict[str, object]:
    return {
        **asdict(identity),
        "state": identity.state.value,
        **guard._asdict(),
        "none_of": list(guard.none_of),  # the driver would send a tuple as a row
    }


@cache
def _load_sql(name: str) -> str:
    text = (files("session_reaper.postgres") / "queries" / f"{name}.sql").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
