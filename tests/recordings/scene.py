"""A server with sessions of every kind that a rule tells apart, each known by its application name."""

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
"""In every query as a literal: none may be in a recording."""

PASSWORD = "sw0rdfish"  # noqa: S105 -- of a server that lives for seconds
_SECONDS = 10.0  # patience with a session until it is what it should be
_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ"
_READ = "SELECT * FROM orders WHERE note = 'cAnArY'"
_WRITE = "UPDATE orders SET note = 'cAnArY' WHERE id = {}"


def send_query(connection: Connection, sql: str) -> None:
    """Send a statement and do not wait for its answer."""
    connection._usock.sendall(_message(b"Q", _text(sql)))  # noqa: SLF001 -- pg8000 has no other way


def send_unfinished(connection: Connection, sql: str) -> None:
    """Execute a statement and never say Sync, as a driver does that died in between: it is wedged."""
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
    """Sessions on one server, kept until they are hung up."""

    def __init__(self, server: Server, root: Connection, stack: ExitStack) -> None:
        self._server = server
        self._root = root
        self._stack = stack

    def session(self, application: str, *queries: str, role: str = "app") -> Connection:
        """A new session that has run these, one after another; an error is no matter."""
        way: dict[str, str] = {"password": PASSWORD}
        if role == "postgres":
            way = {"unix_sock": self._server.unix_sock}
        connection = self._server.connect(user=role, application_name=application, **way)
        self._stack.callback(connection.close)
        for query in queries:
            with suppress(pg8000.native.DatabaseError):
                connection.run(query)
        return connection

    def becomes(self, application: str, condition: str) -> None:
        """Wait until pg_stat_activity shows the session so."""
        over = time.monotonic() + _SECONDS
        while not self._root.run(
            f"SELECT FROM pg_stat_activity WHERE application_name = :name AND {condition}",
            name=application,
        ):
            if time.monotonic() > over:
                raise AssertionError(f"{application} does not become {condition}")
            time.sleep(0.01)


@contextmanager
def scene(server: Server) -> Iterator[None]:
    """Play it."""
    with ExitStack() as stack:
        root = stack.enter_context(server.connect(unix_sock=server.unix_sock))
        root.run("CREATE TABLE orders (id integer PRIMARY KEY, note text)")
        root.run("INSERT INTO orders SELECT generate_series(1, 9)")
        root.run("CREATE ROLE app; CREATE ROLE reporting; GRANT ALL ON orders TO app, reporting")
        for role in ("app", "reporting"):
            root.run(f"ALTER ROLE {role} LOGIN PASSWORD {literal(PASSWORD)}")
        made = Scene(server, root, stack)
        _leaks(made)
        _healthy(made)
        _chain(made)
        _protected(made)
        for _ in range(5):  # whoever has an xid or a snapshot by now holds vacuum back by these
            root.run("SELECT txid_current()")
        time.sleep(0.5)  # every age is above any threshold of a test
        yield


def _leaks(made: Scene) -> None:
    made.session("leak-begin", "BEGIN")
    made.session("leak-read", "BEGIN", _READ)
    made.session("leak-xid", "BEGIN", _WRITE.format(1))
    made.session("leak-xmin", _SNAPSHOT, _READ)
    made.session("leak-aborted", "BEGIN", f"SELECT CAST('{CANARY}' AS integer)")
    wedged = made.session("wedged")
    send_unfinished(wedged, _READ)
    made.becomes("wedged", "state = 'active' AND wait_event = 'ClientRead'")


def _healthy(made: Scene) -> None:
    for number in (1, 2, 3):
        made.session(f"pool-{number}", _READ)
    send_query(made.session("report", role="reporting"), f"SELECT pg_sleep(600), '{CANARY}'")
    made.becomes("report", "wait_event = 'PgSleep'")
    send_query(made.session("copy"), f"COPY orders FROM STDIN (NULL '{CANARY}')")
    made.becomes("copy", "state = 'active' AND wait_event = 'ClientRead'")


def _chain(made: Scene) -> None:
    """The second waiter waits on the first, who waits on the root."""
    made.session("root", "BEGIN", _WRITE.format(2))
    send_query(made.session("waiter-1", "BEGIN", _WRITE.format(3)), _WRITE.format(2))
    made.becomes("waiter-1", "wait_event_type = 'Lock'")
    send_query(made.session("waiter-2", "BEGIN"), _WRITE.format(3))
    made.becomes("waiter-2", "wait_event_type = 'Lock'")


def _protected(made: Scene) -> None:
    made.session("pg_dump", _SNAPSHOT, _READ)
    made.session("superuser", "BEGIN", _WRITE.format(4), role="postgres")
    made.session("reaper-by-hand", "BEGIN", f"SELECT '{CANARY}'", role="session_reaper")
