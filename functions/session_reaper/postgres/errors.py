"""Translates exceptions of the driver, of TLS and of the network into TargetError."""

import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

from pg8000.native import DatabaseError, Error
from scramp import ScramException

from session_reaper.errors import (
    INSUFFICIENT_PRIVILEGE,
    ConnectionLimit,
    ConnectionLostError,
    FullError,
    TargetError,
)
from session_reaper.postgres.budget import NoMemoryLeftError
from session_reaper.postgres.driver import AnswerTooLargeError
from session_reaper.postgres.tls import NOT_POSTGRES_HINT
from session_reaper.report.text import truncate
from session_reaper.sessions.server_facts import TESTED_VERSIONS

_TOO_MANY_CONNECTIONS: Final = "53300"
_NO_CODE: Final = "XX000"  # PostgreSQL's code for an internal error
_MESSAGE_LENGTH: Final = 500  # characters
# An unknown column, function, table or setting.
_OTHER_VERSION_HINT: Final = (
    f"The server's version may be newer or older than {TESTED_VERSIONS}, which this release was tested"
    " with. Run a check, and look for a newer release."
)
_HINTS: Final = {
    "28P01": "Check username and password in the secret (it was just reread); a rotation may change"
    " both.",
    "28000": "Check the role's name, that it has LOGIN, and the server's pg_hba rules for TLS.",
    # PgBouncer rejects the reaper's startup parameters.
    "08P01": "This looks like a pooler such as PgBouncer, which hides the clients' sessions. Write the server's own host and port into the secret.",
    "3D000": "Check dbname in the secret.",
    "55000": "The database accepts no connections: write another dbname into the secret.",
    **dict.fromkeys(("42703", "42883", "42P01", "42704"), _OTHER_VERSION_HINT),
    "57P03": "The server is starting or stopping; the next run tries again.",
    "57014": "The server is too busy to answer in time; the next run tries again.",
}
_CONNECT_HINTS: Final = _HINTS | {
    INSUFFICIENT_PRIVILEGE: "GRANT CONNECT on the database to the role."
}
# A full server and two limits share a SQLSTATE; the error's routine distinguishes them.
_LIMITS: Final = {
    "InitializeSessionUserId": ConnectionLimit.ROLE,
    "CheckMyDatabase": ConnectionLimit.DATABASE,
}
_LIMIT_HINTS: Final = {
    ConnectionLimit.ROLE: "The server has free slots, but our own role's CONNECTION LIMIT is reached."
    " Raise it with ALTER ROLE … CONNECTION LIMIT, or end the role's other sessions.",
    ConnectionLimit.DATABASE: "The server has free slots, but the database's CONNECTION LIMIT is reached."
    " Write another dbname into the secret, or raise it with ALTER DATABASE … CONNECTION LIMIT.",
}
_NO_MEMORY_HINT: Final = (
    "Let the rules match fewer sessions, or give some of the targets a stack of their own."
)
_OTHER_HINT: Final = "The message is the server's; the server's log has more context."

_NETWORK_FAILURES: Final = (Error, OSError, ScramException)
# pg8000 raises these when the peer does not use PostgreSQL's protocol.
_PROTOCOL_FAILURES: Final = (
    AnswerTooLargeError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def translate_errors(step: str, secret: str, *, is_connected: bool) -> Iterator[None]:
    """Raise failures as TargetError, without the secret.

    `is_connected`: the step is a statement. A failure that ends its connection raises
    ConnectionLostError.
    """
    translator = _Translator(step, secret, is_connected)
    try:
        yield
    except NoMemoryLeftError:  # in the middle of a message: nothing more can be read after it
        raise explain_no_memory(step, translator.lost) from None
    except (*_NETWORK_FAILURES, *_PROTOCOL_FAILURES) as error:
        raise translator.translate(error) from None


def explain_no_memory(step: str, kind: type[TargetError] = TargetError) -> TargetError:
    """Build the error of an answer that finds no memory.

    `kind`: ConnectionLostError if the rest of the answer can no longer be read.
    """
    cause = "the answers of other targets take the memory that this one needs"
    return kind("memory", cause, _NO_MEMORY_HINT, step=step)


def translate_server_error(step: str, secret: str, error: DatabaseError) -> TargetError:
    """Translate the server's error for one statement; the connection stays usable."""
    return _Translator(step, secret, is_connected=True).translate(error)


def read_sqlstate(error: DatabaseError) -> str:
    """Return the error's SQLSTATE; XX000 if it is malformed."""
    code = _get_fields(error).get("C", "")
    return code if re.fullmatch(r"[0-9A-Z]{5}", code) else _NO_CODE


class _Translator(NamedTuple):
    """Translates what was raised in one step."""

    step: str
    secret: str  # the password, which a server may repeat
    is_connected: bool  # so our role has a slot

    @property
    def lost(self) -> type[TargetError]:
        return ConnectionLostError if self.is_connected else TargetError

    def translate(self, error: Exception) -> TargetError:
        causes = list(_iterate_causes(error))
        for cause in causes:
            match cause:
                # pg8000 may raise a failure to close after the server's error, with that as
                # context.
                case DatabaseError():
                    return self._translate_server_error(cause)
                case TimeoutError():
                    hint = "Check security groups and routes, and whether the server is overloaded."
                    return self.lost("timeout", "no response in time", hint, step=self.step)
                case AnswerTooLargeError() if self.is_connected:
                    problem = "the response is larger than the limit"
                    return self.lost("answer", problem, NOT_POSTGRES_HINT, step=self.step)
                case socket.gaierror() | UnicodeEncodeError():
                    problem = "the host name does not resolve"
                    return self.lost("dns", problem, "Check host in the secret.", step=self.step)
        if not isinstance(error, _NETWORK_FAILURES):
            problem = "not a PostgreSQL server"
            return self.lost("protocol", problem, NOT_POSTGRES_HINT, step=self.step)
        return self.lost(
            "connection",
            self._describe(causes[-1]),
            "Check host, port and sslmode in the secret, security groups, and the server's log.",
            step=self.step,
        )

    def _describe(self, cause: BaseException) -> str:
        """Describe a failure in our or the operating system's words, never in the peer's."""
        kind = type(cause).__name__
        if isinstance(cause, ScramException):  # its message quotes the server
            return f"{kind}: SCRAM authentication failed"
        return f"{kind}: {self._hide_secret(str(cause))}" if str(cause) else kind

    def _translate_server_error(self, error: DatabaseError) -> TargetError:
        code = read_sqlstate(error)
        text = self._hide_secret(_get_fields(error).get("M", "the server sent no message"))
        if code != _TOO_MANY_CONNECTIONS or self.is_connected:
            hints = _HINTS if self.is_connected else _CONNECT_HINTS
            return TargetError(code, text, hints.get(code, _OTHER_HINT), step=self.step)
        limit = _LIMITS.get(_get_fields(error).get("R", ""))
        hint = _LIMIT_HINTS[limit] if limit else _OTHER_HINT
        return FullError(code, text, hint, limit=limit, step=self.step)

    def _hide_secret(self, text: str) -> str:
        """Return the beginning of a text, on one line and without the secret."""
        if self.secret:
            text = text.replace(self.secret, "…")
        line = "".join(c if c.isprintable() else " " for c in text[: _MESSAGE_LENGTH + 1])
        return truncate(line, _MESSAGE_LENGTH)


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _get_fields(error: DatabaseError) -> Mapping[str, str]:
    # pg8000 keeps the fields of an ErrorResponse in a dict, by their protocol letters.
    return error.args[0] if error.args and isinstance(error.args[0], dict) else {}
