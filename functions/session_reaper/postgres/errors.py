"""Whatever driver, TLS and network raise, as errors of one target."""

import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pg8000.native import DatabaseError, Error
from scramp import ScramException

from session_reaper.errors import ConnectionLimit, ConnectionLostError, FullError, TargetError
from session_reaper.postgres.budget import NoMemoryLeftError
from session_reaper.postgres.driver import AnswerTooLargeError

INSUFFICIENT_PRIVILEGE: Final = "42501"
_TOO_MANY_CONNECTIONS: Final = "53300"
_NO_CODE: Final = "XX000"  # PostgreSQL's own for an internal error
_MESSAGE_LENGTH: Final = 500  # characters
_HINTS: Final = {
    "28P01": "Check username and password in the secret (it was just read again); after a rotation"
    " both must be new.",
    "28000": "Check the role's name, that it has LOGIN, and the server's pg_hba rules for TLS.",
    # PgBouncer, which does not pass on what we ask of a session.
    "08P01": "This looks like a pooler such as PgBouncer, which hides the clients' sessions. Write the server's own host and port into the secret.",
    "3D000": "Check dbname in the secret.",
    "55000": "The database takes no connections: write another dbname into the secret.",
    "57P03": "The server is starting or stopping; the next run will see.",
    "57014": "The server is too busy to answer in time; the next run will see.",
}
_CONNECT_HINTS: Final = {INSUFFICIENT_PRIVILEGE: "GRANT CONNECT on the database to the role."}
# The server's routine tells a full server from two limits: all have the same SQLSTATE.
_LIMITS: Final = {
    "InitializeSessionUserId": ConnectionLimit.ROLE,
    "CheckMyDatabase": ConnectionLimit.DATABASE,
}
_LIMIT_HINTS: Final = {
    ConnectionLimit.ROLE: "The server has slots; our own role's CONNECTION LIMIT is reached. Raise it"
    " with ALTER ROLE … CONNECTION LIMIT, or end what else the role holds.",
    ConnectionLimit.DATABASE: "The server has slots; the database's CONNECTION LIMIT is reached."
    " Write another dbname into the secret, or raise it with ALTER DATABASE … CONNECTION LIMIT.",
}
_NOT_POSTGRES_HINT: Final = "Check host and port in the secret."
_NO_MEMORY_HINT: Final = (
    "Let the rules match fewer sessions, or give some of the targets a stack of their own."
)
_OTHER_HINT: Final = "The message is the server's own; its log has the context."

_NETWORK_FAILURES: Final = (Error, OSError, ScramException)
# What pg8000 stumbles into when the peer sends something else than PostgreSQL's protocol.
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
def connecting(doing: str, secret: str) -> Iterator[None]:
    """Raise failures of a connection that is being made as TargetError, without the secret."""
    try:
        yield
    except (*_NETWORK_FAILURES, *_PROTOCOL_FAILURES) as error:
        raise _Translator(doing, secret, TargetError, _CONNECT_HINTS).translate(error) from None


@contextmanager
def answering(doing: str, secret: str) -> Iterator[None]:
    """Raise failures of a statement as TargetError, ConnectionLostError if the connection is gone."""
    try:
        yield
    except NoMemoryLeftError:  # in the middle of a message: nothing more can be read after it
        raise _no_memory(doing, ConnectionLostError) from None
    except (*_NETWORK_FAILURES, *_PROTOCOL_FAILURES) as error:
        raise _Translator(doing, secret, ConnectionLostError, {}).translate(error) from None


@contextmanager
def within_memory(doing: str) -> Iterator[None]:
    """Raise TargetError where an answer that has arrived finds no memory to be decoded in."""
    try:
        yield
    except NoMemoryLeftError:
        raise _no_memory(doing, TargetError) from None


def _no_memory(doing: str, kind: type[TargetError]) -> TargetError:
    problem = f"{doing}: the answers of other targets take the memory that this one needs"
    return kind("memory", problem, _NO_MEMORY_HINT)


def statement_error(doing: str, secret: str, error: DatabaseError) -> TargetError:
    """Translate the server's error for one statement, after which the connection goes on."""
    return _Translator(doing, secret, ConnectionLostError, {}).translate(error)


def sqlstate(error: DatabaseError) -> str:
    """Return the error's SQLSTATE; what does not have its form is not passed on."""
    code = _fields(error).get("C", "")
    return code if re.fullmatch(r"[0-9A-Z]{5}", code) else _NO_CODE


@dataclass(frozen=True, slots=True)
class _Translator:
    """Makes errors of one target out of what was raised while `doing` something."""

    doing: str
    secret: str  # the password, which a server may send back
    lost: type[TargetError]
    hints: Mapping[str, str]  # by SQLSTATE, before those that hold at any time

    def translate(self, error: Exception) -> TargetError:
        causes = list(_causes(error))
        for cause in causes:
            match cause:
                # pg8000 may fail to say goodbye after the server's error, and raise that instead.
                case DatabaseError():
                    return self._server_error(cause)
                case TimeoutError():
                    hint = "Check security groups and routes, and whether the server is overloaded."
                    return self.lost("timeout", f"{self.doing}: no answer in time", hint)
                case AnswerTooLargeError() if self.lost is ConnectionLostError:
                    problem = "the answer is larger than any that PostgreSQL gives here"
                    return self.lost("answer", f"{self.doing}: {problem}", _NOT_POSTGRES_HINT)
                case socket.gaierror() | UnicodeEncodeError():
                    problem = f"{self.doing}: the name does not resolve"
                    return self.lost("dns", problem, "Check host in the secret.")
        if not isinstance(error, _NETWORK_FAILURES):
            problem = f"{self.doing}: this is no PostgreSQL server"
            return self.lost("protocol", problem, _NOT_POSTGRES_HINT)
        return self.lost(
            "connection",
            f"{self.doing}: {self._describe(causes[-1])}",
            "Check host, port and sslmode in the secret, security groups, and the server's log.",
        )

    def _describe(self, cause: BaseException) -> str:
        """Describe a failure in words of ours or of the operating system, never in the peer's."""
        kind = type(cause).__name__
        if isinstance(cause, ScramException):  # it quotes what the server sent
            return f"{kind}: SCRAM authentication failed"
        return f"{kind}: {self._printable(str(cause))}" if str(cause) else kind

    def _server_error(self, error: DatabaseError) -> TargetError:
        code = sqlstate(error)
        said = self._printable(_fields(error).get("M", "the server gave no message"))
        message = f"{self.doing}: {said}"
        if code != _TOO_MANY_CONNECTIONS:
            return TargetError(code, message, self.hints.get(code) or _HINTS.get(code, _OTHER_HINT))
        limit = _LIMITS.get(_fields(error).get("R", ""))
        return FullError(code, message, _LIMIT_HINTS[limit] if limit else _OTHER_HINT, limit=limit)

    def _printable(self, text: str) -> str:
        """Return the beginning of what was said, on one line and without the secret."""
        if self.secret:
            text = text.replace(self.secret, "…")
        line = "".join(c if c.isprintable() else " " for c in text[: _MESSAGE_LENGTH + 1])
        return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 1] + "…"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _fields(error: DatabaseError) -> Mapping[str, str]:
    # pg8000 gives the fields of the server's ErrorResponse as a dict, by their protocol letters.
    return error.args[0] if error.args and isinstance(error.args[0], dict) else {}
