"""Stops a command at Ctrl-C, SIGTERM and SIGHUP, so that terminal and server are left clean.

Each of them raises an exception, on whose way out everything is closed. While sessions may be
signalled, or a file is written, they are only counted: `local_run` then ends the operation
truthfully, and `init` finishes.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import Signals
from types import FrameType
from typing import Self

_ENDING = (Signals.SIGTERM, Signals.SIGHUP)
_Handler = Callable[[int, FrameType | None], None]


class TerminatedError(BaseException):
    """SIGTERM or SIGHUP has arrived; like KeyboardInterrupt, no handler of errors catches it."""

    def __init__(self, number: Signals) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Raise TerminatedError in the block at SIGTERM and SIGHUP. For the main thread.

    Only the first one raises: a terminal that closes sends several, which would cut off the
    cleanup.
    """
    is_raised = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal is_raised
        if not is_raised:
            is_raised = True
            raise TerminatedError(Signals(number))

    with _handle(_ENDING, stop):
        yield


class StopRemark:
    """A block in which a stop adds a remark to the command's last line, unless it is withdrawn."""

    def __init__(self, remark: str) -> None:
        self._remark = remark

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, stop: BaseException | None, __: object) -> None:
        if stop is not None and self._remark:
            stop.add_note(self._remark)

    def withdraw(self) -> None:
        """Stop showing the remark, because it is no longer true."""
        self._remark = ""


class Interrupts:
    """The signals that have arrived, in their order."""

    def __init__(self) -> None:
        self._arrived: list[Signals] = []

    def add(self, number: int, _: FrameType | None) -> None:
        """Note a signal; this is its handler."""
        self._arrived.append(Signals(number))

    @property
    def first(self) -> Signals | None:
        """The signal that ends the command, None if none has arrived."""
        return self._arrived[0] if self._arrived else None

    @property
    def is_impatient(self) -> bool:
        """Whether Ctrl-C came twice: the user does not want to wait for the outcomes."""
        return self._arrived.count(Signals.SIGINT) > 1


@contextmanager
def count_interrupts() -> Iterator[Interrupts]:
    """Note Ctrl-C, SIGTERM and SIGHUP in the block, instead of raising. For the main thread.

    An exception could hide signalled sessions, or leave a file without what belongs to it.
    """
    interrupts = Interrupts()
    with _handle((Signals.SIGINT, *_ENDING), interrupts.add):
        yield interrupts


@contextmanager
def _handle(numbers: tuple[Signals, ...], handler: _Handler) -> Iterator[None]:
    """Handle signals in the block, except those that the caller ignores, as `nohup` does."""
    before = {number: signal.getsignal(number) for number in numbers}
    changed = {n: old for n, old in before.items() if old is not signal.SIG_IGN}
    for number in changed:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in changed.items():
            signal.signal(number, old)
