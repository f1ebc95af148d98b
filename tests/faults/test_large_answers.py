"""A hundred servers with the largest allowed answers do not exhaust the function's memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.answers import EMPTY_SNAPSHOT, HOLDERS, session_row
from tests.faults.peak_memory import PeakMemory
from tests.frontend import message
from tests.integration.wire import Impostor

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from threading import Event

SERVERS = 100
SESSIONS = 6500
MOST_MEBIBYTES = 350.0  # of the function's 512
READY = b"Z\0\0\0\x05I"
WELCOME = b"R\0\0\0\x08\0\0\0\0" + READY


def _write_document(**changes: object) -> bytes:
    counts = {"max": 20_000, "used": 20_000}
    return json.dumps({**EMPTY_SNAPSHOT, **counts, **changes}, ensure_ascii=False).encode()


def _make_sessions(number: int, query: str) -> Sequence[Sequence[object]]:
    return [session_row(pid=pid, query=f"{pid:05}{query}") for pid in range(1, number + 1)]


ANSWERS = {
    "queries of 2,000 bytes": lambda: _write_document(
        sessions=_make_sessions(SESSIONS, "x" * 1990)
    ),
    "queries of four bytes a character": lambda: _write_document(
        sessions=_make_sessions(SESSIONS, "\U0001f600" + "x" * 1990)
    ),
    "20,000 sessions": lambda: _write_document(sessions=_make_sessions(20_000, "")),
    "one text": lambda: _write_document(junk="\U0001f600" + "x" * 15_000_000),
    "texts beside numbers": lambda: b'""11' * 3_900_000,
    "a million values": lambda: _write_document(junk=[{}] * 990_000, text="\U0001f600" * 2_500_000),
}


def _write_reply(document: bytes) -> bytes:
    column = message(b"T", struct.pack("!H", 1) + b"answer\0" + bytes(18))
    row = message(b"D", struct.pack("!Hi", 1, len(document)) + document)
    return column + row + message(b"C", b"SELECT 1\0") + READY


def _measure_peak(document: bytes, servers: int) -> PeakMemory:
    """Measure a process that takes the snapshots of a number of servers at once."""
    replies = [WELCOME, _write_reply(document), _write_reply(json.dumps(HOLDERS).encode())]

    def answer(connection: socket.socket, _: Event) -> None:
        for reply in replies:
            connection.recv(65536)
            connection.sendall(reply)
        connection.recv(65536)

    with Impostor(answer) as impostor:
        process = subprocess.run(  # noqa: S603 -- this module's own program
            [sys.executable, "-m", "tests.faults.large_answers", str(impostor.port), str(servers)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(["functions", "."])},
            cwd=Path(__file__).parents[2],
        )
    return PeakMemory(**json.loads(process.stdout))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hundred_large_answers_fit_into_the_function(name: str) -> None:
    found = _measure_peak(ANSWERS[name](), SERVERS)
    assert sum(found.outcomes.values()) == SERVERS
    assert found.outcomes.keys() <= {"ok", "answer", "deadline", "memory", "timeout"}
    assert found.mebibytes < MOST_MEBIBYTES, found


def test_a_hundred_small_answers_all_succeed() -> None:
    found = _measure_peak(_write_document(sessions=_make_sessions(40, "x" * 200)), SERVERS)
    assert found.outcomes == {"ok": SERVERS}
