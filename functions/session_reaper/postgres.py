"""PostgreSQL by pg8000: sign in, look, signal, verify. The only module that imports the driver.

Every statement is a transaction of its own (pg8000.native is in autocommit): inside a transaction
block pg_stat_activity stands still after the first read, and a second look would see nothing new.
"""

import json
import re
import socket
import ssl
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum, auto
from functools import cache
from importlib.resources import files
from typing import Any, Final

import pg8000.native
import scramp.core
from scramp import ScramException

from session_reaper.deadline import Deadline
from session_reaper.errors import ConnectionLostError, FullError, TargetError
from session_reaper.policy import Action
from session_reaper.redaction import redact
from session_reaper.sessions import (
    Identity,
    Look,
    Scope,
    Session,
    Slots,
    State,
    Wait,
    Waiter,
    waiters_by_root,
)
from session_reaper.targets import SslMode, Target

APPLICATION_NAME: Final = "session-reaper"
CONNECT_SECONDS: Final = 10.0  # for name, TCP, TLS and sign-in together
STATEMENT_SECONDS: Final = 10.0  # the server's own limit; the socket's is longer, so that it tells
_ANSWER_SECONDS: Final = STATEMENT_SECONDS + 2

_STARTUP: Final = {
    # Our names mean the catalog's, whatever a database holds.
    "search_path": "pg_catalog",
    "client_encoding": "UTF8",
    "bytea_output": "hex",
    # Serializable and deferrable would wait for the very transactions that we are to end.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": f"{STATEMENT_SECONDS:.0f}s",
    "lock_timeout": "2s",
    "default_transaction_read_only": "on",
}
_SSL_REQUEST: Final = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"

INSUFFICIENT_PRIVILEGE: Final = "42501"
_TOO_MANY_CONNECTIONS: Final = "53300"
_HINTS: Final = {
    "28P01": "Check username and password in the secret; after a rotation both must be new.",
    "28000": "Check the role's name, that it has LOGIN, and the server's pg_hba rules for TLS.",
    "3D000": "Check dbname in the secret.",
    INSUFFICIENT_PRIVILEGE: "GRANT CONNECT on the database to the role.",
    "55000": "The database takes no connections: write another dbname into the secret.",
    "57P03": "The server is starting or stopping; the next run will see.",
    "57014": "The server is too busy to answer in time; the next run will see.",
    _TOO_MANY_CONNECTIONS: "End sessions by hand, as the master user, now. For the next time give the"
    " role a reserved slot: set reserved_connections (PostgreSQL 16+, restart) and"
    " GRANT pg_use_reserved_connections.",
}
_LIMIT_HINTS: Final = {
    "InitializeSessionUserId": "The server has slots, the role's own limit is reached: ALTER ROLE …"
    " CONNECTION LIMIT, or end what it holds.",
    "CheckMyDatabase": "The server has slots, the database's limit is reached: write another dbname"
    " into the secret, or ALTER DATABASE … CONNECTION LIMIT.",
}
_NOT_POSTGRES_HINT: Final = "Check host and port in the secret."
_OTHER_HINT: Final = "The message is the server's own; its log has the context."


# -- the driver's habits that had to be mended ---------------------------------------------------


def _saslprep(text: str, prepare: Callable[[str], str] = scramp.core.saslprep) -> str:
    """PostgreSQL and libpq take a text as it is where SASLprep refuses it; scramp gives up."""
    try:
        # PostgreSQL maps U+200B to a space before it drops characters; scramp drops it first.
        return prepare(text.replace("\u200b", " ")) or text
    except ScramException:
        return text


scramp.core.saslprep = _saslprep


class _Connection(pg8000.native.Connection):  # type: ignore[misc] # the driver ships no types
    """Closes whatever state it is in; pg8000's own raises, and hides the error that it came for."""

    _sock: Any = None
    _usock: Any = None

    def __init__(self, role: str, **options: Any) -> None:  # noqa: ANN401 -- the driver's own
        try:
            super().__init__(role, **options)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        stream = self._sock
        with suppress(pg8000.native.Error):
            super().close()
        if stream is not None:
            with suppress(OSError, ValueError):  # what could not be sent is tried again here
                stream.close()


# -- one connection --------------------------------------------------------------------------------


class Signal(Enum):
    """What became of the wish to signal one session."""

    SENT = auto()
    ESCAPED = auto()  # it changed, or ended, between look and signal
    DENIED = auto()


_FUNCTIONS: Final = {
    Action.TERMINATE: "pg_terminate_backend",
    Action.CANCEL: "pg_cancel_backend",
}


class Server:
    """One connection to one server. Close it."""

    def __init__(
        self, role: str, connection: pg8000.native.Connection, sock: socket.socket
    ) -> None:
        self.role = role
        self._connection = connection
        self._socket = sock
        self._signal: dict[Action, pg8000.native.PreparedStatement] = {}
        self._verify: pg8000.native.PreparedStatement | None = None

    @classmethod
    def connect(cls, target: Target, deadline: Deadline) -> "Server":
        """Sign in. Raises TargetError; FullError if there is no slot for us."""
        where = f"{target.host}:{target.port}"
        enough = deadline.within(CONNECT_SECONDS)
        with _failures(f"connecting to {where}", TargetError):
            address = (target.host, target.port)
            sock = socket.create_connection(address, timeout=enough.left(CONNECT_SECONDS))
        try:
            deadline.binds(sock)
            # As libpq does it: else the first packet after a TLS handshake waits 40 ms for an ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if target.sslmode is not SslMode.DISABLE:
                sock = _secured(sock, target, enough)
                deadline.binds(sock)
            with _failures(f"signing in to {where}", TargetError):
                sock.settimeout(enough.left(CONNECT_SECONDS))
                connection = _Connection(
                    target.role,
                    password=target.password,
                    database=target.database,
                    application_name=APPLICATION_NAME,
                    sock=sock,
                    ssl_context=False,  # the socket is what the secret asked for already
                    startup_params=_STARTUP,
                )
        except BaseException as error:
            sock.close()
            if isinstance(error, TargetError):  # a server may send back what it was sent
                error.message = error.message.replace(target.password, "…")
                error.args = (error.code, error.message, error.hint)
            raise
        return cls(target.role, connection, sock)

    def close(self) -> None:
        """Sign out, as far as the connection still lets us."""
        self._connection.close()
        self._socket.close()

    def look(self, scope: Scope, deadline: Deadline) -> Look:
        """All that one run needs to know, in one statement. Raises TargetError."""
        statement = (
            _sql("look")
            .replace(":idle_for", pg8000.native.literal(json.dumps(scope.idle_floors)))
            .replace(":waits", _sql("waits") if scope.waits else "NULL")
            .replace(":locks", str(scope.locks).lower())
        )
        with self._answering("looking", deadline):
            rows = self._connection.run(statement)
        return _look(json.loads(rows[0][0].decode("utf-8", errors="replace")))

    def signal(self, identity: Identity, action: Action, deadline: Deadline) -> Signal:
        """Signal one session, if it is still the one that was looked at.

        Raises DeadlineError if nothing was sent, any other TargetError if that is not known.
        """
        with self._answering(f"signalling ({action})", deadline):
            if action not in self._signal:
                statement = _sql("signal").replace(":function", _FUNCTIONS[action])
                self._signal[action] = self._connection.prepare(statement)
            try:
                rows = self._signal[action].run(
                    pid=identity.pid,
                    backend_start=identity.backend_start,
                    xact_start=identity.xact_start,
                    state_change=identity.state_change,
                    query_start=identity.query_start,
                    state=identity.state.value,
                )
            except pg8000.native.DatabaseError as error:
                if _sqlstate(error) != INSUFFICIENT_PRIVILEGE:
                    raise
                return Signal.DENIED
        return Signal.SENT if rows and rows[0][0] else Signal.ESCAPED

    def verify(
        self, signalled: Collection[tuple[Identity, Action]], deadline: Deadline
    ) -> tuple[frozenset[int], int | None]:
        """Who is still there, or still at what was cancelled, by pid; and the slots used then.

        Of whom we may not see any more we cannot say that he is gone, nor count the slots: None.
        Raises TargetError.
        """
        with self._answering("verifying", deadline):
            if self._verify is None:
                self._verify = self._connection.prepare(_sql("verify"))
            rows = self._verify.run(
                pids=[identity.pid for identity, _ in signalled],
                starts=[identity.backend_start for identity, _ in signalled],
                changes=[
                    (identity.state_change or "") if action is Action.CANCEL else ""
                    for identity, action in signalled
                ],
            )
        remaining, used = rows[0]
        return frozenset(remaining), used

    @contextmanager
    def _answering(self, doing: str, deadline: Deadline) -> Iterator[None]:
        self._socket.settimeout(deadline.left(_ANSWER_SECONDS))
        with _failures(doing, ConnectionLostError):
            yield


@cache
def _sql(name: str) -> str:
    text = (files("session_reaper") / "queries" / f"{name}.sql").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


# -- the way in -----------------------------------------------------------------------------------


def _secured(sock: socket.socket, target: Target, deadline: Deadline) -> ssl.SSLSocket:
    """The socket under TLS, as the secret asks; never less."""
    where = f"{target.host}:{target.port}"
    with _failures(f"securing the connection to {where}", TargetError):
        sock.settimeout(deadline.left(CONNECT_SECONDS))
        sock.sendall(_SSL_REQUEST)
        answer = sock.recv(1)
        if answer == b"S":
            context = _tls_context(target.sslmode, target.sslrootcert)
            return context.wrap_socket(sock, server_hostname=target.host)
    if answer == b"N":
        raise TargetError(
            "tls",
            f"{where} does not offer TLS",
            "Switch TLS on at the server. Only a secret with sslmode disable is read in plaintext.",
        )
    raise TargetError(
        "protocol",
        f"{where} does not answer as a PostgreSQL server",
        _NOT_POSTGRES_HINT,
    )


@cache  # making one takes longer than signing in
def _tls_context(sslmode: SslMode, sslrootcert: str | None) -> ssl.SSLContext:
    if sslmode is SslMode.REQUIRE and sslrootcert is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context = ssl.create_default_context(cadata=sslrootcert)
    except (ssl.SSLError, TypeError, ValueError):
        raise TargetError(
            "tls", "sslrootcert in the secret is no PEM certificate", "Store the CA's PEM text."
        ) from None
    # From Python 3.13 on the default refuses CAs that lack what RFC 5280 wants beyond a valid chain;
    # private ones often do, and libpq takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = sslmode is SslMode.VERIFY_FULL
    return context


# -- errors ---------------------------------------------------------------------------------------


_NETWORK_FAILURES: Final = (pg8000.native.Error, OSError, ScramException)
# What pg8000 stumbles into when the peer sends something else than PostgreSQL's protocol.
_PROTOCOL_FAILURES: Final = (
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def _failures(doing: str, lost: type[TargetError]) -> Iterator[None]:
    """Whatever driver, TLS and network raise, as a TargetError; `lost` for a dead connection."""
    try:
        yield
    except (*_NETWORK_FAILURES, *_PROTOCOL_FAILURES) as error:
        raise _translated(error, doing, lost) from None


def _translated(error: Exception, doing: str, lost: type[TargetError]) -> TargetError:
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            # pg8000 may fail to say goodbye after the server's error, and raise that instead.
            case pg8000.native.DatabaseError():
                return _server_error(cause, doing)
            case ssl.SSLCertVerificationError():
                return TargetError(
                    "tls",
                    f"{doing}: the server's certificate is not trusted: {cause.verify_message}",
                    "Store the server's CA in the secret as sslrootcert, and as host the name in"
                    " the certificate.",
                )
            case TimeoutError():
                return lost(
                    "timeout",
                    f"{doing}: no answer in time",
                    "Check security groups and routes, and whether the server is overloaded.",
                )
            case socket.gaierror() | UnicodeEncodeError():
                return lost(
                    "dns", f"{doing}: the name does not resolve", "Check host in the secret."
                )
    if not isinstance(error, _NETWORK_FAILURES):
        return lost("protocol", f"{doing}: this is no PostgreSQL server", _NOT_POSTGRES_HINT)
    return lost(
        "connection",
        f"{doing}: {type(causes[-1]).__name__}: {causes[-1]}",
        "Check host, port and sslmode in the secret, security groups, and the server's log.",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sqlstate(error: pg8000.native.DatabaseError) -> str:
    return str(_fields(error).get("C", "XX000"))


def _fields(error: pg8000.native.DatabaseError) -> Mapping[str, Any]:
    # pg8000 gives the fields of the server's ErrorResponse as a dict, by their protocol letters.
    return error.args[0] if error.args and isinstance(error.args[0], dict) else {}


def _server_error(error: pg8000.native.DatabaseError, doing: str) -> TargetError:
    code = _sqlstate(error)
    kind = FullError if code == _TOO_MANY_CONNECTIONS else TargetError
    message = _fields(error).get("M", "the server gave no message")
    # The same SQLSTATE for a full server and for two limits; the server's routine tells them apart.
    hint = _LIMIT_HINTS.get(_fields(error).get("R", "")) or _HINTS.get(code, _OTHER_HINT)
    return kind(code, f"{doing}: {message}", hint)


# -- rows to values -------------------------------------------------------------------------------


def _look(answer: Mapping[str, Any]) -> Look:
    waiters = waiters_by_root(_waits(answer["waits"] or ()))
    return Look(
        role=answer["role"],
        slots=Slots(max=answer["max"], reserved=answer["reserved"], used=answer["used"]),
        can_see=answer["can_see"],
        can_signal=answer["can_signal"],
        untracked=answer["untracked"],
        sessions=tuple(_session(row, waiters.get(row[0], ())) for row in answer["sessions"]),
    )


def _waits(rows: Iterable[Sequence[Any]]) -> Iterator[Wait]:
    for pid, is_session, role, application, seconds, blocked_by in rows:
        waiter = Waiter(pid=pid, role=role or "", application=application or "", seconds=seconds)
        yield Wait(waiter=waiter, is_session=is_session, blocked_by=tuple(blocked_by))


def _is_vacuum(query: str) -> bool:
    """Whether it is a VACUUM: the server passes over its snapshot when it looks for the oldest.

    A VACUUM FULL is none: it copies the table like others do.
    """
    if not re.search("vacuum", query, re.IGNORECASE):
        return False
    words = re.match(r"vacuum\b([^;]*)", redact(query), re.IGNORECASE)
    return words is not None and not re.search(r"\bfull\b", words[1], re.IGNORECASE)


def _session(row: Sequence[Any], waiters: tuple[Waiter, ...]) -> Session:
    pid, backend_start, xact_start, state_change, query_start, state, *rest = row
    role, database, application, client, query, *rest = rest
    idle, transaction, connected, running, *rest = rest
    waiting, xid_age, xmin_age, locks, superuser, replication, own_role, signalable = rest
    return Session(
        identity=Identity(
            pid=pid,
            backend_start=backend_start,
            xact_start=xact_start,
            state_change=state_change,
            query_start=query_start,
            state=State(state),
        ),
        role=role or "",
        database=database or "",
        application=application or "",
        client=client,
        query=query or "",
        idle_seconds=idle,
        transaction_seconds=transaction,
        connected_seconds=connected,
        query_seconds=running,
        waiting_for_client=bool(waiting),
        xid_age=xid_age,
        xmin_age=None if xmin_age is not None and _is_vacuum(query or "") else xmin_age,
        locks=locks,
        # Who waits in a queue has not waited for this one before it did what it does now: in a
        # convoy the lock goes from one healthy transaction to the next.
        waiters=tuple(replace(w, seconds=min(w.seconds, idle)) for w in waiters),
        # Of a role that was dropped under its session nothing is known: it is protected.
        superuser=superuser is not False,
        replication=replication is not False,
        own_role=bool(own_role),
        signalable=signalable,
    )
