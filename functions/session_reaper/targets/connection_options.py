"""The connection options of a secret: for each parameter of libpq, whether it is supported.

An option that changes security or routing is honoured or refused. An option that changes neither is
accepted, but the reaper's own setting applies. Parameters that libpq does not have belong to an ORM or
a driver and are ignored. The names are those of PostgreSQL 18.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

from session_reaper.targets.target import ANY_AUTH, AuthMethod


class Option(NamedTuple):
    """The treatment of one parameter of libpq.

    `accepted`: the values that match what the reaper does anyway; None means any value. `hint`: what
    to write instead of a refused value.
    """

    accepted: frozenset[str] | None = frozenset()
    hint: str = ""


class OptionProblem(NamedTuple):
    """An option that cannot be honoured, without its value, which may hold a credential."""

    name: str
    hint: str


_HONOURED: Final = Option(accepted=None)
_ACCEPTED: Final = Option(accepted=None)


def _accept_only(*accepted: str, hint: str) -> Option:
    return Option(accepted=frozenset(accepted), hint=hint)


def _refuse(hint: str) -> Option:
    return Option(hint=hint)


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
    **dict.fromkeys(("host", "port", "user", "password", "dbname"), _HONOURED),
    **dict.fromkeys(("sslmode", "sslrootcert", "channel_binding", "require_auth"), _HONOURED),
    # Accepted: they change neither security nor routing.
    **dict.fromkeys(("application_name", "fallback_application_name"), _ACCEPTED),
    **dict.fromkeys(("connect_timeout", "client_encoding", "tcp_user_timeout"), _ACCEPTED),
    **dict.fromkeys(("keepalives", "keepalives_idle"), _ACCEPTED),
    **dict.fromkeys(("keepalives_interval", "keepalives_count"), _ACCEPTED),
    "sslcompression": _ACCEPTED,  # the reaper never compresses
    "max_protocol_version": _ACCEPTED,  # libpq's lowest value is 3.0
    # Routing.
    "hostaddr": _refuse("Write the server's host name or address as host."),
    "target_session_attrs": _accept_only("any", hint=_ONE_SERVER),
    "load_balance_hosts": _accept_only("disable", hint=_ONE_SERVER),
    "service": _refuse(f"{_NO_FILES} A description needs another key."),
    "passfile": _refuse(_NO_FILES),
    "replication": _accept_only("false", "off", "no", "0", hint="Remove it."),
    "options": _refuse(
        "The reaper uses its own settings, and sends no options by which a proxy could route."
        " Remove it, and write the server itself as host."
    ),
    # TLS.
    # JDBC's option; libpq accepts it in a URI.
    "ssl": _accept_only("true", hint=_TLS_BY_SSLMODE),
    "requiressl": _refuse(_TLS_BY_SSLMODE),
    "sslnegotiation": _accept_only(
        "postgres", hint="The reaper negotiates TLS after connecting. Remove it."
    ),
    "sslsni": _accept_only(
        "1", "true", hint="The reaper always sends the host name in the TLS handshake. Remove it."
    ),
    **dict.fromkeys(("sslcert", "sslkey", "sslpassword"), _refuse(_NO_CLIENT_CERTIFICATE)),
    "sslcertmode": _accept_only("disable", "allow", hint=_NO_CLIENT_CERTIFICATE),
    **dict.fromkeys(("sslcrl", "sslcrldir"), _refuse(_NO_CRL)),
    "sslkeylogfile": _refuse("The reaper does not log TLS keys. Remove it."),
    "ssl_min_protocol_version": _accept_only("TLSv1", "TLSv1.1", "TLSv1.2", hint=_TLS_VERSION),
    "ssl_max_protocol_version": _accept_only("TLSv1.3", hint=_TLS_VERSION),
    "min_protocol_version": _accept_only(
        "3.0", hint="The reaper uses protocol version 3.0. Remove it."
    ),
    # Authentication.
    "requirepeer": _refuse(
        "It applies to Unix sockets only. Remove it, and write sslmode verify-full."
    ),
    "gssencmode": _accept_only("disable", "prefer", hint=_NO_KERBEROS),
    "gssdelegation": _accept_only("0", "false", hint=_NO_KERBEROS),
    **dict.fromkeys(("gsslib", "krbsrvname"), _refuse(_NO_KERBEROS)),
    **dict.fromkeys(("scram_client_key", "scram_server_key"), _refuse(_NO_SCRAM_KEYS)),
    **dict.fromkeys(("oauth_issuer", "oauth_client_id"), _refuse(_NO_OAUTH)),
    **dict.fromkeys(("oauth_client_secret", "oauth_scope"), _refuse(_NO_OAUTH)),
}


_UNSET: Final[tuple[object, ...]] = (None, "", [], {})


def find_unsupported(given: Mapping[str, object]) -> OptionProblem | None:
    """Return the first option that cannot be honoured, or None.

    As in libpq, an empty value counts as unset. Names that libpq does not know are skipped.
    """
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None or option.accepted is None or value in _UNSET:
            continue
        if _to_text(value) not in option.accepted:
            return OptionProblem(name=name, hint=option.hint)
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
    """Split and decode the parameters of a URI, in which + is literal. Raises UnicodeDecodeError."""
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
