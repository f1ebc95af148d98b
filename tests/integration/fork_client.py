"""Starts commands as forks of one program, `cli_forks`, which has imported their modules already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import termios
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from select import select
from socket import send_fds, socket, socketpair
from typing import TYPE_CHECKING, Any, Self

import pexpect
from ptyprocess import PtyProcess

from tests.integration.cli_forks import LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
SECONDS = 60  # for anything that a busy machine may delay


def environment(home: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: what the test gives, and nothing else of ours but AWS's."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("cli", "functions"))
    base = {"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": paths, "LANG": "C.UTF-8"}
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return base | aws | dict(given)


@dataclass(slots=True, kw_only=True)
class Fork:
    """A command that runs in a fork."""

    pid: int
    _answer: int
    _status: int | None = field(default=None, init=False)

    def wait(self, seconds: float) -> int | None:
        """Return the status of the command as `os.waitpid` does, or None if it still runs then."""
        if self._status is None and select([self._answer], [], [], seconds)[0]:
            self._status = int(os.read(self._answer, 100))
            os.close(self._answer)
        return self._status


def start(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    streams: Sequence[int],
    *,
    folder: Path | None = None,
    closed: Sequence[int] = (),
) -> Fork:
    """Start the command with these streams. `closed`: numbers of those that it finds closed.

    If its input is a terminal, it becomes the command's own.
    """
    order = {"arguments": arguments, "environ": environ, "closed": closed}
    text = json.dumps(order | {"folder": folder and str(folder)}).encode()
    answer, answered = os.pipe()
    orders, _ = _program()
    send_fds(orders, [len(text).to_bytes(LENGTH_BYTES)], [answered, *streams])
    orders.sendall(text)
    os.close(answered)
    return Fork(pid=int.from_bytes(orders.recv(LENGTH_BYTES)), _answer=answer)


@cache
def _program() -> tuple[socket, subprocess.Popen[bytes]]:
    """Start the program that all commands of this process are forks of."""
    orders, theirs = socketpair()
    with theirs:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.cli_forks"],
            env=environment(Path.home(), {}),
            cwd=ROOT,
            stdin=theirs.fileno(),
        )
    return orders, program


def stop_program() -> None:
    """Stop the program behind `start`. Repeatable."""
    if _program.cache_info().currsize:
        orders, program = _program()
        orders.close()
        with program:
            program.kill()
        _program.cache_clear()


class ForkedTerminal(pexpect.spawn):  # type: ignore[type-arg] # its parameter exists in the stubs only
    """A command on a terminal of its own, as `pexpect.spawn` starts one."""

    def _spawnpty(self, args: list[bytes], **options: Any) -> PtyProcess:  # noqa: ANN401 -- pexpect's
        """Start a fork in place of a program; pexpect calls this."""
        return _ForkedPty.start([each.decode() for each in args[1:]], **options)


class _ForkedPty(PtyProcess):  # type: ignore[misc] # untyped
    """A process that is a child of another one, which knows its status."""

    _fork: Fork
    terminated: bool
    exitstatus: int | None
    signalstatus: int | None

    @classmethod
    def start(
        cls,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        dimensions: tuple[int, int],
        **_: object,
    ) -> Self:
        own, theirs = os.openpty()
        termios.tcsetwinsize(own, dimensions)
        streams = (theirs, theirs, theirs)
        fork = start(arguments, env, streams, folder=cwd)
        os.close(theirs)
        made = cls(fork.pid, own)
        made._fork = fork
        return made

    def isalive(self) -> bool:
        """Tell whether the command runs; pexpect knows that it ends once its terminal is closed."""
        if not self.terminated:
            self.status = self._fork.wait(SECONDS if self.flag_eof else 0)
            if self.status is None:
                return True
            code = os.waitstatus_to_exitcode(self.status)
            self.exitstatus, self.signalstatus = (code, None) if code >= 0 else (None, -code)
            self.terminated = True
        return False
