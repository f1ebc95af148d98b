"""libpq's parameters, as a URI, name=value pairs and the environment give them.

Reference: https://www.postgresql.org/docs/current/libpq-connect.html and libpq-envars.html. Values
are not validated here; `target.py` does that. No error shows a part of a URI or of pairs, which may
be a password.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from session_reaper.errors import ConfigurationError
from session_reaper.targets.connection_options import OPTIONS, find_duplicate, parse_parameters

Parameters = Mapping[str, str]
"""libpq's parameters by their names; an empty value counts as unset."""

_IN_ENVIRONMENT: Final = (
    *("host", "hostaddr", "port", "user", "password", "service", "passfile", "options"),
    *("target_session_attrs", "load_balance_hosts", "sslmode", "sslrootcert", "sslnegotiation"),
    *("sslsni", "sslcert", "sslkey", "sslcertmode", "sslcrl", "sslcrldir"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "channel_binding", "require_auth"),
    *("requirepeer", "requiressl", "gssencmode", "gssdelegation", "gsslib", "krbsrvname"),
    "min_protocol_version",
)
# Such as PGSSLROOTCERT and PGCHANNELBINDING.
ENVIRONMENT: Final[Mapping[str, str]] = {
    **{f"PG{name.replace('_', '').upper()}": name for name in _IN_ENVIRONMENT},
    "PGDATABASE": "dbname",
}
"""libpq's variables that choose the server, the credentials or the security of a connection."""

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_URI: Final = re.compile(
    r"postgres(?:ql)?://(?P<authority>[^/?#]*)(?:/(?P<dbname>[^?#]*))?(?:\?(?P<query>[^#]*))?"
)
_HOST: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?")
_URI_HINT: Final = (
    "write postgres://user@host:port/dbname, with : / ? # [ ] @ % in the user and the password as"
    " %3A %2F %3F %23 %5B %5D %40 %25"
)
_BLANKS: Final = " \t\n\r\f\v"
_PAIR: Final = re.compile(
    r"\s*(?P<name>[^\s=]+)\s*=\s*"
    r"(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)",
    re.ASCII | re.DOTALL,
)
_PAIRS_HINT: Final = (
    "write host=… port=… user=… dbname=…, with ' around a value that has a blank, and a backslash"
    " before each ' and backslash in a value; or a URI: postgres://user@host:port/dbname"
)


def are_pairs(text: str) -> bool:
    """Return whether a text begins like name=value pairs."""
    return re.match(r"\s*\w+\s*=", text, re.ASCII) is not None


def parse_uri(uri: str, place: str) -> tuple[Parameters, tuple[str, ...]]:
    """Split a URI; return libpq's parameters, and the names of others, which belong to a driver.

    As in libpq, a parameter after `?` overrides the part before it. Raises ConfigurationError.
    """
    found = _URI.fullmatch(uri.strip())
    if found is None or "@" in f"{found['dbname'] or ''}{found['query'] or ''}":
        raise ConfigurationError(place, f"invalid URI (not shown); {_URI_HINT}")
    credentials, _, server = found["authority"].rpartition("@")
    user, _, password = credentials.partition(":")
    place_of_server = _HOST.fullmatch(server)
    if place_of_server is None or "," in server:
        raise ConfigurationError(place, f"invalid host or port (not shown); {_URI_HINT}, one host")
    try:
        parts = {
            "host": unquote(place_of_server["host"].strip("[]"), errors="strict"),
            "port": place_of_server["port"] or "",
            "user": unquote(user, errors="strict"),
            "password": unquote(password, errors="strict"),
            "dbname": unquote(found["dbname"] or "", errors="strict"),
        }
        options = parse_parameters(found["query"] or "")
    except UnicodeDecodeError:
        raise ConfigurationError(place, f"invalid URI (not shown); {_URI_HINT}") from None
    duplicate = find_duplicate(name for name, _ in options)
    if duplicate is not None:
        raise ConfigurationError(f"{place}: {duplicate}", "is given twice; write it once")
    known = {name: value for name, value in options if name in OPTIONS and value}
    ignored = dict.fromkeys(name for name, _ in options if name not in OPTIONS)
    return {name: value for name, value in parts.items() if value} | known, tuple(ignored)


def parse_pairs(text: str, place: str) -> Parameters:
    """Split a connection string of name=value pairs by libpq's rules. Raises ConfigurationError."""
    given: list[tuple[str, str]] = []
    rest = text.lstrip(_BLANKS)
    while rest:
        found = _PAIR.match(rest)
        if found is None or found["name"] not in OPTIONS:
            problem = "invalid pair, or a name that libpq does not know (not shown)"
            raise ConfigurationError(place, f"{problem}; {_PAIRS_HINT}")
        value = found["plain"] or found["quoted"] or ""
        given.append((found["name"], re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)))
        rest = rest[found.end() :].lstrip(_BLANKS)
    duplicate = find_duplicate(name for name, _ in given)
    if duplicate is not None:
        raise ConfigurationError(f"{place}: {duplicate}", "is given twice; write it once")
    return {name: value for name, value in given if value}


def read_environment(environ: Mapping[str, str]) -> Parameters:
    """Return the parameters that libpq's environment variables give."""
    return {
        name: environ[variable] for variable, name in ENVIRONMENT.items() if environ.get(variable)
    }
