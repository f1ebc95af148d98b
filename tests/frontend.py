"""The client's side of PostgreSQL's protocol, reduced to what tests under load need.

A driver needs seconds to open a thousand sessions. Here each session sends its start-up message and
its first statement in one write, so that the server works on all of them at the same time. Sessions
use the Unix socket, where the test servers ask for no password.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

READY = b"Z"
ERROR = b"E"
ROW = b"D"
KEY_DATA = b"K"
_PROTOCOL_3_0 = 196_608
_HEAD = 5  # bytes: a message's type and its length
_CHUNK = 65_536  # bytes
_PATIENCE = 60.0  # seconds until a server that does not answer fails the test


def message(kind: bytes, body: bytes) -> bytes:
    """Frame one message; the start-up message has an empty kind."""
    return kind + struct.pack("!i", len(body) + 4) + body


def startup(user: str, application: str) -> bytes:
    """Return the message that begins a session in the database `postgres`."""
    names = {"user": user, "database": "postgres", "application_name": application}
    pairs = "".join(f"{name}\0{value}\0" for name, value in names.items())
    return message(b"", struct.pack("!i", _PROTOCOL_3_0) + pairs.encode() + b"\0")


def query(sql: str) -> bytes:
    """Return the message that runs statements by the simple protocol."""
    return message(b"Q", sql.encode() + b"\0")


def parse(name: str, sql: str) -> bytes:
    """Return the message that prepares a statement; the server infers the parameters' types."""
    return message(b"P", f"{name}\0{sql}\0".encode() + struct.pack("!h", 0))


def bind_and_execute(name: str, values: Sequence[str | None]) -> bytes:
    """Return the messages that run a prepared statement with text values."""
    fields = b"".join(
        struct.pack("!i", -1)
        if value is None
        else struct.pack("!i", len(value.encode())) + value.encode()
        for value in values
    )
    bind = f"\0{name}\0".encode() + struct.pack("!hh", 0, len(values)) + fields
    return message(b"B", bind + struct.pack("!h", 0)) + message(b"E", b"\0" + struct.pack("!i", 0))


def sync() -> bytes:
    """Return the message that ends a transaction of the extended protocol."""
    return message(b"S", b"")


def sqlstate(body: bytes) -> str:
    """Return the SQLSTATE of an error's body."""
    fields = {field[:1]: field[1:] for field in body.split(b"\0") if field}
    return fields.get(b"C", b"").decode()


def columns(body: bytes) -> list[str | None]:
    """Return the text values of a row's body."""
    (number,) = struct.unpack_from("!h", body)
    values: list[str | None] = []
    at = 2
    for _ in range(number):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode())
        at += max(length, 0)
    return values


class Messages:
    """Splits what a server sends into messages, however the network cuts it."""

    def __init__(self) -> None:
        self._data = b""

    def add(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take more bytes; yield the kind and the body of each message that is complete."""
        data = self._data + data
        at = 0
        while len(data) - at >= _HEAD:
            end = at + 1 + int.from_bytes(data[at + 1 : at + _HEAD])
            if end > len(data):
                break
            yield data[at : at + 1], data[at + _HEAD : end]
            at = end
        self._data = data[at:]


class Frontend:
    """One blocking session over the Unix socket."""

    def __init__(self, unix_sock: str, *, user: str = "app", application: str = "leak") -> None:
        self.pid = 0
        self._messages = Messages()
        self._unanswered = 1
        self._socket = socket(AF_UNIX)
        self._socket.settimeout(_PATIENCE)
        try:
            self._socket.connect(unix_sock)
            self._socket.sendall(startup(user, application))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes, answers: int = 1) -> None:
        """Send messages that the server ends with so many ReadyForQuery messages."""
        self._unanswered += answers
        self._socket.sendall(data)

    def receive(self) -> list[list[str | None]]:
        """Return the rows of every answer outstanding. Raises RuntimeError for an error."""
        rows: list[list[str | None]] = []
        while self._unanswered:
            data = self._socket.recv(_CHUNK)
            if not data:
                raise RuntimeError("the server closed the connection")
            for kind, body in self._messages.add(data):
                if kind == READY:
                    self._unanswered -= 1
                elif kind == KEY_DATA:
                    (self.pid,) = struct.unpack_from("!i", body)
                elif kind == ROW:
                    rows.append(columns(body))
                elif kind == ERROR:
                    raise RuntimeError(body.replace(b"\0", b" ").decode(errors="replace"))
        return rows

    def run(self, sql: str) -> list[list[str | None]]:
        """Run statements and return their rows."""
        self.send(query(sql))
        return self.receive()

    def close(self) -> None:
        """Close the socket; the server rolls back what the session has begun."""
        with suppress(OSError):
            self._socket.close()


def open_sessions(
    unix_sock: str, number: int, sql: str = "BEGIN", *, user: str = "app"
) -> list[Frontend]:
    """Open sessions that have run these statements, by seven applications in turn."""
    sessions: list[Frontend] = []
    try:
        for each in range(number):
            session = Frontend(unix_sock, user=user, application=f"leak-{each % 7}")
            sessions.append(session)
            session.send(query(sql))
        for session in sessions:
            session.receive()
    except BaseException:
        close_sessions(sessions)
        raise
    return sessions


def close_sessions(sessions: Sequence[Frontend]) -> None:
    """Close every session's socket."""
    for session in sessions:
        session.close()
