"""Runs the command as people do: in a process of its own, with the environment of a test only."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

import pexpect

from tests.integration.fork_client import (
    SECONDS,
    ForkedTerminal,
    environment,
    start,
)
from tests.integration.stage import PASSWORD, REAPER, Stage, until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMMAND = (sys.executable, "-m", "session_reaper_cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The output of a command, and its exit status."""

    out: str
    err: str
    status: int


def run(home: Path, *arguments: str, **environ: str) -> Done:
    """Run the command without a terminal."""
    return _run(environment(home, environ), arguments)


def run_unread(home: Path, *arguments: str, stream: str) -> Done:
    """Run the command while no process reads this stream of it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return _run(environment(home, {}), arguments, unread={stream: writing})
    finally:
        os.close(writing)


def run_closed(home: Path, *arguments: str, closed: Sequence[int]) -> Done:
    """Run the command with streams of these numbers closed."""
    return _run(environment(home, {}), arguments, closed=closed)


def _run(
    environ: Mapping[str, str],
    arguments: Sequence[str],
    *,
    unread: Mapping[str, int] | None = None,
    closed: Sequence[int] = (),
) -> Done:
    with Path(os.devnull).open() as nothing, TemporaryFile() as out, TemporaryFile() as err:
        own = {"stdin": nothing.fileno(), "stdout": out.fileno(), "stderr": err.fileno()}
        streams = list((own | dict(unread or {})).values())
        fork = start(arguments, environ, streams, closed=closed)
        status = fork.wait(2 * SECONDS)
        if status is None:
            os.kill(fork.pid, signal.SIGKILL)
            raise AssertionError(f"not within {2 * SECONDS} s: {arguments}")
        return Done(out=_read(out), err=_read(err), status=os.waitstatus_to_exitcode(status))


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def on_terminal(
    home: Path, *arguments: str, columns: int = 100, by: Sequence[str] = (), **environ: str
) -> pexpect.spawn[str]:
    """Start the command on a terminal of its own; `by`: a command that starts it."""
    if by:
        return spawn(home, *by, *COMMAND, *arguments, columns=columns, **environ)
    return _spawn(ForkedTerminal, home, COMMAND[0], *arguments, columns=columns, **environ)


def spawn(home: Path, *words: str, columns: int = 100, **environ: str) -> pexpect.spawn[str]:
    """Start any command on a terminal of its own, in the folder `home`."""
    return _spawn(pexpect.spawn, home, *words, columns=columns, **environ)


def _spawn(
    make: type[pexpect.spawn[str]], home: Path, *words: str, columns: int, **environ: str
) -> pexpect.spawn[str]:
    return make(
        words[0],
        list(words[1:]),
        env=environment(home, {"TERM": "xterm-256color"} | environ),
        cwd=home,
        dimensions=(40, columns),
        timeout=SECONDS,
        encoding="utf-8",
        codec_errors="replace",
        preexec_fn=restore_signals,
    )


def restore_signals() -> None:
    """Undo what `nohup` or a shell's `&` did to the tests, and the command would inherit."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(terminal: pexpect.spawn[str]) -> tuple[str, int]:
    """Wait for the end of a command; return what it printed since, and its exit status."""
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus is not None, terminal.signalstatus
    return terminal.before or "", terminal.exitstatus


def press_ctrl_c(terminal: pexpect.spawn[str]) -> None:
    """Press Ctrl-C until the command ends: Python misses one that comes as it begins to read."""
    until(lambda: _has_ended_by_ctrl_c(terminal), "the command ends")
    terminal.close()


def _has_ended_by_ctrl_c(terminal: pexpect.spawn[str]) -> bool:
    terminal.sendintr()
    return terminal.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=10) == 0


def uri(stage: Stage, role: str = REAPER, password: str = PASSWORD, **options: str) -> str:
    """Return the URI of the server; the embedded one has no TLS."""
    where = f"{stage.server.host}:{stage.server.port}/postgres"
    query = "&".join(
        f"{k}={quote(v, safe='')}" for k, v in ({"sslmode": "disable"} | options).items()
    )
    return f"postgres://{role}:{password}@{where}?{query}"
