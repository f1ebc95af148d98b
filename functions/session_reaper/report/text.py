"""Text that comes from outside, made safe to show."""


def printable(text: str, most: int = 400, kept: str = "") -> str:
    """Printable characters and those `kept`, `most` of them: names and messages come from outside."""
    if len(text) <= most and text.isprintable():
        return text
    text = text[: most + 1]
    line = "".join(c if c.isprintable() or c in kept else "?" for c in text)
    return line if len(line) <= most else line[: most - 1] + "…"
