"""Runs the command as people do: a process of its own, with the environment of a test only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pexpect

from tests.integration.stage import PASSWORD, REAPER, Stage

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


def run(home: Path, *arguments: str, by: Sequence[str] = (), **environ: str) -> Done:
    """Run the command without a terminal; `by`: a command that starts it."""
    done = subprocess.run(  # noqa: S603 -- our own command
        [*by, *COMMAND, *arguments],
        env=environment(home, environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    return Done(out=done.stdout, err=done.stderr, status=done.returncode)


def run_unread(home: Path, *arguments: str, stream: str) -> Done:
    """Run the command while nobody reads this stream of it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(  # noqa: S603 -- our own command
            [*COMMAND, *arguments],
            env=environment(home, {}),
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=2 * SECONDS,
            check=False,
            stdout=writing if stream == "stdout" else subprocess.PIPE,
            stderr=writing if stream == "stderr" else subprocess.PIPE,
        )
    finally:
        os.close(writing)
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
        preexec_fn=_heed_signals,
    )


def _heed_signals() -> None:
    """Undo what `nohup` or a shell's `&` did to the tests, and the command would inherit."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(terminal: pexpect.spawn[str]) -> tuple[str, int]:
    """Wait for the end of a command; return what it printed since, and its exit status."""
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus is not None, terminal.signalstatus
    return terminal.before or "", terminal.exitstatus


def uri(stage: Stage, role: str = REAPER, password: str = PASSWORD, **options: str) -> str:
    """Return the URI of the server; the embedded one has no TLS."""
    where = f"{stage.server.host}:{stage.server.port}/postgres"
    query = "&".join(
        f"{k}={quote(v, safe='')}" for k, v in ({"sslmode": "disable"} | options).items()
    )
    return f"postgres://{role}:{password}@{where}?{query}"
