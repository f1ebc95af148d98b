"""Durations as people write and read them: `90s`, `5m`, `1h30m`, `2d`."""

import re

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def parse_duration(text: str) -> float | None:
    """Seconds of a duration such as `5m`, or None if `text` is none.

    >>> parse_duration("1h30m"), parse_duration("500ms"), parse_duration("300")
    (5400.0, 0.5, None)
    """
    if not _WHOLE.fullmatch(text):
        return None
    return float(sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))


def format_duration(seconds: float) -> str:
    """Two units at most, rounded down, so that an age never reads above a threshold it missed.

    >>> [format_duration(s) for s in (0.25, 1.25, 59.9, 901, 3600, 93784)]
    ['250ms', '1.2s', '59s', '15m 1s', '1h', '1d 2h']
    """
    if 0 < seconds < 1:
        return f"{int(seconds * 1000)}ms"
    if seconds < 10:  # noqa: PLR2004 -- below ten seconds the tenth says something
        return f"{int(seconds * 10) / 10:g}s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    for size, name, below, below_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "m"),
        (_MINUTE, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{name}" + (f" {rest}{below_name}" if rest else "")
    raise AssertionError(seconds)
