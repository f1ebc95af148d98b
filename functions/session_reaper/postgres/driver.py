"""pg8000 with what it lacks here: total deadlines, byte budgets, pipelines, refused authentication.

The only module that uses the driver's internals: pyproject.toml pins the version they belong to, and
tests/integration/test_driver.py holds each of them against the protocol.
"""

import io
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from struct import Struct
from typing import Any, Final

import pg8000.native
import scramp.core
from pg8000.converters import make_params
from pg8000.core import DATA_ROW, EXECUTE_MSG, NULL_BYTE, READY_FOR_QUERY, SYNC_MSG, Context
from pg8000.native import DatabaseError, Error, InterfaceError, PreparedStatement
from scramp import ScramException

from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.postgres.budget import (
    ANSWER_MEMORY,
    UNCLAIMED_BYTES,
    MemoryBudget,
    MemoryClaim,
)
from session_reaper.postgres.tls import limit_time
from session_reaper.targets.target import AuthMethod, ChannelBinding, Target

Row = list[bytes | memoryview | None]
"""The columns of one row, as the server wrote them; large ones are parts of the message itself."""

MAX_UNANSWERED: Final = 32 * 1024
"""Bytes of requests in a pipeline that the server has not answered yet.

A client that only writes blocks as soon as the buffers of both sockets are full: the server does not
read on while nobody reads its answers.
"""

_STARTUP_BYTES: Final = 64 * 1024  # of all that a server says until it is ready
_EXECUTION_BYTES: Final = 64 * 1024  # of the answer to one statement in a pipeline
_CLOSE_SECONDS: Final = 0.2  # to say goodbye
_READ_AHEAD: Final = 64 * 1024

_Length: Final = Struct("!i")
_Count: Final = Struct("!H")
_Header: Final = Struct("!ci")  # a message's type, and the length of all that follows the type
_MECHANISMS: Final = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")


class AnswerTooLargeError(Exception):
    """An answer exceeds its byte budget."""


# -- the driver's habits that are corrected for the whole process --------------------------------


def _saslprep(text: str, prepare: Callable[[str], str] = scramp.core.saslprep) -> str:
    """Prepare a password; one that SASLprep refuses stays as it is, as in PostgreSQL and libpq."""
    try:
        # PostgreSQL maps U+200B to a space before it drops characters; scramp drops it first.
        return prepare(text.replace("\u200b", " ")) or text
    except ScramException:
        return text


scramp.core.saslprep = _saslprep


@lru_cache(maxsize=1024)
def _derive_salted_password(
    hash_function: Callable[[bytes], Any],
    password: str | bytes,
    salt: bytes,
    iterations: int,
    derive: Callable[..., bytes] = scramp.core.hi,
) -> bytes:
    """Derive the key of a login, once: it takes a third of the time of a warm connection.

    RFC 5802 allows a client to keep it.
    """
    return derive(hash_function, password, salt, iterations)


scramp.core.hi = lambda hash_function, password, salt, iterations: _derive_salted_password(
    hash_function, password, salt, int(iterations)
)


# -- bytes in, bytes out --------------------------------------------------------------------------


class _Receiver(io.RawIOBase):
    """Reads from a socket until a deadline that covers any number of reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.deadline = Deadline(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 -- typeshed calls it a WriteableBuffer
        limit_time(self._sock, self.deadline)
        return self._sock.recv_into(buffer)


class _Wire:
    """A socket as pg8000 uses it: both as the socket and as the file that it makes of one.

    Whatever is read or written ends by the deadline in total, however slowly the bytes come, and an
    answer that exceeds its budget is not read any further.
    """

    def __init__(self, sock: socket.socket, memory: MemoryBudget) -> None:
        self.sock = sock
        self._memory = memory
        self.claim: MemoryClaim | None = None  # on the memory of the answer's one large message
        self._receiver = _Receiver(sock)
        self._reader = io.BufferedReader(self._receiver, _READ_AHEAD)
        self._unsent = bytearray()
        self._budget = 0

    def allow(self, deadline: Deadline) -> None:
        """Set the end of all that follows."""
        self._receiver.deadline = deadline

    def expect(self, answer_bytes: int) -> None:
        """Set the budget of the next answer, in bytes."""
        self._budget = answer_bytes
        self.claim = None

    def read(self, size: int) -> bytes:
        if size < 0:  # a length that is shorter than itself
            raise ValueError
        if size > self._budget:
            raise AnswerTooLargeError
        self._budget -= size
        return self._reader.read(size)

    def read_message(self) -> tuple[bytes, bytes]:
        """Read one message: its type and its body. Only one row of an answer may be large."""
        kind, length = _Header.unpack(self._read_all(_Header.size))
        size = length - _Length.size
        if UNCLAIMED_BYTES < size <= self._budget:
            # Whoever held one claim and waited for another could wait for itself.
            if kind != DATA_ROW or self.claim is not None:
                raise AnswerTooLargeError
            self.claim = self._memory.claim(size, self._receiver.deadline)
        return kind, self._read_all(size)

    def _read_all(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            raise InterfaceError("network error")
        return data

    def write(self, data: bytes) -> None:
        self._unsent += data

    def flush(self) -> None:
        with memoryview(bytes(self._unsent)) as data:
            self._unsent.clear()
            sent = 0
            while sent < len(data):  # not sendall: over TLS that has a timeout for each record
                limit_time(self.sock, self._receiver.deadline)
                sent += self.sock.send(data[sent:])

    def makefile(self, mode: str) -> "_Wire":  # noqa: ARG002 -- pg8000 asks for "rwb"
        return self

    def close(self) -> None:
        self.claim = None
        self.sock.close()


# -- one connection -------------------------------------------------------------------------------


class Connection(pg8000.native.Connection):  # type: ignore[misc] # the driver ships no types
    """A connection whose values stay bytes: what a server says is read where it is validated."""

    def __init__(  # noqa: PLR0913 -- what a login needs, and what limits it
        self,
        sock: socket.socket,
        target: Target,
        *,
        application_name: str,
        startup_params: Mapping[str, str],
        deadline: Deadline,
        memory: MemoryBudget = ANSWER_MEMORY,
    ) -> None:
        """Log in over a socket that is secured as the target asks.

        Raises TargetError for an authentication that the target does not allow, and whatever
        pg8000, scramp and the network raise.
        """
        self._target = target
        self._method = AuthMethod.NONE
        self._scram: scramp.ScramClient | None = None
        self._is_proven = False  # the server has shown that it knows the password, too
        self._is_bound = False  # to the TLS channel
        self._is_authenticated = False
        self.server_version = ""
        self._sock: Any = None
        self._usock: Any = None
        self.memory = memory
        self._wire = _Wire(sock, memory)
        self._wire.allow(deadline)
        self._wire.expect(_STARTUP_BYTES)
        try:
            super().__init__(
                target.role,
                password=target.password,
                database=target.database,
                application_name=application_name,
                sock=self._wire,
                ssl_context=False,  # the socket is secured already
                startup_params=dict(startup_params),
            )
        except BaseException:
            self.close()
            raise

    @property
    def backend_pid(self) -> int:
        """The pid in the server's greeting; a pooler greets with a number of its own."""
        return int.from_bytes((self._backend_key_data or b"")[:4])

    @property
    def socket(self) -> socket.socket:
        """The socket under the connection."""
        return self._wire.sock

    def allow(self, deadline: Deadline, answer_bytes: int) -> None:
        """Set the end of the next statement, and the byte budget of its answer."""
        self._wire.allow(deadline)
        self._wire.expect(answer_bytes)

    def run_for_row(self, statement: str) -> tuple[Row, MemoryClaim | None]:
        """Run a statement that answers one row; also the claim on its memory, if it is large.

        Both are the caller's alone: nothing here refers to them any more.
        """
        (row,) = self.run(statement)
        self._context = None
        claim, self._wire.claim = self._wire.claim, None
        return row, claim

    def run_each(
        self,
        statement: PreparedStatement,
        executions: Iterable[Mapping[str, object]],
        deadline: Deadline,
        answer_seconds: float,
    ) -> Iterator[Sequence[Row] | DatabaseError]:
        """Run a prepared statement once for each set of parameters, in a pipeline.

        Everything ends by the deadline, and each answer comes within `answer_seconds`.

        Each execution has a Sync of its own, and with it a transaction, a snapshot and an answer of
        its own. Parameters are taken from `executions` just before they are sent; answers come in
        the same order: the rows, or the server's error. Raises what pg8000 and the network raise
        once the connection is lost; the answers before that were given.
        """
        requests = iter(executions)
        unanswered: deque[int] = deque()
        size = 0
        more = True
        while True:
            self._wire.allow(deadline.capped_at(answer_seconds))
            if more and size <= MAX_UNANSWERED // 2:
                more = False
                for parameters in requests:
                    request = self._execution(statement, parameters)
                    self._wire.write(request)
                    unanswered.append(len(request))
                    size += len(request)
                    if size >= MAX_UNANSWERED:
                        more = True
                        break
                self._wire.flush()
            if not unanswered:
                return
            yield self._answer(statement)
            size -= unanswered.popleft()

    def _execution(self, statement: PreparedStatement, parameters: Mapping[str, object]) -> bytes:
        values = make_params(self.py_types, statement.make_vals(parameters))
        body = bytearray(NULL_BYTE + statement.name_bin + _Count.pack(0))
        body += _Count.pack(len(values))
        for value in values:
            encoded = b"" if value is None else value.encode()
            body += _Length.pack(-1 if value is None else len(encoded)) + encoded
        body += _Count.pack(0)
        bind = b"B" + _Length.pack(len(body) + 4) + body
        return bytes(bind + EXECUTE_MSG + SYNC_MSG)

    def _answer(self, statement: PreparedStatement) -> Sequence[Row] | DatabaseError:
        self._wire.expect(_EXECUTION_BYTES)
        context = Context(statement.statement, columns=(), input_funcs=())
        try:
            self.handle_messages(context)
        except DatabaseError as error:
            return error
        return context.rows

    def close(self) -> None:
        """Log out, whatever state the connection is in."""
        self._wire.allow(Deadline(_CLOSE_SECONDS))
        with suppress(Error, OSError):
            super().close()
        self._wire.close()

    # -- authentication ---------------------------------------------------------------------------

    def handle_AUTHENTICATION_REQUEST(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Answer what the server asks for, unless the target forbids it."""
        if self._is_authenticated:
            raise ValueError  # a server does not ask again
        match int.from_bytes(data[:4]):
            case 0:
                self._check_authentication()
            case 3:
                self._begin(AuthMethod.PASSWORD)
                if not self._target.is_verified:
                    raise TargetError("auth", _CLEAR_TEXT, _CLEAR_TEXT_HINT)
                super().handle_AUTHENTICATION_REQUEST(data, context)
            case 5:
                self._begin(AuthMethod.MD5)
                super().handle_AUTHENTICATION_REQUEST(data, context)
            case 10:
                self._begin(AuthMethod.SCRAM_SHA_256)
                self._begin_scram(data)
            case 11 if self._scram is not None:
                self._scram.set_server_first(data[4:].decode())
                self._send_message(b"p", self._scram.get_client_final().encode())
                self._wire.flush()
            case 12 if self._scram is not None:
                self._scram.set_server_final(data[4:].decode())
                self._is_proven = True
            case _:
                problem = "the server asks for an authentication method that is not supported"
                raise TargetError("auth", problem, _METHODS_HINT)

    def _begin(self, method: AuthMethod) -> None:
        if self._method is not AuthMethod.NONE:
            raise ValueError  # a server asks once
        if method not in self._target.allowed_auth:
            self._refuse(method)
        if (
            self._target.channel_binding is ChannelBinding.REQUIRE
            and method is not AuthMethod.SCRAM_SHA_256
        ):
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        self._method = method

    def _refuse(self, method: AuthMethod) -> None:
        allowed = ", ".join(sorted(self._target.allowed_auth))
        problem = f"the server asks for authentication by {method}; require_auth allows {allowed}"
        raise TargetError("auth", problem, _METHODS_HINT)

    def _begin_scram(self, data: bytes) -> None:
        offered = [name.decode("ascii") for name in data[4:].split(NULL_BYTE) if name]
        known = [name for name in offered if name in _MECHANISMS]
        if not known:
            problem = "the server offers no SCRAM-SHA-256"
            raise TargetError("auth", problem, _METHODS_HINT)
        binding = None
        wanted = self._target.channel_binding
        if isinstance(self._wire.sock, ssl.SSLSocket) and wanted is not ChannelBinding.DISABLE:
            binding = ("tls-server-end-point", self._wire.sock)
        elif "SCRAM-SHA-256" not in known:
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        role, password = self.user.decode(), self.password.decode()
        self._scram = scramp.ScramClient(known, role, password, channel_binding=binding)
        self._is_bound = self._scram.mechanism_name.endswith("-PLUS")
        if wanted is ChannelBinding.REQUIRE and not self._is_bound:
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        first = self._scram.get_client_first().encode()
        mechanism = self._scram.mechanism_name.encode() + NULL_BYTE
        self._send_message(b"p", mechanism + _Length.pack(len(first)) + first)
        self._wire.flush()

    def _check_authentication(self) -> None:
        """Accept the server's word that the role is authenticated, if it may be so."""
        if self._method not in self._target.allowed_auth:
            self._refuse(self._method)
        if self._method is AuthMethod.SCRAM_SHA_256 and not self._is_proven:
            problem = "the server ended SCRAM without the proof that it knows the password"
            raise TargetError("auth", problem, "Check host and port in the secret.")
        if self._target.channel_binding is ChannelBinding.REQUIRE and not self._is_bound:
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        self._is_authenticated = True

    # -- messages ---------------------------------------------------------------------------------

    def handle_messages(self, context: Context) -> None:
        """Handle messages until the server is ready; pg8000's own has each in memory twice."""
        kind = b""
        while kind != READY_FOR_QUERY:
            kind, body = self._wire.read_message()
            self.message_types[kind](body, context)
            del body
        if context.error is not None:
            raise context.error

    def handle_PARAMETER_STATUS(self, data: bytes, context: Context) -> None:  # noqa: ARG002, N802 -- pg8000's name
        """Keep the version; the encoding of what is sent stays UTF-8."""
        name, _, value = data.partition(NULL_BYTE)
        if name == b"server_version":
            self.server_version = value[:40].decode("ascii", errors="replace")

    def handle_READY_FOR_QUERY(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Refuse to be ready before the authentication has ended as the target asks."""
        if not self._is_authenticated:
            problem = "the server is ready without having authenticated the role"
            raise TargetError("auth", problem, "Check host and port in the secret.")
        super().handle_READY_FOR_QUERY(data, context)

    def handle_ROW_DESCRIPTION(self, data: bytes, context: Context) -> None:  # noqa: ARG002, N802 -- pg8000's name
        """Ignore names and types: values stay bytes."""
        context.columns = context.input_funcs = ()
        if context.rows is None:
            context.rows = []

    def handle_DATA_ROW(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Keep the row."""
        if context.rows:
            raise ValueError  # no statement here answers more than one row
        values: Row = []
        whole = memoryview(data)
        position = _Count.size
        for _ in range(_Count.unpack_from(data)[0]):
            (length,) = _Length.unpack_from(data, position)
            position += _Length.size
            value = None if length == -1 else whole[position : position + length]
            is_large = value is not None and len(value) > UNCLAIMED_BYTES
            values.append(value if value is None or is_large else bytes(value))
            position += max(0, length)
        if position != len(data):
            raise ValueError
        context.rows.append(values)

    def handle_COMMAND_COMPLETE(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Ignore how many rows it was about."""

    def handle_NOTICE_RESPONSE(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Ignore a notice: it may hold anything, and nothing is decided by it."""

    def handle_NOTIFICATION_RESPONSE(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Ignore a notification: nothing here listens."""

    def handle_COPY_DATA(self, data: bytes, context: Context) -> None:  # noqa: ARG002, N802 -- pg8000's name
        """Refuse: no statement here copies."""
        raise ValueError

    handle_COPY_IN_RESPONSE = handle_COPY_OUT_RESPONSE = handle_COPY_DATA  # noqa: N815 -- pg8000's names


_CLEAR_TEXT: Final = (
    "the server asks for the password in clear text, and the connection is not verified"
)
_CLEAR_TEXT_HINT: Final = (
    "Write sslmode verify-full into the secret, or have the server ask for scram-sha-256 in its"
    " pg_hba.conf."
)
_METHODS_HINT: Final = (
    "Set the role's password anew with password_encryption = scram-sha-256 and write scram-sha-256"
    " into pg_hba.conf, or change require_auth in the secret."
)
_NOT_BOUND: Final = (
    "the secret requires channel binding, and the server does not offer SCRAM-SHA-256-PLUS"
)
_NOT_BOUND_HINT: Final = (
    "Use SCRAM over TLS at the server itself (a pooler or proxy that ends TLS cannot offer it), or"
    " remove channel_binding from the secret."
)
