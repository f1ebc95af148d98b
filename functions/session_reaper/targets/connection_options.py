"""What a secret's connection options mean here: every parameter of libpq, and a verdict on each.

An option that changes security or routing is honoured or refused. One that changes neither is
accepted, and the reaper's own setting applies. A parameter that libpq does not know is an ORM's or a
driver's: it is ignored. The names are those of PostgreSQL 18.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One parameter of libpq.

    `accepted` are the values that ask for nothing the reaper does not do anyway: None means any value.
    """

    honoured: bool = False
    accepted: frozenset[str] | None = frozenset()
    hint: str = ""  # what to write in place of a value that is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionProblem:
    """An option that cannot be honoured. It never holds the option's value."""

    name: str
    hint: str

    @property
    def message(self) -> str:
        """What is wrong, in words."""
        return f"connection option {self.name} holds a value that is not supported"


_HONOURED: Final = Option(honoured=True, accepted=None)
_OURS_APPLY: Final = Option(accepted=None)


def _only(*accepted: str, hint: str) -> Option:
    return Option(accepted=frozenset(accepted), hint=hint)


def _never(hint: str) -> Option:
    return Option(hint=hint)


_ONE_SERVER: Final = "The reaper connects to one server and works on replicas, too. Remove it."
_NO_KERBEROS: Final = (
    "The reaper does not use Kerberos. Remove it, and write username and password."
)
_NO_CLIENT_CERTIFICATE: Final = "The reaper has no client certificates. Remove it, and write username and password, or auth iam."
_NO_FILES: Final = (
    "The function has no such file. Remove it, and write the settings into the secret."
)
_NO_OAUTH: Final = "The reaper does not use OAuth. Remove it, and write a password, or auth iam."
_NO_CRL: Final = "The reaper reads no revocation lists. Remove it."
_NO_SCRAM_KEYS: Final = "The reaper signs in with the password. Remove it, and write password."
_TLS_BY_SSLMODE: Final = (
    "Remove it, and write sslmode (verify-full, verify-ca, require or disable)."
)
_TLS_VERSION: Final = (
    "The reaper takes the highest version that both sides offer, TLS 1.2 at least. Remove it."
)

OPTIONS: Final[Mapping[str, Option]] = MappingProxyType(
    {
        # Honoured: where to connect, as whom, and how the connection is secured.
        "host": _HONOURED,
        "port": _HONOURED,
        "user": _HONOURED,
        "password": _HONOURED,
        "dbname": _HONOURED,
        "sslmode": _HONOURED,
        "sslrootcert": _HONOURED,
        "channel_binding": _HONOURED,
        "require_auth": _HONOURED,
        # They change neither security nor routing.
        "application_name": _OURS_APPLY,
        "fallback_application_name": _OURS_APPLY,
        "connect_timeout": _OURS_APPLY,
        "client_encoding": _OURS_APPLY,
        "keepalives": _OURS_APPLY,
        "keepalives_idle": _OURS_APPLY,
        "keepalives_interval": _OURS_APPLY,
        "keepalives_count": _OURS_APPLY,
        "tcp_user_timeout": _OURS_APPLY,
        "sslcompression": _OURS_APPLY,  # nothing is ever compressed
        # Routing.
        "hostaddr": _never("Write the server's name or address as host."),
        "target_session_attrs": _only("any", hint=_ONE_SERVER),
        "load_balance_hosts": _only("disable", hint=_ONE_SERVER),
        "service": _never(f"{_NO_FILES} A description needs a key of another name."),
        "passfile": _never(_NO_FILES),
        "replication": _only("false", "off", "no", "0", hint="Remove it."),
        "options": _never(
            "The reaper makes its own settings, and sends no options that a proxy routes by. Remove"
            " it, and name the server itself as host."
        ),
        # TLS.
        "ssl": _only("true", hint=_TLS_BY_SSLMODE),  # of JDBC; libpq takes it in a URI
        "requiressl": _never(_TLS_BY_SSLMODE),
        "sslnegotiation": _only(
            "postgres", hint="Remove it: the reaper asks for TLS by the protocol."
        ),
        "sslsni": _only(
            "1", "true", hint="The reaper always names the host in the TLS handshake. Remove it."
        ),
        "sslcert": _never(_NO_CLIENT_CERTIFICATE),
        "sslkey": _never(_NO_CLIENT_CERTIFICATE),
        "sslpassword": _never(_NO_CLIENT_CERTIFICATE),
        "sslcertmode": _only("disable", "allow", hint=_NO_CLIENT_CERTIFICATE),
        "sslcrl": _never(_NO_CRL),
        "sslcrldir": _never(_NO_CRL),
        "sslkeylogfile": _never("The reaper writes no TLS keys. Remove it."),
        "ssl_min_protocol_version": _only("TLSv1", "TLSv1.1", "TLSv1.2", hint=_TLS_VERSION),
        "ssl_max_protocol_version": _only("TLSv1.3", hint=_TLS_VERSION),
        "min_protocol_version": _only(
            "3.0", hint="The reaper speaks version 3.0 of PostgreSQL's protocol. Remove it."
        ),
        "max_protocol_version": _OURS_APPLY,  # 3.0 is the lowest there is
        # Authentication.
        "requirepeer": _never("It is for Unix sockets. Remove it, and write sslmode verify-full."),
        "gssencmode": _only("disable", "prefer", hint=_NO_KERBEROS),
        "gssdelegation": _only("0", "false", hint=_NO_KERBEROS),
        "gsslib": _never(_NO_KERBEROS),
        "krbsrvname": _never(_NO_KERBEROS),
        "scram_client_key": _never(_NO_SCRAM_KEYS),
        "scram_server_key": _never(_NO_SCRAM_KEYS),
        "oauth_issuer": _never(_NO_OAUTH),
        "oauth_client_id": _never(_NO_OAUTH),
        "oauth_client_secret": _never(_NO_OAUTH),
        "oauth_scope": _never(_NO_OAUTH),
    }
)


_UNSET: Final[tuple[object, ...]] = (None, "", [], {})


def find_unsupported(given: Mapping[str, object]) -> OptionProblem | None:
    """Return the first option that would have to be honoured and cannot be; None if there is none.

    An empty value counts as unset, as in libpq. Names that libpq does not know are passed over.
    """
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None or option.accepted is None or value in _UNSET:
            continue
        if _text_of(value) not in option.accepted:
            return OptionProblem(name=name, hint=option.hint)
    return None


def find_duplicate(names: Iterable[str]) -> str | None:
    """Return the first parameter of libpq that is given twice; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if name in OPTIONS and name in seen:
            return name
        seen.add(name)
    return None


def _text_of(value: object) -> str:
    """A JSON value as a URI would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else ""
