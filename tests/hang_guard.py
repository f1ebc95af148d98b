"""A guard for work that might never end."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def fail_after(seconds: int = 60) -> Iterator[None]:
    """Fail if the block is still busy after so many seconds.

    This measures no speed: give the block work that ends at once, or not within hours. Speed is
    compared in tests/benchmarks. The main thread only.
    """

    def fail(*_: object) -> NoReturn:
        raise AssertionError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
