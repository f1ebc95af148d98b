"""A server with a session of every kind that a rule can match, identified by its application name."""

from __future__ import annotations

import struct
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pg8000.native
from pg8000.native import literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pg8000.native import Connection

    from infra.local.postgres import Server

CANARY = "cAnArY"
"""A literal in every query; a recording must not contain it."""

PASSWORD = "sw0rdfish"  # noqa: S105 -- of a server that lives for seconds
_SECONDS = 10.0  # maximum wait for a session to reach its state
_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ"
_READ = "SELECT * FROM orders WHERE note = 'cAnArY'"
_WRITE = "UPDATE orders SET note = 'cAnArY' WHERE id = {}"


def send_query(connection: Connection, sql: str) -> None:
    """Send a statement and do not wait for its answer."""
    connection._usock.sendall(_message(b"Q", _text(sql)))  # noqa: SLF001 -- pg8000 has no other way


def send_unfinished(connection: Connection, sql: str) -> None:
    """Execute a statement without Sync, as a driver that dies does, so that the session is wedged."""
    connection._usock.sendall(  # noqa: SLF001 -- as above
        _message(b"P", _text("") + _text(sql) + struct.pack("!h", 0))  # Parse, no parameter types
        + _message(b"B", _text("") + _text("") + struct.pack("!hhh", 0, 0, 0))  # Bind
        + _message(b"E", _text("") + struct.pack("!i", 0))  # Execute, all rows
        + _message(b"H", b"")  # Flush
    )


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


class Scene:
    """Sessions on one server, open until the stack closes."""

    def __init__(self, server: Server, root: Connection, stack: ExitStack) -> None:
        self._server = server
        self._root = root
        self._stack = stack

    def open_session(self, application: str, *queries: str, role: str = "app") -> Connection:
        """Open a session and run the queries, ignoring their errors."""
        options: dict[str, str] = {"password": PASSWORD}
        if role == "postgres":
            options = {"unix_sock": self._server.unix_sock}
        connection = self._server.connect(user=role, application_name=application, **options)
        self._stack.callback(connection.close)
        for query in queries:
            with suppress(pg8000.native.DatabaseError):
                connection.run(query)
        return connection

    def wait_until(self, application: str, condition: str) -> None:
        """Wait until the session's row in pg_stat_activity meets the condition."""
        deadline = time.monotonic() + _SECONDS
        while not self._root.run(
            f"SELECT FROM pg_stat_activity WHERE application_name = :name AND {condition}",
            name=application,
        ):
            if time.monotonic() > deadline:
                raise AssertionError(f"{application} does not become {condition}")
            time.sleep(0.01)


@contextmanager
def open_scene(server: Server) -> Iterator[None]:
    """Create the sessions and keep them open."""
    with ExitStack() as stack:
        root = stack.enter_context(server.connect(unix_sock=server.unix_sock))
        root.run("CREATE TABLE orders (id integer PRIMARY KEY, note text)")
        root.run("INSERT INTO orders SELECT generate_series(1, 9)")
        root.run("CREATE ROLE app; CREATE ROLE reporting; GRANT ALL ON orders TO app, reporting")
        for role in ("app", "reporting"):
            root.run(f"ALTER ROLE {role} LOGIN PASSWORD {literal(PASSWORD)}")
        opened = Scene(server, root, stack)
        _open_leaks(opened)
        _open_healthy(opened)
        _open_chain(opened)
        _open_protected(opened)
        for _ in range(5):  # the sessions with an xid or a snapshot hold vacuum back by these
            root.run("SELECT txid_current()")
        time.sleep(0.5)  # so that every age reaches the thresholds
        yield


def _open_leaks(opened: Scene) -> None:
    opened.open_session("leak-begin", "BEGIN")
    opened.open_session("leak-read", "BEGIN", _READ)
    opened.open_session("leak-xid", "BEGIN", _WRITE.format(1))
    opened.open_session("leak-xmin", _SNAPSHOT, _READ)
    opened.open_session("leak-aborted", "BEGIN", f"SELECT CAST('{CANARY}' AS integer)")
    wedged = opened.open_session("wedged")
    send_unfinished(wedged, _READ)
    opened.wait_until("wedged", "state = 'active' AND wait_event = 'ClientRead'")


def _open_healthy(opened: Scene) -> None:
    for number in (1, 2, 3):
        opened.open_session(f"pool-{number}", _READ)
    send_query(opened.open_session("report", role="reporting"), f"SELECT pg_sleep(600), '{CANARY}'")
    opened.wait_until("report", "wait_event = 'PgSleep'")
    send_query(opened.open_session("copy"), f"COPY orders FROM STDIN (NULL '{CANARY}')")
    opened.wait_until("copy", "state = 'active' AND wait_event = 'ClientRead'")


def _open_chain(opened: Scene) -> None:
    """Create a chain: the second waiter waits for the first, the first for the root."""
    opened.open_session("root", "BEGIN", _WRITE.format(2))
    send_query(opened.open_session("waiter-1", "BEGIN", _WRITE.format(3)), _WRITE.format(2))
    opened.wait_until("waiter-1", "wait_event_type = 'Lock'")
    send_query(opened.open_session("waiter-2", "BEGIN"), _WRITE.format(3))
    opened.wait_until("waiter-2", "wait_event_type = 'Lock'")


def _open_protected(opened: Scene) -> None:
    opened.open_session("pg_dump", _SNAPSHOT, _READ)
    opened.open_session("superuser", "BEGIN", _WRITE.format(4), role="postgres")
    opened.open_session("reaper-by-hand", "BEGIN", f"SELECT '{CANARY}'", role="session_reaper")
