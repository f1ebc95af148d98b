"""Sentences with names and SQL in them, which every renderer quotes in its own way."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from session_reaper.report.text import printable, truncate

_HINT_LENGTH: Final = 3500  # characters; what to do about a full server takes most of them
_STATEMENT_LENGTH: Final = 1400  # characters
_HIDDEN: Final = "(This statement cannot be shown here in full. The run's report has it.)"
# A statement in a hint: from its keyword to its semicolon, but not over the end of a sentence. A
# quoted name may hold anything.
_SQL: Final = re.compile(
    r"""\b((?:ALTER|GRANT|REVOKE|SELECT) (?:"[^"]*"|'[^']*'|[^;"'.]|\.(?! ))*;)"""
)


@dataclass(frozen=True, slots=True)
class Name:
    """Text from outside within a sentence, such as a name or a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL, to be shown in one piece."""

    text: str


Prose = tuple[str | Name | Statement, ...]
"""The parts of a text in order, with the blanks between them."""


def to_plain(prose: Prose) -> str:
    """Write prose without any quoting."""
    return "".join(part if isinstance(part, str) else part.text for part in prose)


def join_prose(parts: Iterable[Prose], separator: str) -> Prose:
    """Join the parts of a list."""
    return tuple(islice(chain.from_iterable((separator, *part) for part in parts), 1, None))


def name_role(role: str | None) -> Prose:
    """Write the role of a session, None if it was dropped."""
    return ("role dropped",) if role is None else ("role ", Name(printable(role, 63)))


def to_statement(sql: str) -> str | Statement:
    """Make a statement of SQL, or a remark if it cannot be shown unchanged."""
    is_whole = printable(sql, _STATEMENT_LENGTH) == sql
    return Statement(sql) if is_whole else _HIDDEN


def split_hint(hint: str) -> Prose:
    """Split a hint into sentences and the SQL statements in it."""
    parts = _SQL.split(truncate(hint, _HINT_LENGTH))  # every second one is a statement
    return tuple(
        to_statement(part) if index % 2 else printable(part, _HINT_LENGTH)
        for index, part in enumerate(parts)
        if part
    )
