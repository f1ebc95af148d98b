"""Reads the single values of a policy document."""

import re
from decimal import Decimal
from enum import StrEnum
from typing import TypeVar

from session_reaper.documents import non_empty_text, short_repr
from session_reaper.errors import ConfigurationError
from session_reaper.policy.durations import format_duration, parse_duration
from session_reaper.policy.enums import Action, HeldResource, Mode, Order, QueryVisibility
from session_reaper.sessions.session import State

# -- what the values of a document mean ----------------------------------------------------------

Choice = TypeVar("Choice", bound=StrEnum)


def _one_of(kind: type[Choice], value: object, place: str, what: str) -> Choice:
    written = non_empty_text(value, place)
    try:
        return kind(written)
    except ValueError:
        raise ConfigurationError(
            place, f"{short_repr(written)} is no {what}: {', '.join(kind)}"
        ) from None


def read_state(value: object, place: str) -> State:
    """A state that a rule may name. Raises ConfigurationError."""
    return _one_of(State, value, place, "state a rule may name")


def read_action(value: object, place: str) -> Action:
    """An action by name. Raises ConfigurationError."""
    return _one_of(Action, value, place, "action")


def read_held_resource(value: object, place: str) -> HeldResource:
    """Something to hold, by name. Raises ConfigurationError."""
    return _one_of(HeldResource, value, place, "thing that a session holds")


def read_order(value: object, place: str) -> Order:
    """An order by name. Raises ConfigurationError."""
    return _one_of(Order, value, place, "order")


def read_query_visibility(value: object, place: str) -> QueryVisibility:
    """A way to show queries, by name. Raises ConfigurationError."""
    return _one_of(QueryVisibility, value, place, "way to show queries")


_LONGEST = 3650 * 86400.0  # seconds; no session is older than ten years
_LONGEST_PAUSE = 300.0  # seconds; a function runs for 15 minutes at most, with all it has to do


def read_duration(value: object, place: str) -> float:
    """Seconds of a duration such as 5m. Raises ConfigurationError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ConfigurationError(
            place, f"{short_repr(value)} has no unit; write {short_repr(value)}s or 5m, 1h30m, 2d"
        )
    seconds = parse_duration(non_empty_text(value, place))
    if seconds is None or seconds > _LONGEST:
        raise ConfigurationError(
            place, f"{short_repr(value)} is no duration; write 30s, 5m, 1h30m or 2d"
        )
    return seconds


def read_pause(value: object, place: str) -> float:
    """Seconds for which a run waits. Raises ConfigurationError."""
    seconds = read_duration(value, place)
    if seconds > _LONGEST_PAUSE:
        most = format_duration(_LONGEST_PAUSE)
        raise ConfigurationError(
            place, f"{short_repr(value)} is longer than a run waits; {most} at most"
        )
    return seconds


def read_percent(value: object, place: str) -> Decimal:
    """A percentage such as 50%, exactly. Raises ConfigurationError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", value) if isinstance(value, str) else None
    if not found or not 0 < Decimal(found[1]) <= 100:  # noqa: PLR2004 -- percent
        raise ConfigurationError(
            place, f"{short_repr(value)} is no share; write a percentage such as 50%"
        )
    return Decimal(found[1])


def read_version(value: object, place: str) -> int:
    """The version of the document's language. Raises ConfigurationError."""
    if value != 1 or isinstance(value, bool):
        raise ConfigurationError(
            place, f"{short_repr(value)} is not known; this release reads version 1"
        )
    return 1


def read_mode(value: object, place: str) -> Mode:
    """A mode by name. YAML reads a bare `off` as false, and everybody writes it bare."""
    for mode in Mode:
        if value == str(mode) or (value is False and mode is Mode.OFF):
            return mode
    raise ConfigurationError(
        place, f"{short_repr(value)} is no mode; write one of {', '.join(map(str, Mode))}"
    )
