from __future__ import annotations

import pytest
from session_reaper.policy.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1ms", 0.001),
        ("500ms", 0.5),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1.5h", 5400),
        ("1d2h3m4s5ms", 93_784.005),
    ],
)
def test_parses_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "5",
        "5.0",
        "m",
        "5 m",
        " 5m",
        "5m ",
        "5m\n",
        "-5m",
        "+5m",
        "5M",
        "5min",
        "1h,30m",
        "five minutes",
        "1e3s",
        ".5m",
        "5:00",
        "0x5m",
        "5m30",
        "∞",
    ],
)
def test_an_invalid_duration_is_none(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0521, "52ms"),
        (0.25, "250ms"),
        (0.9999, "999ms"),
        (1.0, "1s"),
        (9.99, "9.9s"),
        (10.9, "10s"),
        (59.999, "59s"),
        (60, "1m"),
        (901.2, "15m 1s"),
        (3599.9, "59m 59s"),
        (3600, "1h"),
        (3661, "1h 1m"),
        (86_399, "23h 59m"),
        (86_400, "1d"),
        (93_784, "1d 2h"),
        (86_400 * 400 + 59, "400d"),
    ],
)
def test_formats_at_most_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("threshold", ["50ms", "1s", "30s", "1m", "5m", "1h", "1h30m", "2d"])
def test_an_age_below_a_threshold_never_reads_as_the_threshold(threshold: str) -> None:
    seconds = parse_duration(threshold)
    assert seconds is not None
    assert format_duration(seconds - 0.001) != format_duration(seconds)


@pytest.mark.parametrize(("unit", "end"), [("ms", 1000), ("s", 60), ("m", 60), ("h", 24)])
def test_formatting_reverses_parsing(unit: str, end: int) -> None:
    for number in range(1, end):
        seconds = parse_duration(f"{number}{unit}")
        assert seconds is not None
        assert format_duration(seconds) == f"{number}{unit}"
