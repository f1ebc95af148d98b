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
from functools import cache, lru_cache
from importlib.resources import files
from threading import Lock
from typing import Any, Final

import pg8000.native
import scramp.core
from scramp import ScramException

from session_reaper.deadline import Deadline
from session_reaper.errors import ConnectionLostError, FullError, TargetError
from session_reaper.policy import Action
from session_reaper.preflight import (
    IdleSessions,
    Preflight,
    Prepared,
    ReplicationSlot,
    Timeout,
    Tls,
)
from session_reaper.providers import Provider, rds_region, unknown_authority
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
    "28P01": "Check username and password in the secret (it was just read again); after a rotation"
    " both must be new.",
    "28000": "Check the role's name, that it has LOGIN, and the server's pg_hba rules for TLS.",
    # PgBouncer, which does not pass on what we ask of a session.
    "08P01": "This looks like a pooler such as PgBouncer, which hides the clients' sessions. Write the server's own host and port into the secret.",
    "3D000": "Check dbname in the secret.",
    INSUFFICIENT_PRIVILEGE: "GRANT CONNECT on the database to the role.",
    "55000": "The database takes no connections: write another dbname into the secret.",
    "57P03": "The server is starting or stopping; the next run will see.",
    "57014": "The server is too busy to answer in time; the next run will see.",
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


@lru_cache(maxsize=1024)
def _salted_password(
    hash_function: Callable[[bytes], Any],
    password: str | bytes,
    salt: bytes,
    iterations: int,
    derive: Callable[..., bytes] = scramp.core.hi,
) -> bytes:
    """RFC 5802 lets a client keep it: to derive it is a third of what a warm sign-in costs us."""
    return derive(hash_function, password, salt, iterations)


scramp.core.hi = lambda hash_function, password, salt, iterations: _salted_password(
    hash_function, password, salt, int(iterations)
)


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
        self, target: Target, connection: pg8000.native.Connection, sock: socket.socket
    ) -> None:
        self.role = target.role
        self._password = target.password
        self._ours = (target.role, target.instead_of)
        # What the server calls this connection in its greeting. A pooler greets in its own name.
        self._pid = int.from_bytes((connection._backend_key_data or b"")[:4])  # noqa: SLF001 -- the driver has no other word for it
        version = re.match(r"\d+", connection.parameter_statuses.get("server_version", ""))
        self._major = int(version[0]) if version else 0
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
            if isinstance(error, TargetError):
                _keep_secret(target.password, error)
            raise
        return cls(target, connection, sock)

    def close(self) -> None:
        """Sign out, as far as the connection still lets us."""
        self._connection.close()
        self._socket.close()

    def preflight(self, deadline: Deadline) -> Preflight:
        """What the server is and what our role may do there. Raises TargetError."""
        with self._answering("checking", deadline):
            rows = self._connection.run(_sql("preflight"))
        answer = json.loads(rows[0][0].decode("utf-8", errors="replace"))
        return _preflight(answer, _tls(self._socket))

    def alter(self, statement: str, deadline: Deadline) -> None:
        """Run one statement that changes something, as nothing else here does. Raises TargetError."""
        with self._answering("altering", deadline):
            # One implicit transaction: neither an open block nor a writing connection outlives it.
            self._connection.run(f"SET TRANSACTION READ WRITE; {statement}")

    def look(self, scope: Scope, deadline: Deadline) -> Look:
        """All that one run needs to know, in one statement. Raises TargetError."""
        statement = (
            _sql("look")
            .replace(":idle_for", pg8000.native.literal(json.dumps(scope.idle_floors)))
            .replace(":waits", _sql("waits") if scope.waits else "NULL")
            .replace(":locks", str(scope.locks).lower())
            .replace(":query_id", "a.query_id" if self._major >= 14 else "NULL")  # noqa: PLR2004 -- where it is new
        )
        with self._answering("looking", deadline):
            rows = self._connection.run(statement)
        answer = json.loads(rows[0][0].decode("utf-8", errors="replace"))
        return _look(answer, ours=self._ours, behind_pooler=answer["pid"] != self._pid)

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
        try:
            with _failures(doing, ConnectionLostError):
                yield
        except TargetError as error:
            _keep_secret(self._password, error)
            raise


def _keep_secret(password: str, error: TargetError) -> None:
    """A server may send back what it was sent."""
    error.message = error.message.replace(password or "\0", "…")
    error.args = (error.code, error.message, error.hint)


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
            with _making_contexts:  # one for each CA, though all targets begin at the same time
                context = _tls_context(target.sslmode, _authorities(target))
            try:
                return context.wrap_socket(sock, server_hostname=target.host)
            except ssl.SSLCertVerificationError as error:
                raise _untrusted(error, target) from None
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


_making_contexts: Final = Lock()


@cache  # making one takes longer than signing in
def _tls_context(sslmode: SslMode, authorities: str | None) -> ssl.SSLContext:
    """`authorities`: those that are trusted, in PEM; None means the system's."""
    if sslmode is SslMode.REQUIRE and authorities is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context = ssl.create_default_context(cadata=authorities)
    except (ssl.SSLError, TypeError, ValueError):
        raise TargetError(
            "tls", "sslrootcert in the secret is no PEM certificate", "Store the CA's PEM text."
        ) from None
    # From Python 3.13 on the default refuses CAs that lack what RFC 5280 wants beyond a valid chain;
    # private ones often do, and libpq takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = sslmode is SslMode.VERIFY_FULL
    return context


def _tls(sock: socket.socket) -> Tls | None:
    """What a connection is secured by; None of one in plaintext."""
    if not isinstance(sock, ssl.SSLSocket):
        return None
    cipher = sock.cipher()
    return Tls(
        version=sock.version() or "",
        cipher=cipher[0] if cipher else "",
        certificate_until=_end_of(sock.getpeercert(binary_form=True) or b""),
        verified=sock.context.verify_mode is ssl.CERT_REQUIRED,
    )


_MOMENT: Final = rb"(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z"


def _end_of(certificate: bytes) -> str:
    """The end of a certificate's validity: two moments of ASN.1, one behind the other.

    ssl decodes none of a certificate that it has not verified, which is what require means.
    """
    found = re.search(_MOMENT * 2, certificate)
    if not found:
        return ""
    short, whole = found[3], found[4]
    text = (whole or (b"20" if short < b"50" else b"19") + short).decode()
    return re.sub(r"(\d{4})(..)(..)(..)(..)(..)", r"\1-\2-\3T\4:\5:\6Z", text)


def _authorities(target: Target) -> str | None:
    """Whom to trust, in PEM: the secret's CA; for RDS its own in the host's region, and Amazon's roots.

    None means the system's, or nobody where the secret wants nothing verified. (To load those of all
    regions takes longer than the whole of a sign-in.)
    """
    region = rds_region(target.host)
    if target.sslrootcert or target.sslmode is SslMode.REQUIRE or region is None:
        return target.sslrootcert
    return _authorities_of_rds(region)


@cache
def _authorities_of_rds(region: str) -> str:
    blocks = (files("session_reaper") / "aws_certificates.pem").read_text("utf-8").split("\n\n")
    return "\n".join(b for b in blocks if f" {region} " in b or "\n# Amazon RDS " not in f"\n{b}")


# OpenSSL's numbers, of x509_vfy.h.
_EXPIRED, _NOT_YET_VALID, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64


def _untrusted(error: ssl.SSLCertVerificationError, target: Target) -> TargetError:
    where = f"{target.host}:{target.port}"
    match error.verify_code:
        case n if n in (_OTHER_HOST, _OTHER_ADDRESS):
            problem = f"the certificate of {where} is for another host"
            hint = (
                "Write as host the name that is in the certificate: the endpoint itself, not an"
                " alias or address of it. (sslmode verify-ca does not look at the name.)"
            )
        case n if n in (_EXPIRED, _NOT_YET_VALID):
            what = "has expired" if n == _EXPIRED else "is not valid yet"
            problem = f"the certificate of {where}, or its CA's, {what}"
            hint = (
                "Renew it at the server (on RDS: modify the instance's CA), or renew sslrootcert."
            )
        case _:
            problem = f"the certificate of {where} is by a CA that is not trusted"
            hint = unknown_authority(target.host)
    return TargetError("tls", f"{problem}: {error.verify_message}", hint)


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
    message = f"{doing}: {_fields(error).get('M', 'the server gave no message')}"
    if code != _TOO_MANY_CONNECTIONS:
        return TargetError(code, message, _HINTS.get(code, _OTHER_HINT))
    # The same SQLSTATE for a full server and for two limits; the server's routine tells them apart.
    limit = _LIMIT_HINTS.get(_fields(error).get("R", ""))
    return FullError(code, message, limit or _OTHER_HINT, limited=limit is not None)


# -- rows to values -------------------------------------------------------------------------------


def _preflight(answer: dict[str, Any], tls: Tls | None) -> Preflight:
    return Preflight(
        tls=tls,
        **answer
        | {
            "provider": Provider(answer["provider"]),
            "databases": tuple(answer["databases"] or ()),
            "timeouts": tuple(
                Timeout(role=role, database=database, name=name, value=value)
                for role, database, name, value in answer["timeouts"]
            ),
            "idle": tuple(
                IdleSessions(application=application or "", role=role, number=number)
                for application, role, number in answer["idle"] or ()
            ),
            "prepared": tuple(
                Prepared(database=database, seconds=seconds)
                for database, seconds in answer["prepared"] or ()
            ),
            "replication_slots": tuple(
                ReplicationSlot(name=name, active=active, held=held)
                for name, active, held in answer["replication_slots"] or ()
            ),
        },
    )


def _look(answer: Mapping[str, Any], *, ours: Collection[str | None], behind_pooler: bool) -> Look:
    waiters = waiters_by_root(_waits(answer["waits"] or ()))
    return Look(
        role=answer["role"],
        slots=Slots(max=answer["max"], reserved=answer["reserved"], used=answer["used"]),
        can_see=answer["can_see"],
        can_signal=answer["can_signal"],
        untracked=answer["untracked"],
        reader=answer["reader"],
        behind_pooler=behind_pooler,
        states={state: (answer["states"] or ()).count(state) for state in State},
        oldest_idle_in_transaction=answer["oldest_idle_in_transaction"],
        sessions=tuple(_session(row, waiters.get(row[0], ()), ours) for row in answer["sessions"]),
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


def _session(
    row: Sequence[Any], waiters: tuple[Waiter, ...], ours: Collection[str | None]
) -> Session:
    pid, backend_start, xact_start, state_change, query_start, state, *rest = row
    role, database, application, client, query, query_id, *rest = rest
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
        query_id=query_id,
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
        own_role=bool(own_role) or role in ours,
        signalable=signalable,
    )
