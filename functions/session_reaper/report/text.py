"""Text from outside (names, messages, statements), made safe to show."""


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
