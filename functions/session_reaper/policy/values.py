"""Readers of single values of a policy document."""

import re
from decimal import Decimal

from session_reaper.documents import non_empty_text, read_choice, short_repr
from session_reaper.errors import ConfigurationError
from session_reaper.policy.durations import format_duration, parse_duration
from session_reaper.policy.enums import Mode

_MAX_SECONDS = 3650 * 86400.0
_MAX_PAUSE = 300.0  # seconds; Lambda ends a function after 15 minutes


def read_duration(value: object, place: str) -> float:
    """Read a duration such as 5m as seconds."""
    shown = short_repr(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ConfigurationError(place, f"{shown} has no unit; write {shown}s or 5m")
    seconds = parse_duration(non_empty_text(value, place))
    if seconds is None:
        raise ConfigurationError(place, f"invalid duration {shown}; write 30s, 5m, 1h30m or 2d")
    if seconds > _MAX_SECONDS:
        raise ConfigurationError(place, f"{shown} is too long; at most {_MAX_SECONDS / 86400:g}d")
    return seconds


def read_pause(value: object, place: str) -> float:
    """Read the duration of a pause during a run as seconds."""
    seconds = read_duration(value, place)
    if seconds > _MAX_PAUSE:
        problem = f"{short_repr(value)} is too long; at most {format_duration(_MAX_PAUSE)}"
        raise ConfigurationError(place, problem)
    return seconds


def read_percent(value: object, place: str) -> Decimal:
    """Read a percentage such as 50% without rounding."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", value) if isinstance(value, str) else None
    if not found or not 0 < Decimal(found[1]) <= 100:  # noqa: PLR2004 -- percent
        problem = f"invalid percentage {short_repr(value)}; write a value such as 50%, above 0%"
        raise ConfigurationError(place, problem)
    return Decimal(found[1])


def read_version(value: object, place: str) -> int:
    """Read the version of the policy language."""
    if value != 1 or isinstance(value, bool):
        raise ConfigurationError(place, f"unknown version {short_repr(value)}; known: 1")
    return 1


def read_mode(value: object, place: str) -> Mode:
    """Read a mode by name; YAML 1.1 reads a bare `off` as false."""
    return read_choice(Mode, "off" if value is False else value, place)
