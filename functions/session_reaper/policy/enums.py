"""The fixed values that a policy may use."""

from enum import IntEnum, StrEnum


class Mode(IntEnum):
    """The limit of a run: of several modes the lowest applies."""

    OFF = 0
    OBSERVE = 1
    ENFORCE = 2

    def __str__(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    """The action of a rule: end the session, end only its query, or leave it alone."""

    TERMINATE = "terminate"
    CANCEL = "cancel"
    KEEP = "keep"


class HeldResource(StrEnum):
    """A resource that a session holds to the harm of others.

    `xid`: it has written, so its rows are locked. `xmin`: it has a snapshot. Either keeps vacuum
    from removing newer rows. `locks`: granted on relations, tuples or advisory keys, also those of
    a plain reader.
    """

    XID = "xid"
    XMIN = "xmin"
    LOCKS = "locks"


class Order(StrEnum):
    """The order in which a limit lets sessions through.

    `longest` and `newest` compare the time in the state. `most_harmful` compares the number of
    waiters, then the age of xid or xmin, then the number of locks.
    """

    LONGEST = "longest"
    MOST_HARMFUL = "most_harmful"
    NEWEST = "newest"


class QueryVisibility(StrEnum):
    """The form of queries in the return value and the log. Email and Slack always redact them."""

    REDACTED = "redacted"
    FULL = "full"
