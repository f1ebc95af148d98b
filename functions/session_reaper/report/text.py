"""Text from outside (names, messages, statements), made safe to show."""

from collections.abc import Sequence

NAME_LENGTH = 63
"""The most characters of a name: all that PostgreSQL keeps of one."""


def printable(text: str, most: int = 400, keep: str = "") -> str:
    """Return one line of at most `most` characters; unprintable ones not in `keep` become "?"."""
    if len(text) <= most and text.isprintable():
        return text
    text = text[: most + 1]
    return truncate("".join(c if c.isprintable() or c in keep else "?" for c in text), most)


def truncate(text: str, most: int, *, tail: int = 0) -> str:
    """Return at most `most` characters, with an ellipsis before the last `tail` of the text."""
    if len(text) <= most:
        return text
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


MOST_NAMED = 50
"""The most names of other people's objects in one text: a server may have thousands."""


def join_first(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Join the first names, and count those that are left out."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
