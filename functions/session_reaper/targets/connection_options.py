"""The connection options of a secret: for each parameter of libpq, whether it is supported.

An option that changes security or routing is honoured or refused. An option that changes neither is
accepted, but the reaper's own setting applies. Parameters that libpq does not have belong to an ORM
or a driver and are ignored. The names are those of PostgreSQL 18.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

from session_reaper.targets.target import ANY_AUTH, AuthMethod


class Option(NamedTuple):
    """The treatment of one parameter of libpq.

    `hint`: what to write instead of a refused value. `accepted`: the values that match what the
    reaper does anyway; None means any value.
    """

    hint: str
    accepted: tuple[str, ...] | None = ()


_ANY_VALUE: Final = Option("", accepted=None)
_ONE_SERVER: Final = "The reaper connects to one server, which may be a replica. Remove it."
_NO_KERBEROS: Final = "The reaper does not support Kerberos. Remove it, and use a password."
_NO_CLIENT_CERTIFICATE: Final = (
    "The reaper does not support client certificates. Remove it, and use a password or IAM."
)
_NO_FILES: Final = (
    "The function cannot read this file. Remove it, and write the settings into the secret."
)
_NO_OAUTH: Final = "The reaper does not support OAuth. Remove it, and use a password or IAM."
_NO_CRL: Final = "The reaper does not support revocation lists. Remove it."
_NO_SCRAM_KEYS: Final = "The reaper authenticates with a password. Remove it, and write password."
_TLS_BY_SSLMODE: Final = (
    "Remove it, and write sslmode (verify-full, verify-ca, require or disable)."
)
_TLS_VERSION: Final = (
    "The reaper uses the highest TLS version that both sides offer, at least 1.2. Remove it."
)

OPTIONS: Final[Mapping[str, Option]] = {
    # Honoured: server, credentials and TLS.
    **dict.fromkeys(("host", "port", "user", "password", "dbname"), _ANY_VALUE),
    **dict.fromkeys(("sslmode", "sslrootcert", "channel_binding", "require_auth"), _ANY_VALUE),
    # Accepted: they change neither security nor routing.
    **dict.fromkeys(("application_name", "fallback_application_name"), _ANY_VALUE),
    **dict.fromkeys(("connect_timeout", "client_encoding", "tcp_user_timeout"), _ANY_VALUE),
    **dict.fromkeys(("keepalives", "keepalives_idle"), _ANY_VALUE),
    **dict.fromkeys(("keepalives_interval", "keepalives_count"), _ANY_VALUE),
    "sslcompression": _ANY_VALUE,  # the reaper never compresses
    "max_protocol_version": _ANY_VALUE,  # libpq's lowest value is 3.0
    # Routing.
    "hostaddr": Option("Write the server's host name or address as host."),
    "target_session_attrs": Option(_ONE_SERVER, ("any",)),
    "load_balance_hosts": Option(_ONE_SERVER, ("disable",)),
    "service": Option(f"{_NO_FILES} A description needs another key."),
    "passfile": Option(_NO_FILES),
    "replication": Option("Remove it.", ("false", "off", "no", "0")),
    "options": Option(
        "The reaper uses its own settings, and sends no options by which a proxy could route."
        " Remove it, and write the server itself as host."
    ),
    # TLS.
    # JDBC's option; libpq accepts it in a URI.
    "ssl": Option(_TLS_BY_SSLMODE, ("true",)),
    "requiressl": Option(_TLS_BY_SSLMODE),
    "sslnegotiation": Option(
        "The reaper negotiates TLS after connecting. Remove it.", ("postgres",)
    ),
    "sslsni": Option(
        "The reaper always sends the host name in the TLS handshake. Remove it.", ("1", "true")
    ),
    **dict.fromkeys(("sslcert", "sslkey", "sslpassword"), Option(_NO_CLIENT_CERTIFICATE)),
    "sslcertmode": Option(_NO_CLIENT_CERTIFICATE, ("disable", "allow")),
    **dict.fromkeys(("sslcrl", "sslcrldir"), Option(_NO_CRL)),
    "sslkeylogfile": Option("The reaper does not log TLS keys. Remove it."),
    "ssl_min_protocol_version": Option(_TLS_VERSION, ("TLSv1", "TLSv1.1", "TLSv1.2")),
    "ssl_max_protocol_version": Option(_TLS_VERSION, ("TLSv1.3",)),
    "min_protocol_version": Option("The reaper uses protocol version 3.0. Remove it.", ("3.0",)),
    # Authentication.
    "requirepeer": Option(
        "It applies to Unix sockets only. Remove it, and write sslmode verify-full."
    ),
    "gssencmode": Option(_NO_KERBEROS, ("disable", "prefer")),
    "gssdelegation": Option(_NO_KERBEROS, ("0", "false")),
    **dict.fromkeys(("gsslib", "krbsrvname"), Option(_NO_KERBEROS)),
    **dict.fromkeys(("scram_client_key", "scram_server_key"), Option(_NO_SCRAM_KEYS)),
    **dict.fromkeys(("oauth_issuer", "oauth_client_id"), Option(_NO_OAUTH)),
    **dict.fromkeys(("oauth_client_secret", "oauth_scope"), Option(_NO_OAUTH)),
}


_UNSET: Final[tuple[object, ...]] = (None, "", [], {})


def find_unsupported(given: Mapping[str, object]) -> str | None:
    """Return the name of the first option that cannot be honoured, or None.

    As in libpq, an empty value counts as unset. Names that libpq does not know are skipped.
    """
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None or option.accepted is None or value in _UNSET:
            continue
        if _to_text(value) not in option.accepted:
            return name
    return None


def find_duplicate(names: Iterable[str]) -> str | None:
    """Return the first libpq parameter that occurs twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in OPTIONS and name in seen:
            return name
        seen.add(name)
    return None


def parse_parameters(query: str) -> list[tuple[str, str]]:
    """Split and decode a URI's parameters, in which + is literal. Raises UnicodeDecodeError."""
    pairs = [text.partition("=") for text in query.split("&") if text]
    return [
        (unquote(name, errors="strict"), unquote(value, errors="strict"))
        for name, _, value in pairs
    ]


_AUTH_METHODS: Final = frozenset({*AuthMethod, "gss", "sspi", "oauth"})  # all of libpq's


def parse_require_auth(written: str) -> frozenset[AuthMethod] | None:
    """Read require_auth: methods to allow, or methods to refuse, each with ! before it.

    Returns the methods that it allows, of those that the reaper supports; None if it is invalid.
    """
    if not written:
        return ANY_AUTH
    methods = [method.strip() for method in written.split(",")]
    refused = [method.startswith("!") for method in methods]
    names = {method.removeprefix("!") for method in methods}
    if any(refused) != all(refused) or names - _AUTH_METHODS:
        return None
    return frozenset(each for each in AuthMethod if (each in names) != all(refused))


def _to_text(value: object) -> str:
    """Write a JSON value as a URI would."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else ""
