"""One memory budget for the answers of all servers.

A run may have a thousand targets, and each server may answer with a snapshot of the largest size. A
function that runs out of memory is killed and reports nothing, so a large answer claims its size
before it is read, and the sessions in it are counted for as long as they exist.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Final

from session_reaper.deadline import Deadline

UNCLAIMED_BYTES: Final = 64 * 1024
"""The size up to which an answer, and the sessions of a snapshot, need no claim."""

_QUICK_BYTES: Final = 4 * 1024  # decoded in a few milliseconds, whatever the answer contains
_MIB: Final = 1024 * 1024


class NoMemoryLeftError(Exception):
    """The answers of other servers use the memory that an answer needs."""


class MemoryBudget:
    """A number of bytes that threads share; `available` are not claimed."""

    def __init__(self, size: int) -> None:
        self.available = size
        # Its lock is reentrant: the garbage collector may call `release` within the other methods.
        self._changed = Condition()
        self._decoding_small, self._decoding_large = Lock(), Lock()

    def claim(self, size: int, deadline: Deadline) -> None:
        """Claim bytes, waiting for them until the deadline. Raises NoMemoryLeftError.

        One claim takes at most half of the available bytes, so a few large claims leave room for
        small ones.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: size <= self.available // 2, deadline.remaining()
            ):
                raise NoMemoryLeftError
            self.available -= size

    def resize(self, claimed: int, size: int) -> None:
        """Replace a claim by one of another size, without waiting. Raises NoMemoryLeftError."""
        with self._changed:
            if size - claimed > self.available:
                raise NoMemoryLeftError
            self.available += claimed - size
            self._changed.notify_all()

    def release(self, size: int) -> None:
        """Return claimed bytes."""
        self.resize(size, 0)

    @contextmanager
    def decode_in_turn(self, size: int, deadline: Deadline) -> Iterator[None]:
        """Decode one answer at a time, or two: one of those that need a claim, and another.

        Decoding takes a multiple of a large answer's size, and 0.2 s for the lock waits that fit
        into a small one. In parallel it would not be faster, and would delay the end of the run.
        Raises DeadlineError if the turn does not come before the deadline.
        """
        if size <= _QUICK_BYTES:
            yield
            return
        turn = self._decoding_large if size > UNCLAIMED_BYTES else self._decoding_small
        with deadline.hold(turn):
            yield


def _use_one_arena() -> None:
    """Let all threads allocate from one arena, where the C library is glibc.

    glibc gives threads up to eight arenas per processor, and each arena keeps the memory that it
    once had: answers decoded by one thread after another took several times the memory of the
    largest. Other C libraries (musl, macOS) have no such arenas and no such option.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX: Final = -8  # from glibc's malloc.h

_use_one_arena()

ANSWER_MEMORY: Final = MemoryBudget(128 * _MIB)
"""The budget of the process.

Of the function's 512 MB, the rest is for the interpreter (75), 900 connections, and the decoding of
one answer.
"""
