"""Says how to fix an error, in the words of the command line.

The hints of the engine speak of the secret and of the stack. A target that `--secret` found keeps them.
"""

from collections.abc import Mapping
from typing import Final

from session_reaper.errors import (
    BlindError,
    FullError,
    NoTlsError,
    PasswordNeededError,
    TargetError,
    UntrustedError,
)
from session_reaper.targets.target import Target

from session_reaper_cli.connections.parameters import LOOPBACK

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
    "57P03": "The server is starting or stopping: try again.",
    "57014": "The server is too busy to answer in time: try again.",
    "answer": "Check the host and the port.",
    "auth": "Check require_auth, channel_binding and sslmode, or write scram-sha-256 into the"
    " server's pg_hba.conf.",
    "deadline": "The server is too slow: try again.",
    "connection": "Check the host, the port and sslmode, and whether the server runs there.",
    "dns": "Check the host name.",
    "protocol": "Check the host and the port.",
    "timeout": "Check firewalls, VPN and security groups, and whether the server is overloaded.",
}


def write_remedy(error: TargetError, target: Target) -> str:
    """Write how to fix an error of a target."""
    match error:
        case FullError():
            return error.hint
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
    return error.hint if target.secret_arn else _BY_CODE.get(error.code, error.hint)
