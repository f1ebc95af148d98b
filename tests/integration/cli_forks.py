"""A program that runs the command in forks of itself, after it has imported the command's modules.

Without it, most of a command's CPU time is these imports. Each line of the standard input is an order in
JSON; each line of the answer is an exit status.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from importlib import import_module
from pkgutil import walk_packages
from typing import NoReturn

import session_reaper_cli


def main() -> None:
    for module in walk_packages(session_reaper_cli.__path__, "session_reaper_cli."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    gc.freeze()  # a collection in a fork would copy all of its memory
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def run(arguments: list[str], environ: dict[str, str], out: str, err: str) -> NoReturn:
    """Run the command in this process, as a shell would, without input."""
    for stream, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["", *arguments]
    runpy.run_module("session_reaper_cli", run_name="__main__", alter_sys=True)
    raise AssertionError("the command has not exited")


if __name__ == "__main__":
    main()
