"""Reads the tags in the comments of a query, such as /*route='%2Forders'*/."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from session_reaper.sessions.redaction import find_comments

MAX_LENGTH: Final = 100
"""The most characters of a tag's value."""

# The format of https://google.github.io/sqlcommenter/spec/: a comment contains nothing but pairs,
# keys and values are percent-encoded, and then quotes are escaped.
_PAIR: Final = re.compile(r"([^\s=,'\\]+)='((?:[^'\\]|\\.)*)'", re.DOTALL)
_PAIRS: Final = re.compile(rf"\s*(?:{_PAIR.pattern})(?:\s*,\s*(?:{_PAIR.pattern}))*\s*", re.DOTALL)
# Only what an encoder writes, because the beginning of the query is unknown: none of the characters
# in a value can end a literal that contains the comment, so the query would end within the literal,
# and the server would not have accepted it.
_ENCODED: Final = r"[\w.%-]+='[\w.%~!()/:-]+'"
_LAST_COMMENT: Final = re.compile(rf"(?<!\*)/\*({_ENCODED}(?:,{_ENCODED})*)\*/[\s;]*\Z", re.ASCII)
_WORD: Final = re.compile(r"[^\s/?&=;,<>()\"'|]+")
_AT: Final = re.compile("@|%(?:25)*40")  # in an address; values may be encoded more than once
_DIGITS: Final = re.compile(r"\d+")


def read_tags(query: str, end: str) -> dict[str, str]:
    """Return the tags of a query by their keys; if a key is repeated, its first value.

    `end` is the last part of a query that the server accepted, where `query` is only its beginning.
    Digits and e-mail addresses are redacted.

    >>> read_tags("/*route='%2Forders%2F42',user='a%40example.com'*/ SELECT 1", "")
    {'route': '/orders/?', 'user': '?'}
    """
    tags: dict[str, str] = {}
    for comment in _find_tagged(query, end):
        for key, value in _PAIR.findall(comment):
            tags.setdefault(_decode(key), _redact(_decode(value)))
    return {key: value for key, value in tags.items() if value}


def _find_tagged(query: str, end: str) -> Iterator[str]:
    yield from filter(_PAIRS.fullmatch, find_comments(query))
    last = _LAST_COMMENT.search(end)
    if last is not None:
        yield last[1]


def _decode(text: str) -> str:
    # Python's libraries double each % for the driver, which leaves it so in a query without
    # parameters. An encoder itself writes %25.
    unescaped = re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
    return unquote(unescaped.replace("%%", "%"))


def _redact(value: str) -> str:
    without_addresses = _WORD.sub(lambda word: "?" if _AT.search(word[0]) else word[0], value)
    text = _DIGITS.sub("?", without_addresses)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"
