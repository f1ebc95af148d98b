"""A way to a server that takes 10 ms in each direction, or another time, in a process of its own.

Its processor time and its interpreter lock are then not those of what is measured. Run as a program
with the server's port and the seconds each way, it tells its own port, and for each line that it gets what passed since the
line before: the round trips of each connection, and its own processor time in seconds.

A round trip is a turn from what the client sends to what the server answers, if the client goes on
after that, including its Terminate message (a server may answer it, but no client waits for that).
One more is TCP's own handshake, which the proxy makes at once: to make up for that, the first that
the client says is under way for as much longer as the handshake would have taken.

The proxy delays and does not serialise: each chunk has a timer of its own, and any number of them is
under way. `echo_times` measures that.
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
# epoll waits whole milliseconds, select does not, but takes no more than 1,024 files.
_FINE_BELOW = 0.010  # seconds each way
_CHUNK = 65_536  # bytes
_ECHOES = 50
_BACKLOG = 256  # connections that begin at the same moment


class Distance:
    """The proxy's process, as seen from ours."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin
        assert process.stdout
        self._asked, self._answers = process.stdin, process.stdout
        self.port = int(self._answers.readline())

    def passed(self) -> tuple[list[int], float]:
        """Since this was last asked: each connection's round trips, the proxy's processor seconds."""
        print(file=self._asked, flush=True)
        round_trips, processor = json.loads(self._answers.readline())
        return round_trips, processor


@contextmanager
def distance(port: int, one_way: float = ONE_WAY) -> Iterator[Distance]:
    """A proxy to this port of the loopback, until the block ends."""
    command = [sys.executable, "-m", "tests.benchmarks.distance", str(port), str(one_way)]
    with subprocess.Popen(  # noqa: S603 -- this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Distance(process)


def echo_times(one_way: float) -> tuple[float, float]:
    """Measure the way itself: seconds until one byte is back (median), and until 1 MB is."""
    with (
        socket.create_server((HOST, 0)) as listener,
        distance(listener.getsockname()[1], one_way) as way,
        socket.create_connection((HOST, way.port)) as near,
    ):
        far, _ = listener.accept()
        with far:
            echoing = Thread(target=_echo, args=(far,))
            echoing.start()
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _echo_time(near, 1)  # the first one is longer by TCP's handshake
            byte = statistics.median(_echo_time(near, 1) for _ in range(_ECHOES))
            megabyte = _echo_time(near, 1_000_000)
            near.shutdown(socket.SHUT_WR)
            echoing.join()
    return byte, megabyte


def _echo(connection: socket.socket) -> None:
    while data := connection.recv(_CHUNK):
        connection.sendall(data)


def _echo_time(connection: socket.socket, size: int) -> float:
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
    left: asyncio.Event = field(default_factory=asyncio.Event)  # by the client
    _answered: bool = False

    def heard(self, *, client: bool) -> None:
        """Somebody says something."""
        self.round_trips += self._answered and client
        self._answered = not client


class _Proxy:
    def __init__(self, port: int, one_way: float) -> None:
        self._port = port
        self._one_way = one_way
        self._connections: list[_Connection] = []
        self._leading: set[asyncio.Task[None] | None] = set()  # the loop itself holds tasks weakly

    async def serve(self) -> None:
        server = await asyncio.start_server(self._lead, HOST, 0, backlog=_BACKLOG)
        _tell(server.sockets[0].getsockname()[1])
        before = time.process_time()
        while await asyncio.to_thread(sys.stdin.readline):
            found, self._connections = self._connections, []
            for each in found:
                await each.left.wait()  # its last word may still be unread
            now = time.process_time()
            _tell([[each.round_trips for each in found], now - before])
            before = now

    async def _lead(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connection = _Connection(established=asyncio.get_running_loop().time() + 2 * self._one_way)
        self._connections.append(connection)
        task = asyncio.current_task()
        self._leading.add(task)
        server, to_server = await asyncio.open_connection(HOST, self._port)
        await asyncio.gather(
            self._carry(client, to_server, connection, client=True),
            self._carry(server, to_client, connection, client=False),
        )
        self._leading.discard(task)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        connection: _Connection,
        *,
        client: bool,
    ) -> None:
        """Pass all on, each chunk on its own clock: many are under way at the same time."""
        loop = asyncio.get_running_loop()
        under_way: deque[bytes] = deque()

        def arrive() -> None:
            chunk = under_way.popleft()  # the next in turn, whichever timer it was
            sink.write(chunk) if chunk else sink.close()

        def send(chunk: bytes) -> None:
            under_way.append(chunk)
            loop.call_at(max(loop.time(), connection.established) + self._one_way, arrive)

        with suppress(OSError):
            while chunk := await source.read(_CHUNK):
                connection.heard(client=client)
                send(chunk)
        if client:
            connection.left.set()
        send(b"")


def _tell(answer: object) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def _loop(one_way: float) -> asyncio.AbstractEventLoop:
    fine = one_way < _FINE_BELOW
    return asyncio.SelectorEventLoop(SelectSelector() if fine else DefaultSelector())


def main() -> None:
    """Serve until the standard input is closed."""
    port, one_way = int(sys.argv[1]), float(sys.argv[2])
    with asyncio.Runner(loop_factory=lambda: _loop(one_way)) as runner:
        runner.run(_Proxy(port, one_way).serve())


if __name__ == "__main__":
    main()
