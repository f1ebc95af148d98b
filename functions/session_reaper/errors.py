"""What can go wrong, as a tree.

ReaperError
├── ConfigurationError   the run ends: settings, event or policy; names the place
├── TargetError          one target's trouble; becomes its report, the others go on
│   ├── FullError        SQLSTATE 53300: the server has no slot for us either
│   ├── BlindError       we may not see other roles' sessions
│   ├── ConnectionLostError  the server went away after we had connected
│   ├── ServerChangedError   another server answers now, or it has restarted
│   └── DeadlineError    the time for this target is over
├── NoAnswerError        a call to AWS or Slack did not end in time; each adapter says what failed
│   └── NoThreadError    the process may not start another thread for the call
└── PublishError         the summary did not go out; the run ends with it

No message carries a password, a token or a literal of a query.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class ReaperError(Exception):
    """Whatever session-reaper itself raises."""


class ConfigurationError(ReaperError):
    """The run cannot begin: `place` (a variable, a key, an index) holds something that won't do."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")


class TargetError(ReaperError):
    """One target failed: a SQLSTATE or a short code, what happened, what mends it."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class ConnectionLimit(Enum):
    """A limit on connections that is reached although the server has free slots."""

    ROLE = auto()  # CONNECTION LIMIT of our role
    DATABASE = auto()  # CONNECTION LIMIT of the database


class FullError(TargetError):
    """The server refuses us a connection: every slot is taken, or `limit` is reached."""

    def __init__(
        self, code: str, message: str, hint: str, *, limit: ConnectionLimit | None
    ) -> None:
        super().__init__(code, message, hint)
        self.limit = limit


class BlindError(TargetError):
    """Connected, but other roles' sessions are hidden from us: finding nothing proves nothing."""

    def __init__(self, role: str, membership: "Membership") -> None:
        super().__init__(
            "42501",
            f"role {role} may not see other roles' sessions",
            membership.grant("pg_read_all_stats", role),
        )


class ConnectionLostError(TargetError):
    """The connection ended under a statement; whether the statement had its effect is unknown."""


class DeadlineError(TargetError):
    """The target's share of the run's time is over; nothing was sent."""

    def __init__(self) -> None:
        super().__init__(
            "deadline",
            "the run's time was over before this was done",
            "Raise the function's timeout, or find out what made this target slow.",
        )


class ServerChangedError(TargetError):
    """Another server answers than the one whose sessions were decided on."""

    def __init__(self, *, restarted: bool) -> None:
        if restarted:
            message = "the server has restarted since the snapshot: nothing more can be verified"
            hint = "A restart ends every session. The next run looks again."
        else:
            message = (
                "another server answers now than at the snapshot: nothing more can be verified"
            )
            hint = (
                "The secret's host leads to several servers (a reader endpoint, a proxy, DNS). Write"
                " the endpoint of one instance into the secret, one secret for each."
            )
        super().__init__("server-changed", message, hint)


_INHERIT_OPTION_SINCE: Final = 160000  # server_version_num


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How our role uses the privileges of roles that it is a member of."""

    server_version: int  # server_version_num
    inherits: bool  # rolinherit

    def grant(self, granted: str, role: str) -> str:
        """Write the statement that makes the role use what is granted.

        Up to PostgreSQL 15 a NOINHERIT role uses nothing that it is granted. From 16 on each grant
        has an option of its own, which a second GRANT without it leaves as it is.
        """
        if self.server_version >= _INHERIT_OPTION_SINCE:
            return f"GRANT {granted} TO {quote_identifier(role)} WITH INHERIT TRUE;"
        grant = f"GRANT {granted} TO {quote_identifier(role)};"
        return grant if self.inherits else f"ALTER ROLE {quote_identifier(role)} INHERIT; {grant}"


UNKNOWN_MEMBERSHIP: Final = Membership(server_version=0, inherits=True)


def quote_identifier(identifier: str) -> str:
    """An identifier as SQL writes it."""
    return '"{}"'.format(identifier.replace('"', '""'))


class NoAnswerError(ReaperError):
    """A call to another service had no answer when its time was over, or could not be made."""


class NoThreadError(NoAnswerError):
    """A call was not made, because the process may not start another thread."""


class PublishError(ReaperError):
    """The summary could not be published."""
