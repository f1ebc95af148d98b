"""Durations such as `90s`, `5m`, `1h30m` or `2d`."""

import re

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def parse_duration(text: str) -> float | None:
    """Parse a duration into seconds; None if it is invalid.

    >>> parse_duration("1h30m"), parse_duration("500ms"), parse_duration("300")
    (5400.0, 0.5, None)
    """
    if not _WHOLE.fullmatch(text):
        return None
    return float(sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))


def format_duration(seconds: float) -> str:
    """Format seconds with at most two units, rounded down so that an age never reads as older.

    >>> [format_duration(s) for s in (0.25, 1.25, 59.9, 901, 3600, 93784)]
    ['250ms', '1.2s', '59s', '15m 1s', '1h', '1d 2h']
    """
    if 0 < seconds < 1:
        return f"{int(seconds * 1000)}ms"
    if seconds < 10:  # noqa: PLR2004 -- below ten seconds a tenth matters
        return f"{int(seconds * 10) / 10:g}s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    for size, unit, smaller_size, smaller_unit in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "m"),
        (_MINUTE, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}" + (f" {rest}{smaller_unit}" if rest else "")
    raise AssertionError(seconds)
