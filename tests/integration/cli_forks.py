"""A program that runs the command in forks of itself, after it has imported the command's modules.

Without it, most of a command's CPU time is these imports. `fork_client` sends its orders.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import json
import os
import runpy
import signal
import sys
import termios
import threading
from contextlib import suppress
from importlib import import_module
from pkgutil import walk_packages
from select import select
from socket import MSG_WAITALL, recv_fds, socket
from typing import TYPE_CHECKING, Final, NoReturn

import session_reaper_cli

from tests.integration.botocore_files import read_files, share_files

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTH_BYTES: Final = 4
_STREAMS: Final = 3
_SERVICES: Final = {
    "--secret": ("secretsmanager",),
    "onboard": ("secretsmanager",),
    "init": ("ec2", "rds", "secretsmanager"),
}
_NOT_FLUSHED: Final = 120  # Python's status if it cannot write its streams


def main() -> None:
    """Serve the orders of the socket that is the standard input, until it is closed."""
    share_files()
    for module in walk_packages(session_reaper_cli.__path__, "session_reaper_cli."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    gc.freeze()  # a collection in a fork would copy all of its memory
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    answers: dict[int, int] = {}
    with socket(fileno=os.dup(0)) as orders:
        while True:
            ready, _, _ = select([orders.fileno(), wake], [], [])
            if wake in ready:
                with suppress(BlockingIOError):
                    os.read(wake, 4096)
                _report_ends(answers)
            if orders.fileno() in ready and not _take_order(orders, answers):
                return


def _report_ends(answers: dict[int, int]) -> None:
    """Write the status of each command that has ended to the file of its order."""
    while answers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with os.fdopen(answers.pop(pid), "w") as answer, suppress(BrokenPipeError):
            answer.write(str(status))


def _take_order(orders: socket, answers: dict[int, int]) -> bool:
    """Start the command of the next order; return False after the last one."""
    head, given, _, _ = recv_fds(orders, LENGTH_BYTES, 1 + _STREAMS)
    if not head:
        return False
    order = json.loads(orders.recv(int.from_bytes(head), MSG_WAITALL))
    answer, *streams = given
    read_files(*_list_services(order["arguments"]))
    pid = os.fork()
    if pid == 0:
        orders.close()
        for other in (*answers.values(), answer):
            os.close(other)
        run(streams, **order)
    for stream in streams:
        os.close(stream)
    answers[pid] = answer
    orders.sendall(pid.to_bytes(LENGTH_BYTES))
    return True


def _list_services(arguments: Sequence[str]) -> Sequence[str]:
    """Return the services of AWS that a command calls, as far as this is worth the time."""
    command = arguments[0] if arguments else ""
    return _SERVICES.get("--secret" if "--secret" in arguments else command, ())


def run(
    streams: Sequence[int],
    *,
    arguments: list[str],
    environ: dict[str, str],
    folder: str | None,
    closed: list[int],
) -> NoReturn:
    """Run the command in this process, as a shell would."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.SIG_DFL)  # `nohup` may have let the tests ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as above: a shell's `&`
    if os.isatty(streams[0]):
        os.setsid()
        fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _open_streams(closed)
    if folder is not None:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["", *arguments]
    try:
        runpy.run_module("session_reaper_cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        _exit(end.code)
    raise AssertionError("the command has not exited")


def _exit(code: object) -> NoReturn:
    """Exit as Python does, but leave the memory to the system: freeing it takes 80 % of the time."""
    threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001 -- it waits for the threads
    atexit._run_exitfuncs()  # noqa: SLF001 -- there is no public way
    status = code if isinstance(code, int) else int(code is not None)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            status = _NOT_FLUSHED
    os._exit(status)


def _open_streams(closed: Sequence[int]) -> None:
    """Make Python's own streams, as it does when it starts: a closed one is None."""
    text = {"encoding": "utf-8", "closefd": False}
    sys.stdin = open(0, errors=sys.stdin.errors, **text)  # type: ignore[call-overload] # noqa: SIM115 -- until the end
    sys.stdout = open(1, "w", errors=sys.stdout.errors, buffering=1 if os.isatty(1) else -1, **text)  # type: ignore[call-overload] # noqa: SIM115 -- as above
    sys.stderr = open(2, "w", errors=sys.stderr.errors, buffering=1, **text)  # type: ignore[call-overload] # noqa: SIM115 -- as above
    for number in closed:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


if __name__ == "__main__":
    main()
