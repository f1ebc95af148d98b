"""A time limit for work that might never end."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def fail_after(seconds: int = 60) -> Iterator[None]:
    """Fail if the block takes longer than `seconds`. Works in the main thread only.

    Use it for work that either ends at once or takes hours; tests/benchmarks compare speed.
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
