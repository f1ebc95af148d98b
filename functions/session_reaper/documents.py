"""Reads a parsed document (a policy, an event) strictly into frozen values.

An unknown key or an invalid value is an error that names its place. A guess could terminate the
wrong session or drop a protection.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache, partial
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

from session_reaper.errors import ConfigurationError

T = TypeVar("T")
Read = Callable[[object, str], T]
"""A reader: converts a value of the document at a place, or raises ConfigurationError."""

UNSENDABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that JSON can hold but that cannot be sent on: NUL and lone surrogates."""

_MAX_REPR = 40  # characters
_HIDDEN = "(not shown: it may hold a credential)"
_CREDENTIAL = re.compile(
    r"://"  # a URI, which may hold a password
    r"|(pass(word|wd|file)?|pwd|token|secret)[\"']*\s*[:=]"  # a DSN, or JSON
    r"|[^\s/@:]:[^\s@]+@",  # the middle of a URI
    re.IGNORECASE,
)


def may_hold_credential(text: str) -> bool:
    """Return whether the text looks like a URI, a DSN or a secret's JSON and must not be shown."""
    return _CREDENTIAL.search(text) is not None


def short_repr(value: object) -> str:
    """Render an invalid value for an error message, at most 40 characters and no credential."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deeply nested list
        text = "this value"
    if may_hold_credential(text):
        return _HIDDEN
    return text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 3] + "..."


def key_label(key: object) -> str:
    """Render a key for the place in an error message."""
    is_plain = isinstance(key, str) and key and key.isprintable() and not may_hold_credential(key)
    return str(key)[:_MAX_REPR] if is_plain else short_repr(key)


def non_empty_text(value: object, place: str) -> str:
    """Read text that is not empty and can be sent on."""
    if not isinstance(value, str):
        raise ConfigurationError(place, f"{short_repr(value)} is not text; put it in quotes")
    if not value:
        raise ConfigurationError(place, "is empty; fill it in or remove it")
    if UNSENDABLE.search(value):
        problem = f"{short_repr(value)} contains an invalid character (NUL or a lone surrogate)"
        raise ConfigurationError(place, problem)
    return value


_MAX_INT = 10**15


def _read_int(least: int, value: object, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        problem = f"must be a whole number of at least {least}, not {short_repr(value)}"
        raise ConfigurationError(place, problem)
    if value > _MAX_INT:
        raise ConfigurationError(place, f"{short_repr(value)} is too large")
    return value


positive_int: Read[int] = partial(_read_int, 1)
non_negative_int: Read[int] = partial(_read_int, 0)


def boolean(value: object, place: str) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ConfigurationError(place, f"must be true or false, not {short_repr(value)}")
    return value


def read_choice(choices: Iterable[T], value: object, place: str) -> T:
    """Read one of the choices by its text."""
    by_text = {str(choice): choice for choice in choices}
    if not isinstance(value, str) or value not in by_text:
        problem = f"invalid value {short_repr(value)}; valid: {', '.join(by_text)}"
        raise ConfigurationError(place, problem)
    return by_text[value]


def one_of(choices: Iterable[T]) -> Read[T]:
    """Return a reader of one of the choices."""
    return partial(read_choice, choices)


def read_list(read: Read[T], value: object, place: str) -> tuple[T, ...]:
    """Read one value or a list of alternatives; an empty list is an error and does not mean all."""
    if not isinstance(value, list):
        return (read(value, place),)
    if not value:
        raise ConfigurationError(place, "is an empty list; fill it in or remove it")
    return tuple(read(item, f"{place}[{index}]") for index, item in enumerate(value))


def one_or_many(read: Read[T]) -> Read[tuple[T, ...]]:
    """Return a reader of one value or a list of alternatives."""
    return partial(read_list, read)


# Names the form of a document without showing it.
_FORMS: Mapping[type, str] = {type(None): "an empty document", list: "a list"}


def read_mapping(kind: type[T], value: object, place: str, *, ignore_unknown: bool = False) -> T:
    """Read a mapping with the keys of a dataclass.

    Each field is `Annotated[type, reader, "description"]`; one without a default is required. A
    field that is not `Annotated` is not a key of the document. An unknown key is an error, unless
    it is to be ignored.
    """
    if not isinstance(value, dict):
        # A document other than a mapping may be a password, from the wrong parameter or file.
        found = short_repr(value) if place else _FORMS.get(type(value), "a single value")
        problem = f"must be a mapping of keys to values, not {found}"
        raise ConfigurationError(place or "document", problem)
    known = _find_readers(kind)  # type: ignore[arg-type] # a class is hashable; mypy doubts it
    prefix = f"{place}." if place else ""
    for key in value:
        if key not in known and not ignore_unknown:
            problem = f"unknown key; known: {', '.join(known)}"
            raise ConfigurationError(f"{prefix}{key_label(key)}", problem)
    for field in fields(kind):  # type: ignore[arg-type] # each kind is a dataclass
        if field.default is MISSING and field.name not in value:
            raise ConfigurationError(f"{prefix}{field.name}", "is required")
    given = {key: item for key, item in value.items() if key in known}
    return kind(**{key: known[key](item, f"{prefix}{key}") for key, item in given.items()})


def mapping_of(kind: type[T], *, ignore_unknown: bool = False) -> Read[T]:
    """Return a reader of a mapping with the keys of a dataclass."""
    return partial(read_mapping, kind, ignore_unknown=ignore_unknown)


@cache
def _find_readers(kind: type) -> Mapping[str, Read[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {n: hint.__metadata__[0] for n, hint in hints.items() if get_origin(hint) is Annotated}
