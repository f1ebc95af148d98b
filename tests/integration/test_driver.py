"""The driver's additions to pg8000, and each use of pg8000's internals, checked on the wire."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import time
from base64 import b64decode, b64encode
from dataclasses import replace
from typing import TYPE_CHECKING

import pg8000
import pytest
from pg8000.core import EXECUTE_MSG, SYNC_MSG
from session_reaper.deadline import Deadline
from session_reaper.errors import DeadlineError, TargetError
from session_reaper.policy.enums import Action
from session_reaper.postgres import driver
from session_reaper.postgres.budget import MemoryBudget
from session_reaper.postgres.rows import estimate_memory
from session_reaper.postgres.server import Server
from session_reaper.postgres.signals import Signal
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.sessions.snapshot import ALL_SESSIONS, NO_SESSIONS
from session_reaper.settings import read_settings
from session_reaper.targets.target import AuthMethod, ChannelBinding, SslMode, Target

from infra.local.postgres import HOST
from tests.answers import EMPTY_SNAPSHOT, session_row
from tests.integration.stage import LEAK, PASSWORD, PATIENCE, until
from tests.integration.wire import Impostor, Moment, Proxy, drip

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from threading import Event

    from session_reaper.sessions.session import Identity

    from tests.integration.stage import Stage

OK = b"R\0\0\0\x08\0\0\0\0"
CLEAR_TEXT = b"R\0\0\0\x08\0\0\0\x03"
MD5 = b"R\0\0\0\x0c\0\0\0\x05salt"
READY = b"Z\0\0\0\x05I"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def row(value: bytes) -> bytes:
    return message(b"D", struct.pack("!Hi", 1, len(value)) + value)


COLUMN = message(b"T", struct.pack("!H", 1) + b"answer\0" + bytes(18))
SCRAM = message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0")


@pytest.fixture
def target(stage: Stage) -> Target:
    stage.target()
    (found,) = TargetDiscovery(read_settings(), bypass_cache=True).find([], Deadline(10))
    assert isinstance(found, Target)
    return found


def test_pg8000_has_the_version_whose_internals_we_use() -> None:
    assert pg8000.__version__ == "1.31.6"


# -- authentication --------------------------------------------------------------------------------


class AuthServer:
    """A server that sends authentication requests, and records what it receives."""

    def __init__(self, *requests: bytes, then: bytes = OK + READY) -> None:
        self._requests = requests
        self._then = then
        self.received = b""

    def __call__(self, connection: socket.socket, _: Event) -> None:
        connection.recv(65536)
        for request in self._requests:
            connection.sendall(request)
            self.received += connection.recv(65536)
        connection.sendall(self._then)
        self.received += connection.recv(65536)


def connect(
    target: Target, *requests: bytes, then: bytes = OK + READY
) -> tuple[TargetError | None, bytes]:
    server = AuthServer(*requests, then=then)
    with Impostor(server) as impostor:
        try:
            Server.connect(replace(target, port=impostor.port), Deadline(30)).close()
        except TargetError as error:
            return error, server.received
    return None, server.received


def test_a_clear_text_password_is_not_sent_to_an_unverified_server(target: Target) -> None:
    error, received = connect(target, CLEAR_TEXT)
    assert error is not None
    assert error.code == "auth"
    assert "clear text" in error.message
    assert "verify-full" in error.hint
    assert PASSWORD.encode() not in received


def test_md5_is_allowed_in_an_unverified_mode(target: Target) -> None:
    error, received = connect(target, MD5)
    assert error is None
    assert b"md5" in received


@pytest.mark.parametrize(
    ("asked", "method"),
    [(MD5, AuthMethod.MD5), (SCRAM, AuthMethod.SCRAM_SHA_256), (b"", AuthMethod.NONE)],
)
def test_require_auth_refuses_every_other_method(
    target: Target, asked: bytes, method: AuthMethod
) -> None:
    allowed = frozenset({AuthMethod.PASSWORD})
    requests = [asked] if asked else []
    error, received = connect(replace(target, allowed_auth=allowed), *requests)
    assert error is not None
    assert error.code == "auth"
    assert f"by {method}; require_auth allows password" in error.message
    assert b"md5" not in received
    assert b"n,,n=" not in received


@pytest.mark.parametrize("asked", [CLEAR_TEXT, MD5, SCRAM, b""])
def test_required_channel_binding_refuses_every_method_without_it(
    target: Target, asked: bytes
) -> None:
    required = replace(target, channel_binding=ChannelBinding.REQUIRE)
    requests = [asked] if asked else []
    error, received = connect(required, *requests)
    assert error is not None
    assert "channel binding" in error.message
    assert b"md5" not in received
    assert b"n=" not in received


def test_a_server_that_skips_its_scram_proof_is_refused(target: Target) -> None:
    """It may not know the password, and could be any server."""
    error, _ = connect(target, SCRAM)
    assert error is not None
    assert "without proving" in error.message


@pytest.mark.parametrize("requests", [(), (SCRAM,), (MD5,)], ids=["at once", "SCRAM", "MD5"])
@pytest.mark.parametrize("then", [READY, READY + OK], ids=["alone", "before"])
def test_a_server_that_is_ready_without_authentication_is_refused(
    target: Target, requests: tuple[bytes, ...], then: bytes
) -> None:
    error, _ = connect(target, *requests, then=then)
    assert error is not None
    assert "without having authenticated" in error.message


def test_a_second_authentication_request_after_the_login_is_refused(target: Target) -> None:
    error, received = connect(target, then=OK + MD5 + READY)
    assert error is not None
    assert b"md5" not in received


def test_a_second_password_request_is_refused(target: Target) -> None:
    error, received = connect(target, MD5, MD5)
    assert error is not None
    assert received.count(b"md5") == 1


def test_an_error_does_not_repeat_the_server_s_scram_messages(target: Target) -> None:
    words = message(b"R", struct.pack("!i", 11) + b"r=CANARY,s=CANARY,i=CANARY")
    error, _ = connect(target, SCRAM, words)
    assert error is not None
    assert "CANARY" not in error.message + error.hint


@pytest.mark.parametrize("code", ["sw0rdfish", "4250", "425012", "28P01\n", "ab cd"])
def test_an_invalid_sqlstate_is_not_shown(target: Target, code: str) -> None:
    sent_by_server = message(b"E", f"SFATAL\0C{code}\0Mno\0\0".encode())
    error, _ = connect(target, sent_by_server)
    assert error is not None
    assert error.code == "XX000"


def test_a_password_in_a_long_message_of_the_server_is_not_shown(
    target: Target,
) -> None:
    sent_by_server = message(b"E", f"SFATAL\0C28000\0M{'x' * 495}{PASSWORD}{PASSWORD}\0\0".encode())
    error, _ = connect(target, sent_by_server)
    assert error is not None
    for length in range(4, len(PASSWORD)):
        assert PASSWORD[:length] not in error.message


# -- time and size ---------------------------------------------------------------------------------


def _make_answer(*parts: bytes, endless: bytes = b"") -> Callable[[socket.socket, Event], None]:
    """Accept every login, and answer the first statement with `parts`, then with `endless`."""

    def answer(connection: socket.socket, stop: Event) -> None:
        connection.recv(65536)
        connection.sendall(OK + READY)
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)
        while endless and not stop.is_set():
            connection.sendall(endless)

    return answer


_ENDLESS = {
    "endless value": ((COLUMN + b"D\x7f\xff\xff\xff\0\1\x7f\xff\xff\xf5",), bytes(65536)),
    "endless rows": ((COLUMN,), row(b"x" * 60_000)),
    "endless notices": ((), message(b"N", b"SNOTICE\0M" + b"x" * 60_000 + b"\0\0") * 4),
    "endless parameters": ((), message(b"S", b"client_encoding\0punycode\0") * 1000),
    "endless columns": ((), COLUMN * 1000),
}


@pytest.mark.parametrize("name", _ENDLESS)
def test_an_answer_that_exceeds_its_budget_ends_the_connection(target: Target, name: str) -> None:
    parts, endless = _ENDLESS[name]
    with Impostor(_make_answer(*parts, endless=endless)) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(60))
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(NO_SESSIONS, Deadline(120))
        server.close()
    assert raised.value.code in {"answer", "protocol"}


@pytest.mark.parametrize("length", [-1, 0, 3])
def test_a_message_length_below_four_is_refused(target: Target, length: int) -> None:
    with Impostor(_make_answer(b"N" + struct.pack("!i", length), endless=b"x")) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(60))
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(NO_SESSIONS, Deadline(60))
        server.close()
    assert raised.value.code == "protocol"


@pytest.mark.parametrize(
    "sent_by_server",
    [
        COLUMN + row(b"{}") + row(b"{}"),
        COLUMN + message(b"D", struct.pack("!Hi", 1, 100) + b"{}"),
        COLUMN + message(b"D", struct.pack("!Hi", 2, 2) + b"{}"),
        message(b"H", b"\0\0\1\0\0") + message(b"d", b"x"),
        message(b"G", b"\0\0\1\0\0"),
        READY,
        message(b"C", b"SELECT 0\0") + READY,
    ],
)
def test_an_answer_that_fits_none_of_our_statements_is_an_error_of_the_target(
    target: Target, sent_by_server: bytes
) -> None:
    with Impostor(_make_answer(sent_by_server)) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(60))
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(NO_SESSIONS, Deadline(30))
        server.close()
    assert raised.value.code in {"answer", "protocol", "connection"}


def test_a_login_byte_by_byte_ends_at_the_deadline(target: Target) -> None:
    with Impostor(drip(message(b"N", bytes(1000)), seconds=0.05)) as impostor:
        began = time.monotonic()
        with pytest.raises(TargetError) as raised:
            Server.connect(replace(target, port=impostor.port), Deadline(0.5))
    assert time.monotonic() - began < PATIENCE
    assert raised.value.code == "timeout"


def test_an_answer_byte_by_byte_ends_at_the_deadline(target: Target) -> None:
    def answer(connection: socket.socket, stop: Event) -> None:
        connection.recv(65536)
        connection.sendall(OK + READY)
        drip(COLUMN + row(b"x" * 1000), seconds=0.05)(connection, stop)

    with Impostor(answer) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(60))
        began = time.monotonic()
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(NO_SESSIONS, Deadline(0.5))
        assert time.monotonic() - began < PATIENCE
        server.close()
    assert raised.value.code == "timeout"


def test_a_large_answer_waits_for_memory_and_fails_at_the_deadline(target: Target) -> None:
    memory = MemoryBudget(400_000)
    memory.claim(150_000, Deadline(1))
    answer = _make_answer(COLUMN + row(b"x" * 140_000) + message(b"C", b"SELECT 1\0") + READY)
    with Impostor(answer) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(30), memory)
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(NO_SESSIONS, Deadline(2))
        server.close()
        assert raised.value.code == "memory"
        assert memory.available == 250_000
        memory.release(150_000)
        server = Server.connect(replace(target, port=impostor.port), Deadline(30), memory)
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(NO_SESSIONS, Deadline(30))
        server.close()
    assert raised.value.code == "answer"  # it arrived, and is invalid JSON
    assert memory.available == 400_000


@pytest.mark.parametrize("size", [10_000, 140_000])
def test_an_answer_waits_for_its_turn_to_be_decoded_until_the_deadline(
    target: Target, size: int
) -> None:
    memory = MemoryBudget(400_000)
    answer = _make_answer(COLUMN + row(b"x" * size) + message(b"C", b"SELECT 1\0") + READY)
    with Impostor(answer) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(30), memory)
        with memory.decode_in_turn(size, Deadline(0)), pytest.raises(DeadlineError):
            server.take_snapshot(NO_SESSIONS, Deadline(2))
        server.close()
    assert memory.available == 400_000


@pytest.mark.parametrize(
    "sent_by_server",
    [
        message(b"N", b"SNOTICE\0M" + b"x" * 70_000 + b"\0\0"),
        message(b"E", b"SERROR\0M" + b"x" * 70_000 + b"\0\0") + READY,
        COLUMN + row(b"x" * 70_000) + row(b"x" * 70_000),
    ],
    ids=["notice", "error", "second row"],
)
def test_only_one_row_of_an_answer_may_be_large(target: Target, sent_by_server: bytes) -> None:
    memory = MemoryBudget(1_000_000)
    with Impostor(_make_answer(sent_by_server)) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(30), memory)
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(NO_SESSIONS, Deadline(30))
        server.close()
    assert raised.value.code == "answer"
    assert memory.available == 1_000_000


def test_a_large_snapshot_claims_memory_for_each_session_until_it_is_deleted(
    stage: Stage, target: Target
) -> None:
    query = f"SELECT 1 -- {'x' * 1900}"
    for _ in range(30):
        stage.session(LEAK, query=query)
    memory = MemoryBudget(1_000_000)
    server = Server.connect(target, Deadline(30), memory)
    snapshot = server.take_snapshot(ALL_SESSIONS, Deadline(30))
    server.close()
    assert memory.available < 1_000_000 - 60_000
    last = snapshot.sessions[-1]
    del snapshot
    assert memory.available == 1_000_000 - estimate_memory(last)
    del last
    assert memory.available == 1_000_000


def _answer_with_holders(holders: bytes) -> Callable[[socket.socket, Event], None]:
    """Answer the statements of a large snapshot."""
    rows = [session_row(pid=pid, query="x" * 1900) for pid in range(1, 61)]
    snapshot = {**EMPTY_SNAPSHOT, "used": 90, "sessions": rows}
    answers = [json.dumps(snapshot).encode(), holders]

    def answer(connection: socket.socket, _stop: Event) -> None:
        connection.recv(65536)
        connection.sendall(OK + READY)
        for each in answers:
            connection.recv(65536)
            connection.sendall(COLUMN + row(each) + message(b"C", b"SELECT 1\0") + READY)

    return answer


def test_a_large_snapshot_whose_connection_is_lost_at_the_holders_keeps_no_memory(
    target: Target,
) -> None:
    memory = MemoryBudget(450_000)  # too little for a claim of 150,000 beside the sessions
    with Impostor(_answer_with_holders(b"x" * 150_000)) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(30), memory)
        with pytest.raises(TargetError) as raised:
            server.take_snapshot(ALL_SESSIONS, Deadline(30))
        server.close()
    assert raised.value.code == "answer"
    assert memory.available == 450_000


def test_a_snapshot_does_without_holders_that_cannot_be_read(target: Target) -> None:
    memory = MemoryBudget(450_000)
    with Impostor(_answer_with_holders(b'{"holders": [[]]}')) as impostor:
        server = Server.connect(replace(target, port=impostor.port), Deadline(30), memory)
        snapshot = server.take_snapshot(ALL_SESSIONS, Deadline(30))
        server.close()
    assert (len(snapshot.sessions), snapshot.holders) == (60, ())
    del snapshot
    assert memory.available == 450_000


# -- the pipeline ----------------------------------------------------------------------------------


@pytest.fixture
def reaper(target: Target) -> Iterator[Server]:
    server = Server.connect(target, Deadline(10))
    yield server
    server.close()


def _identities(reaper: Server, pids: set[int]) -> list[Identity]:
    snapshot = reaper.take_snapshot(ALL_SESSIONS, Deadline(10))
    return [s.identity for s in snapshot.sessions if s.identity.pid in pids]


@pytest.mark.every_major
def test_a_denied_signal_does_not_affect_the_others(stage: Stage, reaper: Server) -> None:
    victims = stage.sessions(5)
    ((root,),) = stage.root.run("SELECT pg_backend_pid()")
    identities = _identities(reaper, {victim.pid for victim in victims})
    (denied,) = _identities(reaper, {root})
    gone = replace(identities[0], backend_start="2020-01-01T00:00:00+00:00")
    order = [*identities[:2], denied, gone, *identities[2:]]
    stage.root.run("SELECT 1 AS canary")  # its identity changes
    (denied,) = _identities(reaper, {root})
    order[2] = denied
    signals = list(reaper.signal(order, Action.TERMINATE, Deadline(10)))
    sent = Signal.SENT
    assert signals == [sent, sent, Signal.DENIED, Signal.ESCAPED, sent, sent, sent]
    until(lambda: stage.survivors(victims) == [], "all victims are gone")


def test_every_signal_is_a_transaction_of_its_own(stage: Stage, target: Target) -> None:
    stage.sessions(3)
    sent: list[bytes] = []
    with Proxy(stage.server.port, hears=sent.append) as proxy:
        reaper = Server.connect(replace(target, port=proxy.port), Deadline(10))
        snapshot = reaper.take_snapshot(ALL_SESSIONS, Deadline(10))
        identities = [s.identity for s in snapshot.sessions if s.role == "app"]
        sent.clear()
        assert len(list(reaper.signal(identities, Action.TERMINATE, Deadline(10)))) == 3
        reaper.close()
    pipeline = b"".join(sent)
    assert pipeline.count(SYNC_MSG) == 4  # with that of the statement's preparation
    assert pipeline.count(EXECUTE_MSG + SYNC_MSG) == 3


def test_a_pipeline_has_a_bounded_number_of_unanswered_bytes(stage: Stage, target: Target) -> None:
    """Otherwise client and server could block each other, both writing and not reading."""
    victim = stage.session(LEAK)
    sizes: list[int] = []
    answers = bytearray()
    most = 0

    def hears(request: bytes) -> None:
        nonlocal most
        sizes.append(len(request))
        most = max(most, sum(sizes[answers.count(READY) :]))

    def says(answer: bytes) -> bytes:
        answers.extend(answer)
        return answer

    with Proxy(stage.server.port, hears=hears, says=says) as proxy:
        reaper = Server.connect(replace(target, port=proxy.port), Deadline(10))
        (identity,) = _identities(reaper, {victim.pid})
        other = replace(identity, state_change="2020-01-01T00:00:00+00:00")
        assert list(reaper.signal([other], Action.TERMINATE, Deadline(10))) == [Signal.ESCAPED]
        sizes, answers, most = [], bytearray(), 0
        signals = list(reaper.signal([other] * 1000, Action.TERMINATE, Deadline(30)))
        reaper.close()
    assert signals == [Signal.ESCAPED] * 1000
    assert driver.MAX_UNANSWERED / 2 < most <= driver.MAX_UNANSWERED + max(sizes)
    assert victim.is_there


def test_an_identity_is_taken_just_before_its_signal_is_sent(stage: Stage, reaper: Server) -> None:
    """When its time is over, a run can stop sending, and knows which signals it sent."""
    victim = stage.session(LEAK)
    (identity,) = _identities(reaper, {victim.pid})
    other = replace(identity, state_change="2020-01-01T00:00:00+00:00")
    taken = 0

    def identities() -> Iterator[Identity]:
        nonlocal taken
        for _ in range(2000):
            taken += 1
            yield other

    signals = reaper.signal(identities(), Action.TERMINATE, Deadline(30))
    next(signals)
    assert 50 < taken < 400
    assert len(list(signals)) == 1999


def test_twenty_sessions_are_terminated_in_one_pipeline(stage: Stage) -> None:
    victims = stage.sessions(20)
    seen: list[Moment] = []
    with Proxy(stage.server.port, before=seen.append) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert set(run.outcomes().values()) == {"terminated"}
    assert stage.survivors(victims) == []
    assert seen.count(Moment.TERMINATE) == 20


# -- SCRAM -----------------------------------------------------------------------------------------


class ScramServer:
    """A server that completes SCRAM, and records the client's first message."""

    def __init__(self, iterations: int = 4096) -> None:
        self.first = ""
        self._iterations = iterations

    def __call__(self, connection: socket.socket, _: Event) -> None:
        connection.recv(65536)
        connection.sendall(SCRAM)
        received = connection.recv(65536)
        self.first = received[received.index(b"n,") :].decode()
        bare = self.first.split(",", 2)[2]
        nonce = bare.split("r=")[1] + "server"
        salt = b"0123456789abcdef"
        server_first = f"r={nonce},s={b64encode(salt).decode()},i={self._iterations}"
        connection.sendall(message(b"R", struct.pack("!i", 11) + server_first.encode()))
        final = connection.recv(65536)[5:].decode()
        if not final:  # the client refuses
            return
        without_proof, proof = final.rsplit(",p=", 1)
        salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, self._iterations)
        sent_by_server = f"{bare},{server_first},{without_proof}".encode()
        key = hmac.digest(salted, b"Server Key", "sha256")
        signature = b64encode(hmac.digest(key, sent_by_server, "sha256"))
        assert len(b64decode(proof)) == 32
        connection.sendall(message(b"R", struct.pack("!i", 12) + b"v=" + signature) + OK + READY)
        connection.recv(65536)


def test_a_server_that_proves_that_it_knows_the_password_is_accepted(target: Target) -> None:
    server = ScramServer()
    with Impostor(server) as impostor:
        only = replace(target, allowed_auth=frozenset({AuthMethod.SCRAM_SHA_256}))
        Server.connect(replace(only, port=impostor.port, host=HOST), Deadline(60)).close()
    assert server.first.startswith("n,,")
    assert target.sslmode is SslMode.DISABLE


def test_a_server_that_requests_too_many_scram_iterations_is_refused(target: Target) -> None:
    """Deriving the key for these takes seconds, and no deadline interrupts it."""
    with (
        Impostor(ScramServer(iterations=10_000_000)) as impostor,
        pytest.raises(TargetError, match="SCRAM iterations") as raised,
    ):
        Server.connect(replace(target, port=impostor.port, host=HOST), Deadline(60))
    assert "scram_iterations" in raised.value.hint
