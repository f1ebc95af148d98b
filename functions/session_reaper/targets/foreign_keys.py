"""Finds the value that a secret holds under another program's key, so that an error can name it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """A key of the secret, and the key that the reaper reads instead."""

    name: str
    ours: str


# Without a prefix (DB_HOST, PGHOST, spring.datasource.username), in lower case, without separators.
_SYNONYMS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "host": frozenset({"host", "hostname", "endpoint", "address", "server"}),
        "username": frozenset({"user", "username", "userid", "login"}),
        "password": frozenset({"password", "passwd", "pass", "pwd"}),
    }
)
_PREFIX: Final = re.compile(
    r"(?:(?:spring)?datasource|database|postgresql|postgres|master|rds|pg|db)*"
)
_SHOWABLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
_URI: Final = re.compile(r"\s*postgres(ql)?(\+\w+)?://")


def find_foreign_key(document: Mapping[str, object], key: str) -> ForeignKey | None:
    """Return the key of the document that seems to hold what the reaper reads as `key`, or None.

    A service URI under any key holds everything.
    """
    given = [name for name, value in document.items() if value and isinstance(value, str)]
    for name in filter(_SHOWABLE.fullmatch, given):
        if _strip_prefix(name) in _SYNONYMS.get(key, ()):
            return ForeignKey(name=name, ours=key)
    for name in filter(_SHOWABLE.fullmatch, given):
        if _URI.match(str(document[name])):
            return ForeignKey(name=name, ours="uri")
    return None


def _strip_prefix(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return plain[len(_PREFIX.match(plain)[0]) :]  # type: ignore[index] # it matches "", too
