"""The result of one guarded signal."""

from enum import Enum, auto


class Signal(Enum):
    """The server's answer to one guarded signal."""

    SENT = auto()
    WAITING = auto()  # the session is the same, but waits for something that the rule excludes
    ESCAPED = auto()  # the session changed, or ended, since the snapshot
    DENIED = auto()
    HIDDEN = auto()  # the session is hidden from us now: no signal was sent
