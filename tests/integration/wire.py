"""Servers that misbehave: a proxy that follows the PostgreSQL protocol, and servers that only pretend."""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count, cycle
from select import select
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from pg8000.native import Connection

from infra.local.postgres import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TICK = 0.02  # seconds between two checks whether the test is over
ENDLESS_SECONDS: Final = 90.0
"""The time that a server hangs or drips: it ends, but later than any deadline of a test."""
_UNTYPED, _TYPED = 4, 5  # bytes before a message's body
_ENDS_REQUEST = b"QSpX"


class Moment(Enum):
    """A request of the reaper to a server."""

    STARTUP = auto()
    LOGIN = auto()
    SNAPSHOT = auto()
    PREPARE_TERMINATE = auto()
    TERMINATE = auto()
    PREPARE_CANCEL = auto()
    CANCEL = auto()
    PREPARE_VERIFY = auto()
    VERIFY = auto()
    DISCONNECT = auto()


class Action(Enum):
    """The behaviour of a server that does not answer."""

    HANG = auto()
    RESET = auto()
    CLOSE = auto()
    DRIP = auto()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An action at a moment; with `lost` the server gets the request, and its answer is dropped."""

    action: Action
    moment: Moment
    lost: bool = False
    nth: int = 1


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset, as a crashed host or a firewall does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Impostor:
    """Listens on a free port and handles each connection by `answer`, in a thread."""

    def __init__(self, answer: Callable[[socket.socket, Event], None] | None = None) -> None:
        self._answer = answer or hang
        self._stop = Event()
        self._threads: list[Thread] = []
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(_TICK)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0

    def __enter__(self) -> Self:
        acceptor = Thread(target=self._accept)
        self._threads.append(acceptor)
        acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self.connections += 1
                thread = Thread(target=self._handle, args=(connection,))
                thread.start()
                self._threads.append(thread)

    def _handle(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._answer(connection, self._stop)


def hang(connection: socket.socket, stop: Event) -> None:
    """Read everything and send nothing until the client disconnects."""
    end = time.monotonic() + ENDLESS_SECONDS
    while not stop.is_set() and time.monotonic() < end:
        if select([connection], [], [], _TICK)[0] and not connection.recv(65536):
            return


def drip(text: bytes, seconds: float = 0.1) -> Callable[[socket.socket, Event], None]:
    """Send the text byte by byte, over and over."""

    def answer(connection: socket.socket, stop: Event) -> None:
        connection.recv(65536)
        end = time.monotonic() + ENDLESS_SECONDS
        for byte in cycle(text):
            connection.sendall(bytes([byte]))
            if stop.wait(seconds) or time.monotonic() > end:
                return

    return answer


def relay(
    client: socket.socket,
    request: bytes,
    port: int,
    stop: Event,
    says: Callable[[bytes], bytes] = bytes,
) -> None:
    """Send a request to a real server, and forward until one side disconnects."""
    with socket.create_connection((HOST, port)) as server:
        server.sendall(request)
        while not stop.is_set():
            for ready in select([client, server], [], [], _TICK)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                if ready is server:
                    client.sendall(says(data))
                else:
                    server.sendall(data)


def pump(client: socket.socket, behind: socket.socket, stop: Event) -> None:
    """Forward between two connections, of which the first may have TLS, until one side disconnects."""
    while not stop.is_set():
        pending = isinstance(client, ssl.SSLSocket) and client.pending()
        ready = [client] if pending else select([client, behind], [], [], 0.02)[0]
        for source, sink in ((client, behind), (behind, client)):
            if source in ready:
                data = source.recv(65536)
                if not data:
                    return
                sink.sendall(data)


def say(text: bytes) -> Callable[[socket.socket, Event], None]:
    """Send the text and close."""

    def answer(connection: socket.socket, _: Event) -> None:
        connection.recv(65536)
        connection.sendall(text)

    return answer


def http(status: str, body: bytes, seconds: float = 0) -> Callable[[socket.socket, Event], None]:
    """Answer a request that was read before, after a delay, and close."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    def answer(connection: socket.socket, stop: Event) -> None:
        stop.wait(seconds)
        connection.sendall(head.encode() + body)

    return answer


def drip_body(seconds: float = 0.05) -> Callable[[socket.socket, Event], None]:
    """Answer a request that was read before with a body that arrives byte by byte, without end."""

    def answer(connection: socket.socket, stop: Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        end = time.monotonic() + ENDLESS_SECONDS
        while not stop.wait(seconds) and time.monotonic() < end:
            connection.sendall(b" ")

    return answer


def page_without_end(page: str) -> Callable[[socket.socket, Event], None]:
    """Answer each request with another page, with a new token in place of TOKEN."""
    numbers = count()

    def answer(connection: socket.socket, stop: Event) -> None:
        body = page.replace("TOKEN", f"page-{next(numbers)}")
        http("200 OK", body.encode(), 0.05)(connection, stop)

    return answer


def say_and_hang(text: bytes) -> Callable[[socket.socket, Event], None]:
    def answer(connection: socket.socket, stop: Event) -> None:
        connection.recv(65536)
        connection.sendall(text)
        hang(connection, stop)

    return answer


def hang_up(connection: socket.socket, _: Event) -> None:
    reset(connection)


@dataclass(frozen=True, kw_only=True)
class Detour:
    """Another server, for all connections but the first, or from a moment on in each."""

    port: int
    moment: Moment | None = None
    nth: int = 1

    def begins_at(self, moment: Moment, number: int) -> bool:
        return (self.moment, self.nth) == (moment, number)


class Proxy(Impostor):
    """Forwards between the reaper and a real server.

    `before` is called before a request is forwarded. `faults` apply to the first connection, or
    with `every` to all. `says` maps the server's data to what the reaper receives; `hears` is
    called with the reaper's data. `detour` leads to another server.
    """

    def __init__(  # noqa: PLR0913 -- a test gives one or two of them
        self,
        port: int,
        *faults: Fault,
        every: bool = False,
        before: Callable[[Moment], None] | None = None,
        says: Callable[[bytes], bytes] = bytes,
        hears: Callable[[bytes], object] = bytes,
        detour: Detour | None = None,
    ) -> None:
        super().__init__(self._forward)
        self._upstream_port = port
        self._faults = faults
        self._every = every
        self._before = before
        self._says = says
        self._hears = hears
        self._detour = detour
        self.seen: list[Moment] = []

    def _forward(self, client: socket.socket, stop: Event) -> None:
        with ExitStack() as stack:
            conversation = _Conversation(self, client, stack, self._port())
            while not stop.is_set() and conversation.forward(stop):
                pass

    def _port(self) -> int:
        is_first = self.connections == 1
        if is_first or self._detour is None or self._detour.moment is not None:
            return self._upstream_port
        return self._detour.port

    def listen(self, request: bytes) -> None:
        self._hears(request)

    def hear(self, data: bytes) -> bytes:
        return self._says(data)

    def meet(self, moment: Moment) -> None:
        self.seen.append(moment)
        if self._before:
            self._before(moment)

    def detour_at(self, moment: Moment, number: int) -> Detour | None:
        detour = self._detour
        return detour if detour and detour.begins_at(moment, number) else None

    def fault_at(self, moment: Moment, number: int) -> Fault | None:
        for fault in self._faults if self._every or self.connections == 1 else ():
            if (fault.moment, fault.nth) == (moment, number):
                return fault
        return None


class _Conversation:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, stack: ExitStack, port: int) -> None:
        self._proxy = proxy
        self._client = client
        self._stack = stack
        self._server = stack.enter_context(socket.create_connection((HOST, port)))
        self._requests = _Requests()
        self._counts: dict[Moment, int] = {}
        self._pending: Fault | None = None

    def forward(self, stop: Event) -> bool:
        """Forward the data that has arrived; return whether the connection is still open."""
        ready, _, _ = select([self._client, self._server], [], [], _TICK)
        if self._server in ready and not self._answer(stop):
            return False
        return self._client not in ready or self._ask(stop)

    def _answer(self, stop: Event) -> bool:
        data = self._server.recv(65536)
        if self._pending:
            _misbehave(self._pending.action, self._client, data, stop)
            return False
        self._client.sendall(self._proxy.hear(data))
        return data != b""

    def _ask(self, stop: Event) -> bool:
        data = self._client.recv(65536)
        for moment, request in self._requests.add(data):
            number = self._counts[moment] = self._counts.get(moment, 0) + 1
            self._proxy.meet(moment)
            self._proxy.listen(request)
            fault = self._proxy.fault_at(moment, number)
            if fault and not fault.lost:
                _misbehave(fault.action, self._client, b"", stop)
                return False
            self._pending = self._pending or fault
            if detour := self._proxy.detour_at(moment, number):
                self._server = _open_pooled(detour.port, self._stack)
            self._server.sendall(request)
        return data != b""


def _open_pooled(port: int, stack: ExitStack) -> socket.socket:
    """Open a connection of the reaper's role, as a pooler holds them."""
    options: dict[str, Any] = {"password": "sw0rdfish", "database": "postgres"}
    connection = Connection("session_reaper", host=HOST, port=port, **options)
    sock: socket.socket = connection._usock  # noqa: SLF001 -- the conversation goes on without pg8000
    stack.callback(sock.close)
    stack.callback(connection._sock.close)  # noqa: SLF001 -- as above
    return sock


def _misbehave(action: Action, client: socket.socket, data: bytes, stop: Event) -> None:
    if action is Action.RESET:
        reset(client)
    elif action is Action.HANG:
        hang(client, stop)
    elif action is Action.DRIP:
        for byte in data or b"N" + struct.pack("!i", 1_000_000) + bytes(1000):
            client.sendall(bytes([byte]))
            if stop.wait(0.1):
                return


_STATEMENTS = (
    (b"pg_terminate_backend", Moment.PREPARE_TERMINATE, Moment.TERMINATE),
    (b"pg_cancel_backend", Moment.PREPARE_CANCEL, Moment.CANCEL),
    (b"", Moment.PREPARE_VERIFY, Moment.VERIFY),
)


class _Requests:
    """Splits a client's data into requests, and finds the moment of each."""

    def __init__(self) -> None:
        self._data = b""
        self._logged_in = False
        self._request = b""
        self._moment: Moment | None = None
        self._prepared: dict[bytes, Moment] = {}

    def add(self, data: bytes) -> Iterator[tuple[Moment, bytes]]:
        self._data += data
        while message := self._message():
            self._request += message
            kind = message[:1] if self._logged_in else b""
            self._classify(kind, message)
            if not self._logged_in or kind in _ENDS_REQUEST:
                assert self._moment is not None
                yield self._moment, self._request
                self._request, self._moment = b"", None
                self._logged_in = True

    def _message(self) -> bytes:
        head = _TYPED if self._logged_in else _UNTYPED
        if len(self._data) < head:
            return b""
        (length,) = struct.unpack_from("!i", self._data, head - 4)
        whole = head - 4 + length
        if len(self._data) < whole:
            return b""
        message, self._data = self._data[:whole], self._data[whole:]
        return message

    def _classify(self, kind: bytes, message: bytes) -> None:
        if kind == b"P":
            name, statement, _ = message[_TYPED:].split(b"\0", 2)
            prepares, runs = next(
                moments for function, *moments in _STATEMENTS if function in statement
            )
            self._prepared[name], self._moment = runs, prepares
        elif kind == b"B":
            self._moment = self._prepared[message[_TYPED:].split(b"\0", 2)[1]]
        elif self._moment is None:
            self._moment = {
                b"": Moment.STARTUP,
                b"p": Moment.LOGIN,
                b"Q": Moment.SNAPSHOT,
                b"X": Moment.DISCONNECT,
            }.get(kind)


def _request(connection: socket.socket) -> bytes:
    """Read one HTTP request with its body."""
    request = connection.recv(65536)
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0:
        data = connection.recv(65536)
        if not data:
            break
        request += data
        missing -= len(data)
    return request


def aws_but_for(
    text: bytes, answer: Callable[[socket.socket, Event], None] | None = None
) -> Impostor:
    """Run the AWS stand-in, but answer calls whose head contains the text by `answer`; never by default."""
    answer = answer or hang
    real = urlsplit(os.environ["AWS_ENDPOINT_URL"])

    def gateway(connection: socket.socket, stop: Event) -> None:
        head = _request(connection)
        if text in head:
            answer(connection, stop)
            return
        with socket.create_connection((real.hostname or "", real.port or 0)) as stand_in:
            stand_in.sendall(head)
            while not stop.is_set():
                for here in select([connection, stand_in], [], [], _TICK)[0]:
                    data = here.recv(65536)
                    if not data:
                        return
                    (stand_in if here is connection else connection).sendall(data)

    return Impostor(gateway)


def unused_port() -> int:
    """Return a port that no server listens on."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    time.sleep(0)
    return port


class RewriteRows:
    """Passes a server's data on, with the single values of its rows changed.

    Give it to `Proxy` as `says`, for one connection at a time.
    """

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self._change = change
        self._data = b""

    def __call__(self, data: bytes) -> bytes:
        self._data += data
        changed = b""
        while len(self._data) >= _TYPED:
            (length,) = struct.unpack_from("!i", self._data, 1)
            if len(self._data) < 1 + length:
                break
            message, self._data = self._data[: 1 + length], self._data[1 + length :]
            changed += self._rewrite(message)
        return changed

    def _rewrite(self, message: bytes) -> bytes:
        value = single_value(message)
        if value is None:
            return message
        value = self._change(value)
        return b"D" + struct.pack("!iHi", 10 + len(value), 1, len(value)) + value


def as_another_server(
    number: int, change: Callable[[bytes], bytes] = bytes
) -> Callable[[bytes], bytes]:
    """Change a server's identity too, so that several proxies of one server are several servers."""

    def add(found: re.Match[bytes]) -> bytes:
        return found[1] + str(int(found[2]) + number).encode()

    return lambda value: re.sub(rb'("started" ?: ?)(\d+)', add, change(value), count=1)


def single_value(message: bytes) -> bytes | None:
    """Return the value of a row that has one; None for any other message."""
    if message[:1] != b"D" or struct.unpack_from("!H", message, 5) != (1,):
        return None
    (length,) = struct.unpack_from("!i", message, 7)
    return None if length == -1 else message[11:]


class FailSignal(RewriteRows):
    """Answers the nth signal with an error, although the server has sent the signal."""

    def __init__(self, nth: int, sqlstate: str) -> None:
        super().__init__(bytes)
        self._nth = nth
        self._sqlstate = sqlstate
        self._signals = 0

    def _rewrite(self, message: bytes) -> bytes:
        self._signals += single_value(message) == b"t"
        if self._signals != self._nth or single_value(message) != b"t":
            return message
        fields = b"SERROR\0C" + self._sqlstate.encode() + b"\0Mout of order\0\0"
        return b"E" + struct.pack("!i", 4 + len(fields)) + fields
