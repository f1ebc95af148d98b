"""Patterns of a policy: globs over names, globs over queries, and networks."""

import re
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from session_reaper.documents import non_empty_text, read_list, short_repr
from session_reaper.errors import ConfigurationError
from session_reaper.sessions.redaction import MATCHED_LENGTH, find_literal

Globs = tuple[str, ...]
Networks = tuple[IPv4Network | IPv6Network, ...]
QueryGlobs = tuple[re.Pattern[str], ...]

# -- reading --------------------------------------------------------------------------------------


_CLASS = re.compile(r"\[!?+.[^\]]*\]", re.DOTALL)
"""A character class, as fnmatch reads it."""


def read_glob(value: object, place: str) -> str:
    """Read a glob that matches a whole value; it may use `*`, `?` and `[…]`."""
    glob = non_empty_text(value, place)
    # fnmatch reads an unclosed [ as text, so the glob would not match what its author meant.
    if "[" in _CLASS.sub("", glob):
        problem = f"{short_repr(glob)} has an unclosed [; write [[] for a literal ["
        raise ConfigurationError(place, problem)
    if "(?!)" in translate(glob):
        problem = f"{short_repr(glob)} has a character class that matches no character"
        raise ConfigurationError(place, problem)
    return glob


MAX_NAME_BYTES = 63
"""PostgreSQL keeps so many bytes of a name."""


def read_name_glob(value: object, place: str) -> str:
    """Read a glob over names; one that is longer than any name is an error."""
    glob = read_glob(value, place)
    least = len(_CLASS.sub("?", glob).replace("*", "").encode())
    if least > MAX_NAME_BYTES:
        problem = (
            f"{short_repr(glob)} can never match: it needs {least} bytes, and PostgreSQL keeps only"
            f" the first {MAX_NAME_BYTES} bytes of a name; shorten it and end it with *"
        )
        raise ConfigurationError(place, problem)
    return glob


def read_application_glob(value: object, place: str) -> str:
    """Read a glob over application names, which PostgreSQL keeps in printable ASCII only."""
    glob = read_name_glob(value, place)
    replaced = next((character for character in glob if not " " <= character <= "~"), None)
    if replaced:
        kind = "control" if replaced.isascii() else "non-ASCII"
        problem = (
            f"{short_repr(glob)} contains {replaced!r}: PostgreSQL replaces {kind} characters in an"
            " application name; write * instead"
        )
        raise ConfigurationError(place, problem)
    return glob


def read_application_globs(value: object, place: str) -> Globs:
    """Read globs over application names; `[""]` is the sessions without a name."""
    if value == "":
        problem = 'is empty; write [""] for the sessions without a name, or remove it'
        raise ConfigurationError(place, problem)
    return read_list(_read_application_glob_or_empty, value, place)


def _read_application_glob_or_empty(value: object, place: str) -> str:
    return "" if value == "" else read_application_glob(value, place)


WAIT_EVENT_TYPES = (
    *("Activity", "BufferPin", "Client", "Extension", "InjectionPoint"),
    *("IO", "IPC", "Lock", "LWLock", "Timeout"),
)
"""All values of `wait_event_type` in PostgreSQL 13 to 18."""

_KNOWN_EVENTS = (
    *("ClientRead", "ClientWrite"),
    # Lock
    *("advisory", "extend", "object", "page", "relation"),
    *("spectoken", "transactionid", "tuple", "virtualxid"),
)


def read_wait_event_type(value: object, place: str) -> str:
    """Read a glob over wait event types; one that matches no type is an error."""
    glob = read_name_glob(value, place)
    if not any(fnmatchcase(known, glob) for known in WAIT_EVENT_TYPES):
        meant = [known for known in WAIT_EVENT_TYPES if fnmatchcase(known.lower(), glob.lower())]
        hint = f"write {meant[0]}" if meant else f"valid: {', '.join(WAIT_EVENT_TYPES)}"
        raise ConfigurationError(place, f"{short_repr(glob)} matches no wait event type; {hint}")
    return glob


def read_wait_event(value: object, place: str) -> str:
    """Read a glob over wait events; an event of a client or a lock in the wrong case is an error.

    The other events differ between versions and extensions, so they cannot be checked.
    """
    glob = read_name_glob(value, place)
    event = {known.lower(): known for known in _KNOWN_EVENTS}.get(glob.lower(), glob)
    if event != glob:
        problem = f"{short_repr(glob)} matches no wait event, because case matters; write {event}"
        raise ConfigurationError(place, problem)
    return glob


def read_network(value: object, place: str) -> IPv4Network | IPv6Network:
    """Read an IP address or a network in CIDR notation."""
    text = non_empty_text(value, place)
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigurationError(
            place, f"{error}; write an address or a network such as 10.0.8.0/24"
        ) from None


_REFUSED = {
    "^": "query is a glob and always matches from the beginning; write [!a] to exclude a character",
    "\\": "query is a glob; write [*], [?] or [[] for a literal *, ? or [",
    "(?": "query is a glob; write ([?] for a literal in parentheses",
    ".*": "query is a glob; write * for any text, or [.]* for a dot and any text",
    "'": "queries are matched with each literal replaced by ?; write ? for it",
}
"""Text that no query glob may contain, with a hint: signs of a regular expression, and quotes."""


def read_query_glob(value: object, place: str) -> re.Pattern[str]:
    """Compile a glob over queries as `strip_for_matching` returns them.

    A glob that matches every query, or can match none, is an error.
    """
    written = read_glob(value, place)
    shown = short_repr(written)
    for sign, hint in _REFUSED.items():
        if sign in written:
            raise ConfigurationError(place, f"{shown} contains {sign}: {hint}")
    glob = re.sub(r"\s+", " ", written).lstrip()
    if not glob.strip("*? "):
        problem = f"{shown} matches every query; remove it or make it more specific"
        raise ConfigurationError(place, problem)
    hidden = _find_hidden(glob)
    if hidden:
        problem = (
            f"{shown} can never match because it contains {short_repr(hidden)}: queries are matched"
            " without comments and with each literal replaced by ?; write ? for a literal and"
            " complete every quoted name"
        )
        raise ConfigurationError(place, problem)
    if len(_CLASS.sub("a", glob).replace("*", "")) > MATCHED_LENGTH:
        problem = (
            f"{shown} can never match: only the first {MATCHED_LENGTH} characters"
            " of a query are compared"
        )
        raise ConfigurationError(place, problem)
    return re.compile(translate(f"{glob}*"), re.IGNORECASE)


def _find_hidden(glob: str) -> str | None:
    """Return the first literal or comment in the glob, outside of quoted names."""
    comment = re.search(r"/\*.*\*/", glob)
    if comment:
        return comment[0]
    # A wildcard may stand for part of a name or of a parameter: t_*1, $*
    wildcards = _CLASS.sub(lambda found: "?" * len(found[0]), glob)
    text = re.sub("[*?]", "a", re.sub(r"(?<=\$)[*?]", "1", wildcards))
    literal = find_literal(text)
    return literal and glob[literal.start() : literal.end()]


def widen_classes(glob: str) -> str:
    """Return the glob with each character class replaced by `?`, so that it matches more."""
    return _CLASS.sub("?", glob)


def to_like(glob: str) -> str:
    """Return a pattern of SQL's LIKE that matches the same as a glob without character classes."""
    return re.sub(r"[\\%_]", r"\\\g<0>", glob).replace("*", "%").replace("?", "_")


def is_literal(glob: str) -> bool:
    """Return whether the glob is a plain name."""
    return not set(glob) & set("*?[")


# -- matching -------------------------------------------------------------------------------------


def matches_query(globs: QueryGlobs, query: str) -> bool:
    """Return whether a glob matches the query, given as `strip_for_matching` returns it."""
    return any(glob.match(query) for glob in globs)


@lru_cache(maxsize=10_000)  # sessions share their names
def matches_any(globs: Globs, value: str) -> bool:
    """Return whether a glob matches the whole value, case-sensitively."""
    return any(fnmatchcase(value, glob) for glob in globs)


def is_within(networks: Networks, client: str | None) -> bool:
    """Return whether the address lies in a network; None, a Unix socket, lies in none."""
    if not networks or client is None:
        return False
    address = _parse_address(client)
    return any(address in network for network in networks)


_parse_address = lru_cache(maxsize=10_000)(ip_address)  # sessions share their clients
