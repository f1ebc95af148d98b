"""Wraps the text of a summary again, for a terminal that is narrower than an email."""

import re
from collections.abc import Iterable, Iterator
from textwrap import wrap

from session_reaper.summary.email import WIDTH

_ITEM = re.compile(r" *(?:\d+\.|-) ")


def narrow(lines: Iterable[str], width: int) -> Iterator[str]:
    """Wrap paragraphs at another width; SQL, which is to be copied, stays as it is."""
    paragraph: list[str] = []
    for line in lines:
        if paragraph and not _continues(paragraph[-1], line):
            yield from _wrap(paragraph, width)
            paragraph = []
        paragraph.append(line)
    yield from _wrap(paragraph, width)


def _continues(before: str, line: str) -> bool:
    """Return whether a line was separated from the one before it only because it was too long."""
    if _is_verbatim(before) or _is_verbatim(line) or _ITEM.match(line):
        return False
    first, _, _ = line.strip().partition(" ")
    return bool(first) and len(f"{before} {first}") > WIDTH and _indent(before) <= _indent(line)


def _is_verbatim(line: str) -> bool:
    return not line.strip() or line.endswith(";") or len(line) > WIDTH


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _wrap(paragraph: list[str], width: int) -> Iterator[str]:
    first, *others = paragraph
    if not others and (_is_verbatim(first) or len(first) <= width):
        yield first
        return
    marker = _ITEM.match(first)
    later = _indent(others[0]) if others else len(marker[0]) if marker else _indent(first) + 2
    yield from wrap(
        " ".join(line.strip() for line in paragraph),
        width,
        initial_indent=" " * _indent(first),
        subsequent_indent=" " * later,
        break_long_words=False,
        break_on_hyphens=False,
    )
