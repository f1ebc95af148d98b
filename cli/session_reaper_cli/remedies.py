"""Says how to fix an error, in the words of the command line.

The hints of the engine speak of the secret and of the stack. A target that `--secret` found keeps
them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from session_reaper.errors import (
    BlindError,
    ConnectionLimit,
    FullError,
    NoTlsError,
    PasswordNeededError,
    TargetError,
    UntrustedError,
)
from session_reaper.report.model import TargetReport
from session_reaper.targets.target import Target, is_socket_folder

from session_reaper_cli.connections.parameters import LOOPBACK

_REFUSED: Final = "28000"  # SQLSTATE: pg_hba.conf does not let the role in
_WHERE_TO_WRITE_IT: Final = (
    "Write it into ~/.pgpass, or set PGPASSWORD. On a terminal the command asks for it."
)
_PLAINTEXT: Final = (
    "Add sslmode=disable to connect in plaintext: postgres://…?sslmode=disable, or"
    " PGSSLMODE=disable."
)
_ENABLE_TLS: Final = (
    "Enable TLS on the server. sslmode=disable would send everything in plaintext over the network."
)
_NAME_AUTHORITY: Final = (
    "Name the server's CA: sslrootcert=FILE, or PGSSLROOTCERT (the CAs of RDS and Aurora are built"
    " in)."
)
_BY_CODE: Final[Mapping[str, str]] = {
    "28P01": "Check the user and the password: in the URI, PGPASSWORD or ~/.pgpass.",
    "3D000": "Write an existing database: postgres://…/dbname, or PGDATABASE.",
    "55000": "The database accepts no connections: write another one, such as postgres.",
    "08P01": "This looks like a pooler such as PgBouncer, which hides the clients' sessions. Write"
    " the server's own host and port.",
    "answer": "Check the host and the port.",
    "auth": "Check require_auth, channel_binding and sslmode, or write scram-sha-256 into the"
    " server's pg_hba.conf.",
    "connection": "Check the host, the port and sslmode, and whether the server runs there.",
    "dns": "Check the host name.",
    "protocol": "Check the host and the port.",
    "timeout": "Check firewalls, VPN and security groups, and whether the server is overloaded.",
}
_OF_RUN: Final[Mapping[str, str]] = {
    "57P03": "The server is starting or stopping: try again.",
    "57014": "The server is too busy to answer in time: try again.",
    "breaker": "If the spared sessions are leaks, run again with a --policy whose max_share and"
    " max_condemned allow it, or terminate them yourself. If they are not, correct the rule that"
    " condemns them.",
    "deadline": "The server is too slow, or rules with query or waiting_for_client have too many"
    " sessions to read: try again.",
    "internal": "Please report it. SESSION_REAPER_TRACEBACK=1 shows where it happened.",
    "memory": "Let the rules match fewer sessions.",
    "server-changed": "The server has restarted, or its host leads to several servers: then write the"
    " endpoint of one. Run the command again.",
}
"""The remedy for each error code. It also applies to a target from `--secret`."""
_PEER: Final = (
    "Check the role's name, and that it has LOGIN. On a Unix socket the server may ask for the"
    " operating-system user of that name (peer): write the role that pg_hba.conf and pg_ident.conf allow"
    " you, or host=localhost and a password."
)
_DATABASE_LIMIT: Final = (
    "The server has free slots, but the database's CONNECTION LIMIT is reached. Write another one:"
    " postgres://…/dbname. Or raise it with ALTER DATABASE … CONNECTION LIMIT."
)


def write_remedy(error: TargetError, target: Target) -> str:
    """Write how to fix an error of a target."""
    match error:
        case FullError():
            has_uri = error.limit is ConnectionLimit.DATABASE and not target.secret_arn
            return _DATABASE_LIMIT if has_uri else error.hint
        case PasswordNeededError():
            return _WHERE_TO_WRITE_IT
        case NoTlsError():
            return _PLAINTEXT if target.host in LOOPBACK else _ENABLE_TLS
        case UntrustedError() if not target.secret_arn:
            return _NAME_AUTHORITY
        case BlindError():
            return (
                f"{error.hint} Or write --role {target.role} to work on the sessions of this role"
                " only."
            )
    return _reword(error.code, error.hint, target)


def reword_failure(report: TargetReport, target: Target) -> TargetReport:
    """Return a report whose error says what to do on the command line."""
    failure = report.error
    if failure is None:
        return report
    hint = _reword(failure.code, failure.hint, target)
    return replace(report, error=failure._replace(hint=hint))


def _reword(code: str, hint: str, target: Target) -> str:
    if code in _OF_RUN:
        return _OF_RUN[code]
    if target.secret_arn:
        return hint
    if code == _REFUSED and is_socket_folder(target.host):
        return _PEER
    return _BY_CODE.get(code, hint)
