"""The exceptions that session-reaper raises.

A TargetError ends the work on one target, and is reported. ConfigurationError, PublishError,
QueueError and InternalError end the run.

No message contains a password, a token or a literal of a query.
"""

from enum import Enum, auto
from typing import Final

from session_reaper.grants import Membership

INSUFFICIENT_PRIVILEGE: Final = "42501"
"""A SQLSTATE."""


class ReaperError(Exception):
    """Base class of session-reaper's exceptions."""


class ConfigurationError(ReaperError):
    """The run cannot begin, because the variable, key or item at `place` has an invalid value."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem


class TargetError(ReaperError):
    """One target failed: a SQLSTATE or a short code, the cause, and how to fix it.

    `step` is the work that failed ("connecting to db:5432"), if the cause alone does not show it.
    """

    def __init__(self, code: str, cause: str, hint: str, *, step: str = "") -> None:
        super().__init__(code, cause, hint)
        self.code = code
        self.step = step
        self.cause = cause
        self.hint = hint

    @property
    def message(self) -> str:
        """The step and the cause in one sentence."""
        return f"{self.step}: {self.cause}" if self.step else self.cause

    def __str__(self) -> str:
        return self.message


class ConnectionLimit(Enum):
    """A connection limit that can be reached while the server has free slots."""

    ROLE = auto()  # CONNECTION LIMIT of our role
    DATABASE = auto()  # CONNECTION LIMIT of the database


class FullError(TargetError):
    """The server refuses a connection (SQLSTATE 53300): it is full, or `limit` is reached."""

    def __init__(
        self, code: str, cause: str, hint: str, *, limit: ConnectionLimit | None, step: str = ""
    ) -> None:
        super().__init__(code, cause, hint, step=step)
        self.limit = limit


class PasswordNeededError(TargetError):
    """The server requests a password, and the target has none."""


class NoTlsError(TargetError):
    """The server does not offer TLS, and the target does not allow plaintext."""


class UntrustedError(TargetError):
    """A CA that is not trusted issued the server's certificate."""


class BlindError(TargetError):
    """Other roles' sessions are hidden from the role, so finding none proves nothing."""

    def __init__(self, role: str, membership: Membership) -> None:
        super().__init__(
            INSUFFICIENT_PRIVILEGE,
            f"role {role} cannot see other roles' sessions",
            membership.grant("pg_read_all_stats", role),
        )


class ConnectionLostError(TargetError):
    """The connection ended during a statement; whether the statement took effect is unknown."""


class DeadlineError(TargetError):
    """The run ran out of time before this step; nothing was sent."""

    def __init__(self) -> None:
        super().__init__(
            "deadline",
            "the run ran out of time before this step",
            "Raise the function's timeout, or find out why this target is slow.",
        )


class ServerChangedError(TargetError):
    """The server that answers is not the one that the snapshot is from."""

    def __init__(self, *, restarted: bool) -> None:
        if restarted:
            message = "the server has restarted since the snapshot: outcomes cannot be verified"
            hint = "A restart ends every session. The next run takes a new snapshot."
        else:
            message = "the connection leads to another server than the snapshot's: outcomes cannot be verified"
            hint = (
                "The secret's host leads to several servers (a reader endpoint, a proxy, DNS). Write"
                " one secret for each instance, with the endpoint of that instance."
            )
        super().__init__("server-changed", message, hint)


class NoAnswerError(ReaperError):
    """A call to AWS or Slack did not end in time, or could not be made."""


class NoThreadError(NoAnswerError):
    """A call was not made, because the process may not start another thread."""


class PublishError(ReaperError):
    """The summary could not be published."""


class QueueError(ReaperError):
    """The hub cannot read its queue, or what it knows of the stacks."""


class InternalError(ReaperError):
    """A bug kept the summary from being written. Only its type is shown: its text may be secret."""

    def __init__(self, bug: Exception) -> None:
        self.kind = type(bug).__name__
        super().__init__(f"session-reaper has a bug: {self.kind}; the log has its traceback")
