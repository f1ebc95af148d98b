"""Strict reading of a parsed document (a policy, an event) into frozen values.

What is not understood is an error that names its place, never a guess: a document that is misread
in silence is a session killed by mistake, or a protection that is not there.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache, partial
from typing import Any, TypeVar, get_type_hints

from session_reaper.errors import ConfigurationError

T = TypeVar("T")
Read = Callable[[object, str], T]
"""From a value of the document and its place to what it means; raises ConfigurationError."""

UNSENDABLE = re.compile("[\0\ud800-\udfff]")
"""What JSON can hold and nobody can send on: NUL and lone surrogates."""

_MOST_SHOWN = 40  # characters of a wrong value in an error
_HIDDEN = "(not shown: it may hold a credential)"
_CREDENTIAL = re.compile(
    r"://"  # a URI, which may hold a password
    r"|(pass(word|wd|file)?|pwd|token|secret)[\"']*\s*[:=]"  # a DSN, or JSON
    r"|[^\s/@:]:[^\s@]+@",  # the middle of a URI
    re.IGNORECASE,
)


def may_hold_credential(text: str) -> bool:
    """Return whether the text looks like a URI, a DSN or a secret's JSON, which nobody may see."""
    return _CREDENTIAL.search(text) is not None


def short_repr(value: object) -> str:
    """A wrong value as an error shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list as deep
        text = "this value"
    if may_hold_credential(text):
        return _HIDDEN
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def key_label(key: object) -> str:
    """A key as the place in an error names it."""
    plain = isinstance(key, str) and key and key.isprintable() and not may_hold_credential(key)
    return str(key)[:_MOST_SHOWN] if plain else short_repr(key)


def non_empty_text(value: object, place: str) -> str:
    """Text that is not empty."""
    if not isinstance(value, str):
        raise ConfigurationError(place, f"{short_repr(value)} is not text; put it in quotes")
    if not value:
        raise ConfigurationError(place, "is empty; fill it in or remove it")
    if UNSENDABLE.search(value):
        raise ConfigurationError(place, f"{short_repr(value)} holds a character that is no text")
    return value


def positive_int(value: object, place: str) -> int:
    """A whole number from 1 up."""
    return _whole(value, place, 1)


def non_negative_int(value: object, place: str) -> int:
    """A whole number from 0 up."""
    return _whole(value, place, 0)


_MOST = 10**15  # of whatever is counted here


def _whole(value: object, place: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(place, f"{short_repr(value)} is no whole number from {least} up")
    if value > _MOST:
        raise ConfigurationError(place, f"{short_repr(value)} is too large")
    return value


def boolean(value: object, place: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ConfigurationError(place, f"{short_repr(value)} is neither true nor false")
    return value


def read_several(read: Read[T], value: object, place: str) -> tuple[T, ...]:
    """One value or a list of alternatives; an empty list is a mistake, it does not mean all."""
    if not isinstance(value, list):
        return (read(value, place),)
    if not value:
        raise ConfigurationError(place, "is an empty list; fill it in or remove it")
    return tuple(read(item, f"{place}[{index}]") for index, item in enumerate(value))


def one_or_many(read: Read[T]) -> Read[tuple[T, ...]]:
    """A reader of one value or a list of alternatives."""
    return partial(read_several, read)


def read_record(kind: type[T], value: object, place: str) -> T:
    """A mapping with the keys of a dataclass; a field is `Annotated[type, reader, "what it is"]`."""
    if not isinstance(value, dict):
        raise ConfigurationError(place or "document", f"{short_repr(value)} is no mapping of keys")
    known = _readers(kind)  # type: ignore[arg-type] # a class is hashable; mypy doubts it
    dot = f"{place}." if place else ""
    for key in value:
        if key not in known:
            problem = f"unknown key; known are {', '.join(known)}"
            raise ConfigurationError(f"{dot}{key_label(key)}", problem)
    for name in _required(kind):
        if name not in value:
            raise ConfigurationError(f"{dot}{name}", "is required")
    return kind(**{key: known[key](item, f"{dot}{key}") for key, item in value.items()})


def mapping_of(kind: type[T]) -> Read[T]:
    """A reader of a mapping with the keys of a dataclass."""
    return partial(read_record, kind)


@cache
def _readers(kind: type) -> Mapping[str, Read[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def _required(kind: type) -> Iterator[str]:
    return (f.name for f in fields(kind) if f.default is MISSING)
