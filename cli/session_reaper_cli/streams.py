"""The standard streams, where the other end is closed. It imports nothing that takes time."""

import os
import sys
from typing import TextIO


def open_missing_streams() -> None:
    """Open the null device in place of each standard stream that the caller has closed.

    Otherwise a connection or a file would take its descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 -- open until the end
            setattr(sys, name, stream)


def settle_streams() -> None:
    """Write what the streams still buffer; drop it where the other end is closed.

    Otherwise Python would complain at its end, and change the exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            drop(stream)


def drop(stream: TextIO) -> None:
    """Lead a stream nowhere: neither what it still buffers nor what follows fails again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
