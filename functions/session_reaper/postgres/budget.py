"""The memory that the answers of all servers take together.

One run may have a thousand servers, and any of them may answer with as much as a snapshot may have. A
function that runs out of memory is killed and reports nothing, so each large answer claims its size
before it is read, and each snapshot what its sessions take, for as long as they are there.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Lock
from typing import Final

from session_reaper.deadline import Deadline

UNCLAIMED_BYTES: Final = 64 * 1024
"""What each server may take without a claim; what a driver reads at once, too."""

_MIB: Final = 1024 * 1024


class NoMemoryLeftError(Exception):
    """The answers of other servers take the memory that an answer needs."""


class MemoryClaim:
    """Bytes of a budget. They are given back by `release`, or with the last reference to the claim."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: "MemoryBudget", size: int) -> None:
        self._budget = budget
        self._size = size

    def resize(self, size: int) -> None:
        """Change the size at once. Raises NoMemoryLeftError if the budget has not that much left."""
        self._budget._grow(size - self._size)  # noqa: SLF001 -- the two are one mechanism
        self._size = size

    def release(self) -> None:
        """Give everything back."""
        self.resize(0)

    def __del__(self) -> None:
        self.release()


class MemoryBudget:
    """A number of bytes that threads share."""

    def __init__(self, size: int) -> None:
        self._available = size
        # It may be entered again by its own thread: a claim can end whenever an object is made.
        self._changed = Condition()
        self._turn = Lock()

    @property
    def available(self) -> int:
        """The bytes that are not claimed."""
        return self._available

    def claim(self, size: int, deadline: Deadline) -> MemoryClaim:
        """Claim so many bytes, all at once; wait for them until the deadline.

        A claim takes no more than half of what is available: a few large ones leave room for small
        ones. Raises NoMemoryLeftError.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: size <= self._available // 2, deadline.remaining()
            ):
                raise NoMemoryLeftError
            self._available -= size
        return MemoryClaim(self, size)

    def _grow(self, more: int) -> None:
        with self._changed:
            if more > max(0, self._available):
                raise NoMemoryLeftError
            self._available -= more
            if more < 0:
                self._changed.notify_all()

    @contextmanager
    def turn(self, size: int, deadline: Deadline) -> Iterator[None]:
        """Decode an answer of this size: large ones one at a time, for each takes a multiple of it.

        The interpreter decodes one at a time anyway. Raises NoMemoryLeftError at the deadline.
        """
        if size <= UNCLAIMED_BYTES:
            yield
            return
        if not self._turn.acquire(timeout=deadline.remaining()):
            raise NoMemoryLeftError
        try:
            yield
        finally:
            self._turn.release()


def _use_one_arena() -> None:
    """Have all threads allocate from one arena of the C library.

    By default glibc has eight for each processor, and each keeps what it once had: answers that
    threads decoded one after the other took several times the memory of the largest.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX: Final = -8  # glibc's malloc.h

_use_one_arena()

ANSWER_MEMORY: Final = MemoryBudget(128 * _MIB)
"""The process's: of 512 MB, beside the interpreter (75), 900 connections, and one answer's decoding."""
