from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
from session_reaper.documents import (
    mapping_of,
    non_empty_text,
    one_or_many,
    positive_int,
    short_repr,
)
from session_reaper.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: Annotated[int, positive_int] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: Annotated[str, non_empty_text]
    inner: Annotated[tuple[Inner, ...], one_or_many(mapping_of(Inner))] = ()


read = mapping_of(Outer)


def test_a_missing_key_gets_its_default() -> None:
    assert read({"name": "a"}, "") == Outer(name="a")


def test_one_value_is_read_as_a_list_of_one() -> None:
    assert read({"name": "a", "inner": {"size": 2}}, "") == read(
        {"name": "a", "inner": [{"size": 2}]}, ""
    )


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({}, "name: is required"),
        ({"name": ""}, "name: is empty"),
        ({"name": 1}, "name: 1 is not text"),
        ({"name": None}, "name: None is not text"),
        ({"nam": "a"}, "nam: unknown key; known: name, inner"),
        ({"name": "a", 1: 2}, "1: unknown key"),
        ({"name": "a", "inner": []}, "inner: is an empty list"),
        (
            {"name": "a", "inner": [{}, {"size": 0}]},
            "inner[1].size: must be a whole number of at least 1, not 0",
        ),
        (
            {"name": "a", "inner": [{}, {"size": True}]},
            "inner[1].size: must be a whole number of at least 1, not True",
        ),
        (
            {"name": "a", "inner": [{}, {"size": 1.0}]},
            "inner[1].size: must be a whole number of at least 1, not 1.0",
        ),
        (
            {"name": "a", "inner": [{}, {"size": "1"}]},
            "inner[1].size: must be a whole number of at least 1, not '1'",
        ),
        ({"name": "a", "inner": [[{}]]}, "inner[0]: must be a mapping of keys to values, not [{}]"),
        ({"name": "a", "inner": {"sizes": 1}}, "inner.sizes: unknown key"),
        ("name", "document: must be a mapping of keys to values, not a single value"),
        (["name"], "document: must be a mapping of keys to values, not a list"),
        (None, "document: must be a mapping of keys to values, not an empty document"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_its_place(document: object, error: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(document, "")
    assert str(caught.value).startswith(error)


def test_places_start_with_the_place_of_the_document() -> None:
    with pytest.raises(ConfigurationError, match=r"^event\.policy\.name: is required"):
        read({}, "event.policy")


def test_a_long_value_is_truncated_in_an_error() -> None:
    assert len(short_repr("x" * 100_000)) == 40
    assert short_repr("x" * 38) == repr("x" * 38)
    assert short_repr("x" * 39) == f"'{'x' * 36}..."


@pytest.mark.parametrize("character", ["\0", "\ud800"])
def test_a_character_that_cannot_be_sent_on_is_refused(character: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({"name": f"a{character}"}, "")
    shown = short_repr(f"a{character}")
    assert str(caught.value) == (
        f"name: {shown} contains an invalid character (NUL or a lone surrogate)"
    )


def test_a_number_too_long_to_print_is_an_error_like_others() -> None:
    with pytest.raises(ConfigurationError, match=r"^name: "):
        read({"name": 1 << 20_000}, "")
