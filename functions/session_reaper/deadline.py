"""Deadlines on the monotonic clock."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from threading import Lock
from time import monotonic

from session_reaper.errors import DeadlineError


class Deadline:
    """A moment on the monotonic clock, `seconds` from now."""

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._at = clock() + seconds

    def remaining(self) -> float:
        """Return the seconds left, 0 once the deadline has passed."""
        return max(0.0, self._at - self._clock())

    def check(self) -> None:
        """Raise DeadlineError once the deadline has passed."""
        if self.remaining() == 0:
            raise DeadlineError

    def capped_at(self, seconds: float) -> "Deadline":
        """Return a deadline `seconds` from now that is never later than this one."""
        return Deadline(min(self.remaining(), seconds), self._clock)

    def capped_at_share(self, share: float, at_most: float = inf) -> "Deadline":
        """Return a deadline after this share of the time left, but at most `at_most` seconds."""
        return Deadline(min(share * self.remaining(), at_most), self._clock)

    @contextmanager
    def hold(self, lock: Lock) -> Iterator[None]:
        """Hold a lock. Raises DeadlineError if it is not free before the deadline."""
        if not lock.acquire(timeout=self.remaining()):
            raise DeadlineError
        try:
            yield
        finally:
            lock.release()

    def extended_by(self, seconds: float) -> "Deadline":
        """Return a deadline that is later than this one by `seconds`."""
        return Deadline(self.remaining() + seconds, self._clock)
