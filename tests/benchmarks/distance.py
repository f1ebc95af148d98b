"""A proxy to a server that delays each direction, by 10 ms or another time, in a process of its own.

So it takes neither processor time nor the interpreter's lock from the process that is measured. Run
as a program with the server's port and the seconds each way, it prints its own port, and then, for
each line on its standard input, the round trips of each connection and its own processor seconds
since the line before.

A round trip is counted when the client sends again after an answer of the server, also for the
Terminate message. One more is the handshake of TCP, which the proxy completes at once; instead, it
delays the client's first bytes by as long as the handshake would have taken.

Each chunk has a timer of its own, so any number of them can be under way. `measure_echoes` shows
that.
"""

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from selectors import DefaultSelector, SelectSelector
from threading import Thread

from infra.local.postgres import HOST

ONE_WAY = 0.010  # seconds
# epoll waits for whole milliseconds; select can wait shorter, but takes at most 1,024 files.
_FINE_BELOW = 0.010  # seconds each way
_CHUNK = 65_536  # bytes
_ECHOES = 50
_BACKLOG = 256  # connections that begin at the same moment


class Distance:
    """Our side of the proxy's process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin
        assert process.stdout
        self._requests, self._answers = process.stdin, process.stdout
        self.port = int(self._answers.readline())

    def take_measurements(self) -> tuple[list[int], float]:
        """Return the round trips of each connection, and the proxy's processor seconds, since the last call."""
        print(file=self._requests, flush=True)
        round_trips, processor = json.loads(self._answers.readline())
        return round_trips, processor


@contextmanager
def run_proxy(port: int, one_way: float = ONE_WAY) -> Iterator[Distance]:
    """Run a proxy to this port of the loopback until the block ends."""
    command = [sys.executable, "-m", "tests.benchmarks.distance", str(port), str(one_way)]
    with subprocess.Popen(  # noqa: S603 -- this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Distance(process)


def measure_echoes(one_way: float) -> tuple[float, float]:
    """Measure the seconds until one byte is echoed (median), and until 1 MB is."""
    with (
        socket.create_server((HOST, 0)) as listener,
        run_proxy(listener.getsockname()[1], one_way) as way,
        socket.create_connection((HOST, way.port)) as near,
    ):
        far, _ = listener.accept()
        with far:
            echoing = Thread(target=_echo, args=(far,))
            echoing.start()
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _measure_echo(near, 1)  # the first one is longer by TCP's handshake
            byte = statistics.median(_measure_echo(near, 1) for _ in range(_ECHOES))
            megabyte = _measure_echo(near, 1_000_000)
            near.shutdown(socket.SHUT_WR)
            echoing.join()
    return byte, megabyte


def _echo(connection: socket.socket) -> None:
    while data := connection.recv(_CHUNK):
        connection.sendall(data)


def _measure_echo(connection: socket.socket, size: int) -> float:
    started = time.perf_counter()
    connection.sendall(bytes(size))
    while size:
        size -= len(connection.recv(_CHUNK))
    return time.perf_counter() - started


# -- in the process of its own ---------------------------------------------------------------------


@dataclass(slots=True)
class _Connection:
    """The facts about one connection; `established` on the loop's clock."""

    established: float
    round_trips: int = 1  # TCP's own
    has_left: asyncio.Event = field(default_factory=asyncio.Event)  # by the client
    _is_answered: bool = False

    def count_turn(self, *, client: bool) -> None:
        """Count a round trip if the client sends after an answer."""
        self.round_trips += self._is_answered and client
        self._is_answered = not client


class _Proxy:
    def __init__(self, port: int, one_way: float) -> None:
        self._port = port
        self._one_way = one_way
        self._connections: list[_Connection] = []
        self._tasks: set[asyncio.Task[None] | None] = set()  # the loop itself holds tasks weakly

    async def serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, HOST, 0, backlog=_BACKLOG)
        _print_json(server.sockets[0].getsockname()[1])
        before = time.process_time()
        while await asyncio.to_thread(sys.stdin.readline):
            found, self._connections = self._connections, []
            for each in found:
                await each.has_left.wait()  # its last message may still be unread
            now = time.process_time()
            _print_json([[each.round_trips for each in found], now - before])
            before = now

    async def _pass_on(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connection = _Connection(established=asyncio.get_running_loop().time() + 2 * self._one_way)
        self._connections.append(connection)
        task = asyncio.current_task()
        self._tasks.add(task)
        server, to_server = await asyncio.open_connection(HOST, self._port)
        await asyncio.gather(
            self._carry(client, to_server, connection, client=True),
            self._carry(server, to_client, connection, client=False),
        )
        self._tasks.discard(task)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        connection: _Connection,
        *,
        client: bool,
    ) -> None:
        """Pass on every chunk after a delay of its own, so that many are under way at the same time."""
        loop = asyncio.get_running_loop()
        under_way: deque[bytes] = deque()

        def arrive() -> None:
            chunk = under_way.popleft()  # the oldest one, whichever timer this is
            sink.write(chunk) if chunk else sink.close()

        def send(chunk: bytes) -> None:
            under_way.append(chunk)
            loop.call_at(max(loop.time(), connection.established) + self._one_way, arrive)

        with suppress(OSError):
            while chunk := await source.read(_CHUNK):
                connection.count_turn(client=client)
                send(chunk)
        if client:
            connection.has_left.set()
        send(b"")


def _print_json(answer: object) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def _make_loop(one_way: float) -> asyncio.AbstractEventLoop:
    fine = one_way < _FINE_BELOW
    return asyncio.SelectorEventLoop(SelectSelector() if fine else DefaultSelector())


def main() -> None:
    """Serve until the standard input is closed."""
    port, one_way = int(sys.argv[1]), float(sys.argv[2])
    with asyncio.Runner(loop_factory=lambda: _make_loop(one_way)) as runner:
        runner.run(_Proxy(port, one_way).serve())


if __name__ == "__main__":
    main()
