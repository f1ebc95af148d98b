"""Wraps the text of a summary again, for a terminal that is narrower than an email.

The text does not say which lines belong together, so in doubt a line is taken for a paragraph of its own.
"""

import re
from collections.abc import Iterable, Iterator
from textwrap import wrap

from session_reaper.summary.email import WIDTH

_ITEM = re.compile(r" *(?:\d+\.|-) ")
_DEEP = 4  # columns; a paragraph that begins there or further in indents its second line


def narrow(lines: Iterable[str], width: int) -> Iterator[str]:
    """Wrap paragraphs at another width; SQL, which is to be copied, stays as it is."""
    paragraph: list[str] = []
    for line in lines:
        if paragraph and not _continues(paragraph, line):
            yield from _wrap(paragraph, width)
            paragraph = []
        paragraph.append(line)
    yield from _wrap(paragraph, width)


def _continues(paragraph: list[str], line: str) -> bool:
    """Return whether a line was separated from a paragraph only because it was too long."""
    before = paragraph[-1]
    if _is_verbatim(before) or _is_verbatim(line) or _ITEM.match(line):
        return False
    first, _, _ = line.strip().partition(" ")
    if not first or len(f"{before} {first}") <= WIDTH:
        return False
    if len(paragraph) > 1:
        return _count_indent(before) == _count_indent(line)
    if _count_indent(before) == _count_indent(line):
        return _count_indent(before) < _DEEP
    begins = first.endswith(":") or (first[0].isupper() and not _ITEM.match(before))
    return _count_indent(before) < _count_indent(line) and not begins


def _is_verbatim(line: str) -> bool:
    return not line.strip() or line.endswith(";") or len(line) > WIDTH


def _count_indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _wrap(paragraph: list[str], width: int) -> Iterator[str]:
    first, *others = paragraph
    if not others and (_is_verbatim(first) or len(first) <= width):
        yield first
        return
    marker = _ITEM.match(first)
    later = (
        _count_indent(others[0])
        if others
        else len(marker[0])
        if marker
        else _count_indent(first) + 2
    )
    yield from wrap(
        " ".join(line.strip() for line in paragraph),
        width,
        initial_indent=" " * _count_indent(first),
        subsequent_indent=" " * later,
        break_long_words=False,
        break_on_hyphens=False,
    )
