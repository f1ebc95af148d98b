"""How long something may still take."""

import socket
from contextlib import suppress
from time import monotonic

from session_reaper.errors import DeadlineError


class Deadline:
    """A moment on the monotonic clock, `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._at = monotonic() + seconds
        self._connections: list[socket.socket] = []

    def seconds(self) -> float:
        """Seconds left, 0 when over."""
        return max(0.0, self._at - monotonic())

    def left(self, at_most: float) -> float:
        """Seconds left, never above `at_most`, always above 0. Raises DeadlineError when over."""
        seconds = self.seconds()
        if seconds == 0:
            raise DeadlineError
        return min(seconds, at_most)

    def within(self, seconds: float) -> "Deadline":
        """A deadline of `seconds` from now that is never later than this one."""
        return Deadline(min(self.seconds(), seconds))

    def plus(self, seconds: float) -> "Deadline":
        """A deadline that is later than this one by `seconds`."""
        return Deadline(self.seconds() + seconds)

    def binds(self, connection: socket.socket) -> None:
        """Have the connection shut at the end: a peer that drips outlasts a socket's timeout."""
        self._connections.append(connection)

    def end(self) -> None:
        """Shut every connection that is bound and still open."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
