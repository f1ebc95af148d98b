"""The fixed values that a policy may use."""

from enum import IntEnum, StrEnum


class Mode(IntEnum):
    """How much a run may do. Of several modes the lowest applies."""

    OFF = 0
    OBSERVE = 1
    ENFORCE = 2

    def __str__(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    """What a rule does to a session: end it, end only its query, or leave it alone."""

    TERMINATE = "terminate"
    CANCEL = "cancel"
    KEEP = "keep"


class HeldResource(StrEnum):
    """What a session may hold to the harm of others.

    `xid`: it has written, so its rows are locked. `xmin`: it has a snapshot. Either keeps vacuum
    from removing newer rows. `locks`: granted on relations, tuples or advisory keys, also those of
    a plain reader.
    """

    XID = "xid"
    XMIN = "xmin"
    LOCKS = "locks"


class Order(StrEnum):
    """Which sessions a limit lets through first.

    `longest` and `newest` compare the time in the state. `most_harmful` compares the number of
    waiters, then the age of xid or xmin, then the number of locks.
    """

    LONGEST = "longest"
    MOST_HARMFUL = "most_harmful"
    NEWEST = "newest"


class QueryVisibility(StrEnum):
    """How the return value and the log show queries. Email and Slack always show them redacted."""

    REDACTED = "redacted"
    FULL = "full"
