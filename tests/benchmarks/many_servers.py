"""Any number of PostgreSQL servers, 10 ms away in each direction, that replay the answers of a real one.

A thousand real servers do not fit on one machine, and one server cannot take their place: a login
and a snapshot take three times as much of PostgreSQL's processor time as of the function's. So
`record` logs in to a real server and takes the snapshot of a quiet run. `ManyServers` makes the TLS
handshake of each connection, and SCRAM with a salt of each server. Everything else is what the real
server sent, after the time that it took, but with a start time of each server, because the function
identifies servers by it.

The servers share a few processes and ports; the name of the database selects the server. The
processes count their processor time and the snapshots, so that the function's report can be
compared with them.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any, Final

from session_reaper.deadline import Deadline
from session_reaper.postgres.server import Server as Connection
from session_reaper.runs.policy_source import load_policy
from session_reaper.targets.secret_document import parse_secret, resolve_targets
from session_reaper.targets.target import RdsListing, Secret

from infra.local.postgres import HOST, Server, Tls
from tests.benchmarks.distance import ONE_WAY
from tests.frontend import message

ITERATIONS: Final = 4096  # PostgreSQL's default of scram_iterations
_BACKLOG: Final = 4096  # the kernel's limit; a connection beyond it is tried again a second later
_CHUNK: Final = 65_536  # bytes
_SECONDS: Final = 10.0  # until a login or a statement has failed
_STARTED: Final = re.compile(rb'"started" : (\d+)')
_HEAD: Final = struct.Struct("!ci")
_SASL, _SASL_CONTINUE, _SASL_FINAL = 10, 11, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The answers of a real server to a login and to a quiet run's snapshot, and how long each took."""

    ready: bytes
    snapshot: bytes
    login_seconds: float
    snapshot_seconds: float


class ManyServers:
    """Our side of the servers' processes."""

    def __init__(self, processes: "Sequence[subprocess.Popen[str]]") -> None:
        self._processes = processes
        self.ports = [int(_read(process)) for process in processes]

    def find_port(self, number: int) -> int:
        """Return the port of the server with this number."""
        return self.ports[number % len(self.ports)]

    def take_measurements(self) -> tuple[int, float]:
        """Return the number of snapshots and the processor seconds since the last call."""
        for process in self._processes:
            assert process.stdin
            print(file=process.stdin, flush=True)
        answers = [json.loads(_read(process)) for process in self._processes]
        return sum(taken for taken, _ in answers), sum(seconds for _, seconds in answers)


def _read(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()


@contextmanager
def run_servers(
    recording: Recording, tls: Tls, password: str, count: int, processes: int = 2
) -> Iterator[ManyServers]:
    """Run `count` servers until the block ends; the role has this password on each."""
    command = [sys.executable, "-m", "tests.benchmarks.many_servers"]
    given = {
        "certificate": str(tls.certificate),
        "key": str(tls.key),
        "password": password,
        "count": count,
        **{
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in asdict(recording).items()
        },
    }
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603 -- this file
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                )
            )
            for _ in range(processes)
        ]
        for process in started:
            assert process.stdin
            print(json.dumps(given), file=process.stdin, flush=True)
        yield ManyServers(started)


def record(database: Server, secret: Mapping[str, object]) -> Recording:
    """Record what a server answers to a login and to the snapshot of a quiet run."""
    _record_once(database, secret)  # the first login fills the server's caches
    return _record_once(database, secret)


def _record_once(database: Server, secret: Mapping[str, object]) -> Recording:
    scope = load_policy("", Deadline(_SECONDS)).scope()
    with socket.create_server((HOST, 0)) as listener:
        plain = {**secret, "port": listener.getsockname()[1], "sslmode": "disable"}
        parsed = parse_secret(Secret(name="", arn="", text=json.dumps(plain)), whole_clusters=False)
        (target,) = resolve_targets(parsed, RdsListing())
        answers: list[bytes] = []
        listening = Thread(target=_pass_on, args=(listener, database.port, answers))
        listening.start()
        began = time.perf_counter()
        connection = Connection.connect(target, Deadline(_SECONDS))
        logged_in, login = len(answers), time.perf_counter()
        connection.take_snapshot(scope, Deadline(_SECONDS))
        taken = time.perf_counter()
        connection.close()
        listening.join()
    return Recording(
        ready=_find_ready(b"".join(answers[:logged_in])),
        snapshot=b"".join(answers[logged_in:]),
        login_seconds=login - began,
        snapshot_seconds=taken - login,
    )


def _pass_on(listener: socket.socket, port: int, answers: list[bytes]) -> None:
    """Pass one connection on to a server, and keep the answers of the server."""
    client, _ = listener.accept()
    with client, socket.create_connection((HOST, port)) as server:

        def ask() -> None:
            with suppress(OSError):
                while data := client.recv(_CHUNK):
                    server.sendall(data)

        asking = Thread(target=ask)
        asking.start()
        with suppress(OSError):
            while data := server.recv(_CHUNK):
                answers.append(data)
                client.sendall(data)
        asking.join()


def _find_ready(answers: bytes) -> bytes:
    """Return the messages of a login from AuthenticationOk on."""
    return answers[answers.index(message(b"R", struct.pack("!i", 0))) :]


# -- in the processes of their own -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Host:
    """One server: the salt of its role's password, its key, and its answer to the snapshot."""

    salt: bytes
    server_key: bytes
    snapshot: bytes


class _Hosts:
    def __init__(self, given: dict[str, Any]) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(given["certificate"], given["key"])
        self.context.num_tickets = 0  # PostgreSQL sends none
        self.ready = bytes.fromhex(given["ready"])
        self.login_seconds: float = given["login_seconds"]
        self.snapshot_seconds: float = given["snapshot_seconds"]
        self.taken = 0
        snapshot, password = bytes.fromhex(given["snapshot"]), given["password"].encode()
        self._hosts = [_make_host(number, snapshot, password) for number in range(given["count"])]

    def find(self, database: str) -> _Host:
        return self._hosts[int(database.rpartition("-")[2])]


def _make_host(number: int, snapshot: bytes, password: bytes) -> _Host:
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, ITERATIONS)

    def set_start(found: re.Match[bytes]) -> bytes:  # of the same length
        return b'"started" : %d' % (int(found[1]) + number)

    return _Host(
        salt=salt,
        server_key=hmac.digest(salted, b"Server Key", "sha256"),
        snapshot=_STARTED.sub(set_start, snapshot),
    )


class _Session(asyncio.Protocol):
    """One connection; each answer is sent after a whole round trip, because requests arrive at once."""

    def __init__(self, hosts: _Hosts) -> None:
        self._hosts = hosts
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._is_secure = False
        self._unread = b""
        self._signed: list[str] = []  # the messages that SCRAM signs
        self._host: _Host | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        # The handshake of TCP took no time, so the first answer waits for that round trip, too.
        self._last = self._loop.time() + 2 * ONE_WAY

    def data_received(self, data: bytes) -> None:
        if self._tls is None:  # the client asks for TLS
            self._tls = self._hosts.context.wrap_bio(
                self._incoming, self._outgoing, server_side=True
            )
            self._send(b"S", self._last - self._loop.time())
            return
        self._incoming.write(data)
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            if not self._is_secure:
                self._tls.do_handshake()
                self._is_secure = True
            while True:
                self._unread += self._tls.read(_CHUNK)
                self._answer_all()
        self._flush()

    def _answer_all(self) -> None:
        while self._unread:
            kind = b"" if self._host is None else self._unread[:1]
            if len(self._unread) < len(kind) + 4:
                return
            (length,) = struct.unpack_from("!i", self._unread, len(kind))
            end = len(kind) + length
            if len(self._unread) < end:
                return
            body, self._unread = self._unread[len(kind) + 4 : end], self._unread[end:]
            self._answer(kind, body)

    def _answer(self, kind: bytes, body: bytes) -> None:
        if self._host is None:
            names = body[4:].decode().split("\0")
            self._host = self._hosts.find(names[names.index("database") + 1])
            mechanisms = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
            self._reply(_make_authentication(_SASL, mechanisms), self._hosts.login_seconds)
        elif kind == b"p" and not self._signed:
            first = body[body.index(b"\0") + 5 :].decode().split(",", 2)[2]
            nonce = first.partition("r=")[2] + secrets.token_hex(9)
            salt = base64.b64encode(self._host.salt).decode()
            self._signed = [first, f"r={nonce},s={salt},i={ITERATIONS}"]
            self._reply(_make_authentication(_SASL_CONTINUE, self._signed[1].encode()))
        elif kind == b"p":
            signed = ",".join([*self._signed, body.decode().rpartition(",p=")[0]])
            signature = hmac.digest(self._host.server_key, signed.encode(), "sha256")
            proof = b"v=" + base64.b64encode(signature)
            self._reply(_make_authentication(_SASL_FINAL, proof) + self._hosts.ready)
        elif kind == b"Q":
            self._hosts.taken += 1
            self._reply(self._host.snapshot, self._hosts.snapshot_seconds)
        elif kind == b"X":
            self._transport.close()
        else:
            raise ValueError(kind)  # a quiet run sends nothing else

    def _reply(self, messages: bytes, seconds: float = 0) -> None:
        assert self._tls
        self._tls.write(messages)
        self._flush(seconds)

    def _flush(self, seconds: float = 0) -> None:
        if data := self._outgoing.read():
            self._send(data, seconds)

    def _send(self, data: bytes, seconds: float) -> None:
        # Later than the answer before, so that the loop keeps their order.
        at = max(self._last + 1e-6, self._loop.time() + 2 * ONE_WAY + seconds)
        self._last = at
        self._loop.call_at(at, self._transport.write, data)


def _make_authentication(code: int, body: bytes) -> bytes:
    return message(b"R", struct.pack("!i", code) + body)


async def _serve(given: dict[str, Any]) -> None:
    hosts = _Hosts(given)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Session(hosts), HOST, 0, backlog=_BACKLOG)
    _print_json(server.sockets[0].getsockname()[1])
    seconds = time.process_time()
    while await asyncio.to_thread(sys.stdin.readline):
        now = time.process_time()
        _print_json([hosts.taken, now - seconds])
        hosts.taken, seconds = 0, now


def _print_json(answer: object) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.stdin.readline())))
