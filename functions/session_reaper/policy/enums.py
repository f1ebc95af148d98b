"""The words that a policy may use."""

from enum import IntEnum, StrEnum


class Mode(IntEnum):
    """How far a run goes. The lowest of those given holds."""

    OFF = 0
    OBSERVE = 1
    ENFORCE = 2

    def __str__(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    """What is done to a session that a rule condemns."""

    TERMINATE = "terminate"
    CANCEL = "cancel"  # its query only; the session goes on


class HeldResource(StrEnum):
    """What a session may hold that does harm to others."""

    XID = "xid"  # it has written: its rows are locked, and vacuum waits for it
    XMIN = "xmin"  # it has a snapshot: vacuum removes nothing that is younger
    LOCKS = "locks"  # on relations, tuples, advisory …: those of a plain reader count


class Order(StrEnum):
    """Who goes first where a limit lets only some go."""

    LONGEST = "longest"  # in its state
    MOST_HARMFUL = "most_harmful"  # most waiters, then oldest xid or xmin, then most locks
    NEWEST = "newest"  # in its state: the least work is lost


class QueryVisibility(StrEnum):
    """How reports to machines (return value, log) show a session's query; people get it redacted."""

    REDACTED = "redacted"
    FULL = "full"  # with its literals, as the server keeps it
