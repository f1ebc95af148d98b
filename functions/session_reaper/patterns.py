"""Patterns of a policy: globs, networks and regular expressions, read strictly and matched."""

import re
import warnings
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from session_reaper.documents import shown, text
from session_reaper.errors import ConfigurationError

Globs = tuple[str, ...]
Networks = tuple[IPv4Network | IPv6Network, ...]
Regexes = tuple[re.Pattern[str], ...]

# -- reading --------------------------------------------------------------------------------------


def read_glob(value: object, place: str) -> str:
    """A glob over a whole value: `*`, `?` and `[…]`. Raises ConfigurationError."""
    written = text(value, place)
    # As fnmatch reads them: what it takes for no class it takes for text, which fits nobody here.
    if "[" in re.sub(r"\[!?+.[^\]]*\]", "", written, flags=re.DOTALL):
        problem = f"{shown(written)} has a [ without its ]; a plain [ is written [[]"
        raise ConfigurationError(place, problem)
    if "(?!)" in translate(written):
        raise ConfigurationError(place, f"{shown(written)} has a class that no character fits")
    return written


def read_network(value: object, place: str) -> IPv4Network | IPv6Network:
    """An address or a network in CIDR notation. Raises ConfigurationError."""
    written = text(value, place)
    try:
        return ip_network(written)
    except ValueError as error:
        raise ConfigurationError(
            place, f"{error}; write an address or a network such as 10.0.8.0/24"
        ) from None


_MOST_REPEATS = 3
_MOST_CHOICES = {0: 10, 1: 10, 2: 6, 3: 2}  # beside so many repeats


def _takes_too_long(pattern: str) -> str | None:
    """Why a pattern could hold up a run, or None: no deadline reaches into `re`.

    A repeated group that holds a choice or a repeat, as in (a+)+, can take time exponential in the
    query's length; n repeats in a row, its power of n, or n + 1 if the pattern may begin anywhere.
    Each choice may double that.
    Repeats of white space cost nothing: the text that is searched has one blank in a row.
    """
    if re.search(r"\(\?[aiLmsu-]*x", pattern):
        return "has the flag x, which hides what is repeated"
    # Escapes, classes and groups without a choice become a letter.
    rest = re.sub(r"(?:\\s| )(?:[*+]|\{\d*,\d*\})", "a", pattern)
    rest = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\0", "a", rest)
    rest = re.sub(r"\(\?(?:[aiLmsu-]+\)|P<\w+>|[aiLmsu-]*:|<?[=!])", "(", rest)
    repeats = len(re.findall(r"[*+]|\{\d*,", re.sub(r"[a.][*+]$", "", rest)))
    anchored = re.match(r"(?:\()?\^[^|]*$", rest)
    power = repeats + (not anchored)
    if power > _MOST_REPEATS:
        return f"has more than {_MOST_REPEATS} repeats (2 unless it begins with ^)"
    most = _MOST_CHOICES[power]
    if len(re.findall(r"[|?]", rest)) > most:
        return f"has more than {most} choices (| or ?) beside its repeats"
    folded = ""
    while folded != rest:  # groups, from the inside out; one with a choice or a repeat is marked
        folded, rest = rest, re.sub(r"\(([^()]*)\)", _fold, rest)
        if re.search(r"\0[*+{]", rest):
            return "repeats a group that holds a choice or a repeat"
    return None


def _fold(group: re.Match[str]) -> str:
    return "\0" if re.search(r"[*+?|{\0]", group[1]) else "a"


def read_regex(value: object, place: str) -> re.Pattern[str]:
    """A regular expression that cannot hold up a run. Raises ConfigurationError."""
    written = text(value, place)
    reason = _takes_too_long(written)
    if reason:
        raise ConfigurationError(place, f"{reason}: matching it could take for ever")
    try:
        with warnings.catch_warnings(action="error"):  # of what a later Python reads otherwise
            pattern = re.compile(written)
    except (re.error, ArithmeticError, RecursionError, ValueError, Warning) as error:
        raise ConfigurationError(place, f"not a regular expression: {error}") from None
    if pattern.search(""):
        raise ConfigurationError(
            place, f"{shown(written)} matches every query; remove it or be specific"
        )
    return pattern


# -- matching -------------------------------------------------------------------------------------


SEARCHED: Final = 500
"""Characters of a query that expressions see: time grows with the third power."""


@lru_cache(maxsize=10_000)  # leaks share their queries
def finds_any(patterns: Regexes, query: str) -> bool:
    """Whether an expression is found in the query's beginning, its white space single blanks."""
    searched = " ".join(query[: 4 * SEARCHED].split())[:SEARCHED]
    return any(pattern.search(searched) for pattern in patterns)


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
