"""Many sessions in one thread: an event loop, and the protocol of a session that never blocks."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from selectors import EVENT_READ, DefaultSelector
from socket import AF_UNIX, socket
from time import monotonic

from tests.frontend import ERROR, KEY_DATA, READY, ROW, Messages, columns, query, sqlstate, startup

_CHUNK = 65_536  # bytes

Callback = Callable[[], None]


class Loop:
    """Calls back when a socket is readable or a time has come, until `is_over` is set."""

    def __init__(self) -> None:
        self.is_over = False
        self._selector = DefaultSelector()
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = count()

    def watch(self, file: socket | int, callback: Callback) -> None:
        """Call back whenever the file is readable."""
        self._selector.register(file, EVENT_READ, callback)

    def unwatch(self, file: socket) -> None:
        """Stop watching a file."""
        self._selector.unregister(file)

    def call_after(self, seconds: float, callback: Callback) -> None:
        """Call back once, after so many seconds."""
        heapq.heappush(self._timers, (monotonic() + seconds, next(self._order), callback))

    def stop_with_stdin(self) -> None:
        """Set `is_over` when the parent closes this process's standard input."""
        self.watch(sys.stdin.fileno(), self.stop)

    def stop(self) -> None:
        """Set `is_over`."""
        self.is_over = True

    def run(self) -> None:
        """Call back until the loop is over."""
        while not self.is_over:
            timeout = max(0.0, self._timers[0][0] - monotonic()) if self._timers else None
            for key, _ in self._selector.select(timeout):
                key.data()
            now = monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()


class Client:
    """A client that opens sessions in turn over the Unix socket; subclasses define what each does."""

    def __init__(self, loop: Loop, unix_sock: str, application: str) -> None:
        self.loop = loop
        self.pid = 0
        self.sent_at = 0.0  # when the last statement was sent, on the monotonic clock
        self._unix_sock = unix_sock
        self._application = application
        self._messages = Messages()
        self._socket = socket(AF_UNIX)
        self._is_open = False

    def connect(self) -> None:
        """Begin a session; `on_ready` is called once the server has accepted it."""
        self._messages = Messages()
        self._socket = socket(AF_UNIX)
        self._socket.connect(self._unix_sock)
        self._socket.sendall(startup("app", self._application))
        self._socket.settimeout(0)
        self.loop.watch(self._socket, self._read)
        self._is_open = True

    def send(self, sql: str) -> None:
        """Send statements."""
        self.sent_at = monotonic()
        with suppress(OSError):  # the session has been terminated, which the next read shows
            self._socket.send(query(sql))  # shorter than any socket's buffer

    def close(self) -> None:
        """Close the socket."""
        if self._is_open:
            self.loop.unwatch(self._socket)
            self._socket.close()
            self._is_open = False

    def on_ready(self, status: bytes) -> None:
        """Go on: the server waits for a statement, with this transaction status."""

    def on_row(self, values: list[str | None]) -> None:
        """Take a row of an answer."""

    def on_error(self, code: str) -> None:
        """Take the SQLSTATE of an error."""

    def on_closed(self) -> None:
        """Go on: the server has closed the connection."""

    def _read(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for kind, body in self._messages.add(data):
            if kind == READY:
                self.on_ready(body)
            elif kind == ROW:
                self.on_row(columns(body))
            elif kind == ERROR:
                self.on_error(sqlstate(body))
            elif kind == KEY_DATA:
                self.pid = int.from_bytes(body[:4])
        if not data:
            self.close()
            self.on_closed()
