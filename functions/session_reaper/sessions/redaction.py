"""Queries without their literals and comments, for eyes that must not see them."""

import re
from collections.abc import Iterator

MAX_LENGTH = 200  # characters of a redacted query
MATCHED_LENGTH = 500  # characters of a redacted query that the globs of a policy are compared with
_MOST_READ = 2000  # of one before: a server may keep a megabyte of it

# PostgreSQL's lexical forms (its manual, "Lexical Structure"), each also cut off by the end of the
# text: pg_stat_activity keeps the first track_activity_query_size bytes only. Code is shown, a
# comment is a blank, all else is a literal, or nothing that a query has.
# Letters are those of ASCII, _ and all that is not ASCII. The sets are written by what is not in them:
# one that ends in \U0010ffff takes 3 ms to compile.
_LETTER = r"[^\x00-@\[-^`{-\x7f]"
_WORD = r"[^\x00-/:-@\[-^`{-\x7f]"  # and digits
_TOKEN = re.compile(
    rf"""
    (?P<comment>--[^\n\r]*|/\*)
  | (?P<escape_string>[eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z))
  | (?P<string>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?:'|\Z))
  | (?P<dollar_string>\$(?P<tag>(?:{_LETTER}{_WORD}*)?)\$
        .*?(?:\$(?P=tag)\$|\Z))
  | (?P<number>\.?[0-9](?:\.|{_WORD}|(?<=[eE])[+-](?=[0-9]))*)
  | (?P<stray>\\)
  | (?P<code>"[^"']*"|\$[0-9]+|{_LETTER}(?:\$|{_WORD})*)
  | (?P<odd_name>"[^"]*(?:"|\Z))
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# What must not be in a literal or right behind it: where it ends is then not known.
_DOUBTS = {
    "string": "\\'",  # a quote within it, if that session has standard_conforming_strings off
    "dollar_string": "\ufffd",  # any byte that is no UTF-8: two tags may look the same
    "stray": "\\",  # psql's, or a quote was forgotten before
}
_GLUED = re.compile(rf"""[$"']|{_WORD}""")  # 'O'Brien'; 1$a$ differs by version
_LITERALS = {"escape_string", "string", "dollar_string", "number"}
# Words that are values: of a parameter of the application's own; rows of a dump behind its COPY.
_VALUES = re.compile(
    r"""
    ("[^"]*")
  | (\bset\ [^;=.]{,99}\.[^;=]{,99}?(?:=|\bto\b)) (?:"[^"]*"?|[^";])*
  | (\bfrom\ stdin\b[^;]*;) .+
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redact(query: str, most: int = MAX_LENGTH) -> str:
    """The query with `?` for every literal, no comments, on one line, `most` characters of it.

    >>> redact("SELECT * FROM t WHERE a = 'x''y' AND b > 1.5e3 -- why")
    'SELECT * FROM t WHERE a = ? AND b > ?'
    """
    text = " ".join("".join(_redact_token(query[:_MOST_READ])).split())
    text = _VALUES.sub(lambda found: found[1] or f"{found[2] or found[3]} ?", text)
    if len(query) > _MOST_READ and not text.endswith("…"):
        text += "…"
    return text if len(text) <= most else text[: most - 1] + "…"


def redact_for_matching(query: str) -> str:
    """Redact a query as far as `matched_text` needs it."""
    return redact(query, MATCHED_LENGTH + 1)


def strip_for_matching(redacted: str) -> str:
    """Return what a policy's globs see of a redacted query: without the mark that it was cut."""
    return redacted.rstrip(" …")[:MATCHED_LENGTH]


def find_literal(text: str) -> re.Match[str] | None:
    """Find the first literal or line comment: what `redact` hides."""
    return next((t for t in _TOKEN.finditer(text) if _is_hidden(t)), None)


def _is_hidden(token: re.Match[str]) -> bool:
    return token.lastgroup in _LITERALS or token.group().startswith("--")


def _redact_token(query: str) -> Iterator[str]:
    position = 0
    while position < len(query):
        token = _TOKEN.match(query, position)
        assert token is not None  # noqa: S101 -- `other` matches any character
        position = token.end()
        kind = token.lastgroup or ""
        if kind in ("code", "other"):
            text = token.group()
            if not text.isprintable():
                text = "".join(c if c.isprintable() else " " for c in text)
            yield text
        elif kind == "comment":
            yield " "
            if token.group() == "/*":
                position = _after_block_comment(query, position)
        else:
            yield "?"
            if _DOUBTS.get(kind, "\0") in token.group() or _GLUED.match(query, position):
                yield " …"
                return


def _after_block_comment(query: str, position: int) -> int:
    """Where the comment that was opened before `position` ends; comments nest."""
    depth = 1
    for mark in re.compile(r"/\*|\*/").finditer(query, position):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(query)
