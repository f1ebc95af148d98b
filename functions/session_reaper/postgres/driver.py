"""pg8000 with what it lacks: deadlines, byte budgets, pipelines, strict authentication.

This is the only module that uses pg8000's internals. pyproject.toml pins the version, and
tests/integration/test_driver.py checks each use against the protocol.
"""

import io
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from struct import Struct
from typing import Any, Final

import pg8000.native
from pg8000.converters import make_params
from pg8000.core import DATA_ROW, EXECUTE_MSG, NULL_BYTE, READY_FOR_QUERY, SYNC_MSG, Context
from pg8000.native import DatabaseError, Error, InterfaceError, PreparedStatement

from session_reaper.deadline import Deadline
from session_reaper.errors import PasswordNeededError, TargetError
from session_reaper.postgres.budget import ANSWER_MEMORY, UNCLAIMED_BYTES, MemoryBudget
from session_reaper.postgres.scram import MAX_ITERATIONS, ScramClient
from session_reaper.postgres.tls import NOT_POSTGRES_HINT, limit_time, read_certificate
from session_reaper.targets.target import AuthMethod, ChannelBinding, Target

Row = list[bytes | memoryview | None]
"""The columns of one row, undecoded; a large column is a view of its message."""

MAX_UNANSWERED: Final = 32 * 1024
"""The most bytes of unanswered requests in a pipeline.

If the client wrote on without reading, the buffers of both sockets would fill, and client and
server would wait for each other.
"""

_STARTUP_BYTES: Final = 64 * 1024  # of the server's messages until it is ready
_EXECUTION_BYTES: Final = 64 * 1024  # of the answer to one statement in a pipeline
_CLOSE_SECONDS: Final = 0.2
_READ_AHEAD: Final = 64 * 1024

_Length: Final = Struct("!i")
_Count: Final = Struct("!H")
_Header: Final = Struct("!ci")  # a message's type and the length of the rest, itself included
_SCRAM_MECHANISMS: Final = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")


class AnswerTooLargeError(Exception):
    """An answer exceeds its byte budget."""


# -- the socket -----------------------------------------------------------------------------------


class _Receiver(io.RawIOBase):
    """Reads from a socket; one deadline covers any number of reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.deadline = Deadline(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 -- typeshed calls it a WriteableBuffer
        limit_time(self._sock, self.deadline)
        return self._sock.recv_into(buffer)


class _Wire:
    """A socket with a deadline and a byte budget.

    pg8000 uses it both as its socket and as the file that it makes of a socket. The deadline covers
    all reads and writes together, however slowly the bytes arrive, and an answer that exceeds its
    budget is not read any further.
    """

    def __init__(self, sock: socket.socket, memory: MemoryBudget) -> None:
        self.sock = sock
        self.claimed_bytes = 0  # of the memory budget, for the answer's one large message
        self._memory = memory
        self._receiver = _Receiver(sock)
        self._reader = io.BufferedReader(self._receiver, _READ_AHEAD)
        self._unsent = bytearray()
        self._expected = self._budget = 0

    def allow(self, deadline: Deadline) -> None:
        """Set the deadline of everything that follows."""
        self._receiver.deadline = deadline

    def expect(self, answer_bytes: int) -> None:
        """Set the byte budget of the next answer, and end the claim of the last one."""
        self._expected = self._budget = answer_bytes
        self.release_claim()

    @property
    def answer_bytes(self) -> int:
        """The bytes of the answer that have been read."""
        return self._expected - self._budget

    def release_claim(self) -> None:
        """Return the memory that the answer claimed."""
        if self.claimed_bytes:
            self._memory.release(self.claimed_bytes)
        self.claimed_bytes = 0

    def read(self, size: int) -> bytes:
        if size < 0:
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
            # With a second claim, an answer could wait for the memory that it holds itself.
            if kind != DATA_ROW or self.claimed_bytes:
                raise AnswerTooLargeError
            self._memory.claim(size, self._receiver.deadline)
            self.claimed_bytes = size
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
            while sent < len(data):  # not sendall: over TLS its timeout applies to each record
                limit_time(self.sock, self._receiver.deadline)
                sent += self.sock.send(data[sent:])

    def makefile(self, mode: str) -> "_Wire":  # noqa: ARG002 -- pg8000 asks for "rwb"
        return self

    def close(self) -> None:
        self.release_claim()
        self.sock.close()


# -- one connection -------------------------------------------------------------------------------


class Connection(pg8000.native.Connection):  # type: ignore[misc] # the driver ships no types
    """A connection that returns undecoded values, for rows.py to validate and decode."""

    keeps_notices = False

    def __init__(  # noqa: PLR0913 -- a login needs all of them
        self,
        sock: socket.socket,
        target: Target,
        *,
        application_name: str,
        startup_params: Mapping[str, str],
        deadline: Deadline,
        memory: MemoryBudget = ANSWER_MEMORY,
    ) -> None:
        """Log in over a socket that already has the target's TLS.

        Raises TargetError if the target does not allow the server's authentication method, and the
        errors of pg8000, scramp and the network.
        """
        self._target = target
        self._method = AuthMethod.NONE
        self._scram: ScramClient | None = None
        self._is_server_proven = False  # the server has shown that it knows the password too
        self._is_channel_bound = False
        self._is_authenticated = False
        self.server_version = ""
        self._sock: Any = None
        self._usock: Any = None
        self._memory = memory
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
                ssl_context=False,
                startup_params=dict(startup_params),
            )
        except BaseException:
            self.close()
            raise

    @property
    def backend_pid(self) -> int:
        """The pid in the server's greeting; a pooler sends a number of its own."""
        return int.from_bytes((self._backend_key_data or b"")[:4])

    @property
    def socket(self) -> socket.socket:
        """The socket under the connection."""
        return self._wire.sock

    def allow(self, deadline: Deadline, answer_bytes: int) -> None:
        """Set the deadline of the next statement and the byte budget of its answer."""
        self._wire.allow(deadline)
        self._wire.expect(answer_bytes)

    def run_for_row(self, statement: str) -> Row:
        """Run a statement that answers one row, and keep no reference to the row."""
        row: Row
        (row,) = self.run(statement)
        self._context = None
        return row

    @contextmanager
    def decode_answer(self, deadline: Deadline) -> Iterator[None]:
        """Decode the last answer in the block, in its turn, and then end its claim.

        Raises DeadlineError if the turn does not come before the deadline.
        """
        try:
            with self._memory.decode_in_turn(self._wire.answer_bytes, deadline):
                yield
        finally:
            self._wire.release_claim()

    def replace_claim(self, size: int) -> Callable[[int], None]:
        """Replace the answer's claim by one of another size; return the function to release it.

        Raises NoMemoryLeftError.
        """
        self._memory.resize(self._wire.claimed_bytes, size)
        self._wire.claimed_bytes = 0
        return self._memory.release

    def run_each(
        self,
        statement: PreparedStatement,
        executions: Iterable[Mapping[str, object]],
        deadline: Deadline,
        answer_seconds: float,
    ) -> Iterator[Sequence[Row] | DatabaseError]:
        """Run a prepared statement once for each set of parameters, in a pipeline.

        Each execution has its own Sync, and so its own transaction, snapshot and answer. Takes
        parameters from `executions` just before sending them. Yields the answers in the same order:
        the rows, or the server's error. All of it ends by the deadline, and each answer must arrive
        within `answer_seconds`. Raises the errors of pg8000 and the network once the connection is
        lost, after the answers that arrived before.
        """
        requests = iter(executions)
        unanswered: deque[int] = deque()
        unanswered_bytes = 0
        while True:
            self._wire.allow(deadline.capped_at(answer_seconds))
            if unanswered_bytes <= MAX_UNANSWERED // 2:
                for parameters in requests:
                    request = self._encode_execution(statement, parameters)
                    self._wire.write(request)
                    unanswered.append(len(request))
                    unanswered_bytes += len(request)
                    if unanswered_bytes >= MAX_UNANSWERED:
                        break
                self._wire.flush()
            if not unanswered:
                return
            yield self._read_answer(statement)
            unanswered_bytes -= unanswered.popleft()

    def _encode_execution(
        self, statement: PreparedStatement, parameters: Mapping[str, object]
    ) -> bytes:
        values = make_params(self.py_types, statement.make_vals(parameters))
        body = bytearray(NULL_BYTE + statement.name_bin + _Count.pack(0))
        body += _Count.pack(len(values))
        for value in values:
            encoded = b"" if value is None else value.encode()
            body += _Length.pack(-1 if value is None else len(encoded)) + encoded
        body += _Count.pack(0)
        bind = b"B" + _Length.pack(len(body) + 4) + body
        return bytes(bind + EXECUTE_MSG + SYNC_MSG)

    def _read_answer(self, statement: PreparedStatement) -> Sequence[Row] | DatabaseError:
        self._wire.expect(_EXECUTION_BYTES)
        context = Context(statement.statement, columns=(), input_funcs=())
        try:
            self.handle_messages(context)
        except DatabaseError as error:
            return error
        return context.rows

    def close(self) -> None:
        """Log out and close the socket, in any state of the connection."""
        self._wire.allow(Deadline(_CLOSE_SECONDS))
        with suppress(Error, OSError):
            super().close()
        self._wire.close()

    # -- authentication ---------------------------------------------------------------------------

    def handle_AUTHENTICATION_REQUEST(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Answer the server's authentication request, if the target allows the method."""
        if self._is_authenticated:
            raise ValueError
        match int.from_bytes(data[:4]):
            case 0:
                self._check_authentication()
            case 3:
                self._start_method(AuthMethod.PASSWORD)
                if not self._target.is_verified:
                    raise TargetError("auth", _CLEAR_TEXT, _CLEAR_TEXT_HINT)
                super().handle_AUTHENTICATION_REQUEST(data, context)
            case 5:
                self._start_method(AuthMethod.MD5)
                super().handle_AUTHENTICATION_REQUEST(data, context)
            case 10:
                self._start_method(AuthMethod.SCRAM_SHA_256)
                self._start_scram(data)
            case 11 if self._scram is not None:
                self._scram.set_server_first(data[4:].decode())
                if int(self._scram.iterations) > MAX_ITERATIONS:
                    raise TargetError("auth", _TOO_MANY_ITERATIONS, _ITERATIONS_HINT)
                self._send_message(b"p", self._scram.get_client_final().encode())
                self._wire.flush()
            case 12 if self._scram is not None:
                self._scram.set_server_final(data[4:].decode())
                self._is_server_proven = True
            case _:
                problem = "the server requests an unsupported authentication method"
                raise TargetError("auth", problem, _METHODS_HINT)

    def _start_method(self, method: AuthMethod) -> None:
        if self._method is not AuthMethod.NONE:
            raise ValueError
        if method not in self._target.allowed_auth:
            self._refuse(method)
        if not self._target.password:
            raise PasswordNeededError("auth", "the server requests a password", _ADD_IT)
        if (
            self._target.channel_binding is ChannelBinding.REQUIRE
            and method is not AuthMethod.SCRAM_SHA_256
        ):
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        self._method = method

    def _refuse(self, method: AuthMethod) -> None:
        allowed = ", ".join(sorted(self._target.allowed_auth))
        problem = f"the server requests authentication by {method}; require_auth allows {allowed}"
        raise TargetError("auth", problem, _METHODS_HINT)

    def _start_scram(self, data: bytes) -> None:
        offered = [name.decode("ascii") for name in data[4:].split(NULL_BYTE) if name]
        mechanisms = [name for name in offered if name in _SCRAM_MECHANISMS]
        if not mechanisms:
            problem = "the server does not offer SCRAM-SHA-256"
            raise TargetError("auth", problem, _METHODS_HINT)
        wanted = self._target.channel_binding
        is_bindable = wanted is not ChannelBinding.DISABLE
        certificate = read_certificate(self._wire.sock) if is_bindable else None
        if certificate is None and "SCRAM-SHA-256" not in mechanisms:
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        self._scram = ScramClient(mechanisms, self._target.password, certificate)
        self._is_channel_bound = self._scram.mechanism_name.endswith("-PLUS")
        if wanted is ChannelBinding.REQUIRE and not self._is_channel_bound:
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        first = self._scram.get_client_first().encode()
        mechanism = self._scram.mechanism_name.encode() + NULL_BYTE
        self._send_message(b"p", mechanism + _Length.pack(len(first)) + first)
        self._wire.flush()

    def _check_authentication(self) -> None:
        """Check that the login that the server accepted meets the target's requirements."""
        if self._method not in self._target.allowed_auth:
            self._refuse(self._method)
        if self._method is AuthMethod.SCRAM_SHA_256 and not self._is_server_proven:
            problem = "the server ended SCRAM without proving that it knows the password"
            raise TargetError("auth", problem, NOT_POSTGRES_HINT)
        if self._target.channel_binding is ChannelBinding.REQUIRE and not self._is_channel_bound:
            raise TargetError("auth", _NOT_BOUND, _NOT_BOUND_HINT)
        self._is_authenticated = True

    # -- messages ---------------------------------------------------------------------------------

    def handle_messages(self, context: Context) -> None:
        """Handle messages until the server is ready.

        pg8000's own method keeps two copies of each message in memory.
        """
        kind = b""
        while kind != READY_FOR_QUERY:
            kind, body = self._wire.read_message()
            self.message_types[kind](body, context)
            del body
        if context.error is not None:
            raise context.error

    def handle_PARAMETER_STATUS(self, data: bytes, context: Context) -> None:  # noqa: ARG002, N802 -- pg8000's name
        """Store the version; pg8000 would also let the server choose our encoding."""
        name, _, value = data.partition(NULL_BYTE)
        if name == b"server_version":
            self.server_version = value[:40].decode("ascii", errors="replace")

    def handle_READY_FOR_QUERY(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Refuse a server that is ready before the authentication has ended."""
        if not self._is_authenticated:
            problem = "the server is ready without having authenticated the role"
            raise TargetError("auth", problem, NOT_POSTGRES_HINT)
        super().handle_READY_FOR_QUERY(data, context)

    def handle_ROW_DESCRIPTION(self, data: bytes, context: Context) -> None:  # noqa: ARG002, N802 -- pg8000's name
        """Ignore names and types, because values stay undecoded."""
        context.columns = context.input_funcs = ()
        if context.rows is None:
            context.rows = []

    def handle_DATA_ROW(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Store the row. Our statements answer one row at most."""
        if context.rows:
            raise ValueError
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
        """Ignore the number of rows."""

    def handle_NOTICE_RESPONSE(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Ignore a notice, unless it is wanted."""
        if self.keeps_notices:
            super().handle_NOTICE_RESPONSE(data, context)

    def handle_NOTIFICATION_RESPONSE(self, data: bytes, context: Context) -> None:  # noqa: N802 -- pg8000's name
        """Ignore a notification."""

    def handle_COPY_DATA(self, data: bytes, context: Context) -> None:  # noqa: ARG002, N802 -- pg8000's name
        """Refuse a COPY: our statements have none."""
        raise ValueError

    handle_COPY_IN_RESPONSE = handle_COPY_OUT_RESPONSE = handle_COPY_DATA  # noqa: N815 -- pg8000's names


_CLEAR_TEXT: Final = (
    "the server requests the password in clear text, but the connection is not verified"
)
_CLEAR_TEXT_HINT: Final = "Set sslmode to verify-full in the secret, or write scram-sha-256 into the server's pg_hba.conf."
_ADD_IT: Final = "Add password to the secret."
_METHODS_HINT: Final = (
    "Set the role's password again with password_encryption = scram-sha-256 and write scram-sha-256"
    " into pg_hba.conf, or change require_auth in the secret."
)
_NOT_BOUND: Final = "channel binding is required, and the server does not offer SCRAM-SHA-256-PLUS"
_NOT_BOUND_HINT: Final = (
    "Connect with TLS and SCRAM to the server itself (a pooler or proxy that terminates TLS cannot"
    " offer it), or remove channel_binding from the secret."
)
_TOO_MANY_ITERATIONS: Final = f"the server requests more than {MAX_ITERATIONS:,} SCRAM iterations"
_ITERATIONS_HINT: Final = (
    f"Set scram_iterations to at most {MAX_ITERATIONS}, and set the role's password again."
)
