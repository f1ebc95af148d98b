"""Runs the command as people do: a process of its own, with the environment of a test only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

import pexpect

from tests.integration.stage import PASSWORD, REAPER, Stage, until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "session_reaper_cli")
SECONDS = 60  # for anything that a busy machine may delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The output of a command, and its exit status."""

    out: str
    err: str
    status: int


def environment(home: Path, given: Mapping[str, str]) -> dict[str, str]:
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("cli", "functions"))
    base = {"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": paths, "LANG": "C.UTF-8"}
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return base | aws | dict(given)


def run(home: Path, *arguments: str, **environ: str) -> Done:
    """Run the command without a terminal."""
    forks = _forks()
    assert forks.stdin is not None
    assert forks.stdout is not None
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        order = {"environ": environment(home, environ), "out": str(out), "err": str(err)}
        print(json.dumps(order | {"arguments": arguments}), file=forks.stdin, flush=True)
        answered, _, _ = select([forks.stdout], [], [], 2 * SECONDS)
        if not answered:
            stop_forks()
            raise AssertionError(f"not within {2 * SECONDS} s: {arguments}")
        status = int(forks.stdout.readline())
        return Done(out=out.read_text("utf-8"), err=err.read_text("utf-8"), status=status)


@cache
def _forks() -> subprocess.Popen[str]:
    """The program that all commands of this process are forks of."""
    return subprocess.Popen(  # noqa: S603 -- our own program
        # -P: its folder has modules whose names libraries may have, too.
        [sys.executable, "-P", Path(__file__).with_name("cli_forks.py")],
        env=environment(Path.home(), {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def stop_forks() -> None:
    """Stop the program behind `run`. Repeatable."""
    if _forks.cache_info().currsize:
        with _forks() as forks:
            forks.kill()
        _forks.cache_clear()


def run_by(starter: Sequence[str], home: Path, *arguments: str) -> Done:
    """Run the command without a terminal, started by another command."""
    return _run_process([*starter, *COMMAND, *arguments], home)


def run_unread(home: Path, *arguments: str, stream: str) -> Done:
    """Run the command while nobody reads this stream of it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return _run_process([*COMMAND, *arguments], home, **{stream: writing})
    finally:
        os.close(writing)


def _run_process(
    words: Sequence[str],
    home: Path,
    *,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> Done:
    done = subprocess.run(  # noqa: S603 -- our own command
        words,
        env=environment(home, {}),
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=2 * SECONDS,
        check=False,
        stdout=stdout,
        stderr=stderr,
    )
    return Done(out=done.stdout or "", err=done.stderr or "", status=done.returncode)


def on_terminal(
    home: Path, *arguments: str, columns: int = 100, by: Sequence[str] = (), **environ: str
) -> pexpect.spawn[str]:
    """Start the command on a terminal of its own; `by`: a command that starts it."""
    return spawn(home, *by, *COMMAND, *arguments, columns=columns, **environ)


def spawn(home: Path, *words: str, columns: int = 100, **environ: str) -> pexpect.spawn[str]:
    """Start any command on a terminal of its own, in the folder `home`."""
    return pexpect.spawn(
        words[0],
        list(words[1:]),
        env=environment(home, {"TERM": "xterm-256color"} | environ),
        cwd=home,
        dimensions=(40, columns),
        timeout=SECONDS,
        encoding="utf-8",
        codec_errors="replace",
        preexec_fn=_restore_signals,
    )


def _restore_signals() -> None:
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
