"""Patterns of a policy: globs over names and queries, and networks, read strictly and matched."""

import re
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from session_reaper.documents import non_empty_text, short_repr
from session_reaper.errors import ConfigurationError
from session_reaper.sessions.redaction import MATCHED_LENGTH, find_literal

Globs = tuple[str, ...]
Networks = tuple[IPv4Network | IPv6Network, ...]
QueryGlobs = tuple[re.Pattern[str], ...]

# -- reading --------------------------------------------------------------------------------------


_CLASS = re.compile(r"\[!?+.[^\]]*\]", re.DOTALL)  # as fnmatch reads one


def read_glob(value: object, place: str) -> str:
    """A glob over a whole value: `*`, `?` and `[…]`. Raises ConfigurationError."""
    written = non_empty_text(value, place)
    # As fnmatch reads them: what it takes for no class it takes for text, which fits nobody here.
    if "[" in _CLASS.sub("", written):
        problem = f"{short_repr(written)} has a [ without its ]; a plain [ is written [[]"
        raise ConfigurationError(place, problem)
    if "(?!)" in translate(written):
        raise ConfigurationError(place, f"{short_repr(written)} has a class that no character fits")
    return written


def read_network(value: object, place: str) -> IPv4Network | IPv6Network:
    """An address or a network in CIDR notation. Raises ConfigurationError."""
    written = non_empty_text(value, place)
    try:
        return ip_network(written)
    except ValueError as error:
        raise ConfigurationError(
            place, f"{error}; write an address or a network such as 10.0.8.0/24"
        ) from None


_REFUSED = {
    "^": "query is a glob, compared from the query's beginning; [!a] is any character but a",
    "\\": "query is a glob; [*], [?] and [[] stand for these characters themselves",
    "(?": "query is a glob; write ([?] for a literal in brackets",
    ".*": "query is a glob; write * for any text, [.]* for a dot and any text",
    "'": "reports show literals as ?; write ? for one",
}
"""What no query glob may contain, with a hint: signs of a regular expression, and quotes."""


def read_query_glob(value: object, place: str) -> re.Pattern[str]:
    """Compile a glob over what `redaction.matched_text` returns.

    Raises ConfigurationError, also if the glob matches every query or can match none.
    """
    written = read_glob(value, place)
    for sign, hint in _REFUSED.items():
        if sign in written:
            raise ConfigurationError(place, f"{short_repr(written)} contains {sign}: {hint}")
    glob = re.sub(r"\s+", " ", written).lstrip()
    if not glob.strip("*? "):
        problem = f"{short_repr(written)} matches every query; remove it or be specific"
        raise ConfigurationError(place, problem)
    hidden = _find_hidden(glob)
    if hidden:
        problem = (
            f"{short_repr(written)} can match no query: it contains {short_repr(hidden)}, but reports show "
            "literals as ? and leave comments out; write ? for a literal, and a quoted name whole"
        )
        raise ConfigurationError(place, problem)
    if len(_CLASS.sub("a", glob).replace("*", "")) > MATCHED_LENGTH:
        problem = f"{short_repr(written)} can match no query: only {MATCHED_LENGTH} characters of one are compared"
        raise ConfigurationError(place, problem)
    return re.compile(translate(f"{glob}*"), re.IGNORECASE)


def _find_hidden(glob: str) -> str | None:
    """Return a literal or a comment in the glob, outside of quoted names."""
    comment = re.search(r"/\*.*\*/", glob)
    if comment:
        return comment[0]
    # A wildcard may stand for part of a name or of a parameter: t_*1, $*
    wildcards = _CLASS.sub(lambda found: "?" * len(found[0]), glob)
    text = re.sub("[*?]", "a", re.sub(r"(?<=\$)[*?]", "1", wildcards))
    literal = find_literal(text)
    return literal and glob[literal.start() : literal.end()]


# -- matching -------------------------------------------------------------------------------------


def matches_query(globs: QueryGlobs, query: str) -> bool:
    """Return whether a glob matches the query, given as `redaction.matched_text` returns it."""
    return any(glob.match(query) for glob in globs)


@lru_cache(maxsize=10_000)  # sessions share their names: most are looked up, not matched
def matches_any(globs: Globs, value: str) -> bool:
    """Whether a glob fits the whole value, upper and lower case told apart."""
    return any(fnmatchcase(value, glob) for glob in globs)


def is_within(networks: Networks, client: str | None) -> bool:
    """Whether the client's address lies in a network; a Unix socket has no address."""
    if not networks or client is None:
        return False
    address = _address(client)
    return any(address in network for network in networks)


_address = lru_cache(maxsize=10_000)(ip_address)  # sessions share their clients, too
