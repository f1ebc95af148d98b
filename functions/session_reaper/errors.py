"""What can go wrong, as a tree.

ReaperError
├── ConfigurationError   the run ends: settings, event or policy; names the place
├── TargetError          one target's trouble; becomes its report, the others go on
│   ├── FullError        SQLSTATE 53300: the server has no slot for us either
│   ├── BlindError       we may not see other roles' sessions
│   ├── ConnectionLostError  the server went away after we had signed in
│   └── DeadlineError    the time for this target is over
├── NoAnswerError        a call to AWS or Slack did not end in time; each adapter says what failed
└── PublishError         the summary did not go out; the run ends with it

No message carries a password, a token or a literal of a query.
"""


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


class FullError(TargetError):
    """The server has no slot for us; `limited`: it has, the role's or the database's limit not."""

    def __init__(self, code: str, message: str, hint: str, *, limited: bool) -> None:
        super().__init__(code, message, hint)
        self.limited = limited


class BlindError(TargetError):
    """Signed in, but other roles' sessions are hidden from us: to find nothing means nothing."""

    def __init__(self, role: str) -> None:
        super().__init__(
            "42501",
            f"role {role} may not see other roles' sessions",
            f"GRANT pg_read_all_stats TO {quoted(role)};",
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


def quoted(identifier: str) -> str:
    """An identifier as SQL writes it."""
    return '"{}"'.format(identifier.replace('"', '""'))


class NoAnswerError(ReaperError):
    """A call to another service had no answer when its time was over, or could not be made."""


class PublishError(ReaperError):
    """The summary could not be published."""
