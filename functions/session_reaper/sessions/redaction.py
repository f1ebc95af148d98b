"""Removes literals and comments from queries."""

import re
from collections.abc import Iterator
from itertools import islice

MAX_LENGTH = 200  # characters of a redacted query
MATCHED_LENGTH = 500  # characters of a redacted query that query globs are compared with
_MAX_READ = 2000  # characters of the query itself, of which a server may keep a megabyte

# The tokens of PostgreSQL (its manual, "Lexical Structure"), also if the end of the text cuts one
# off: pg_stat_activity keeps only the first track_activity_query_size bytes. Code is shown, a
# comment becomes a space, everything else becomes a question mark. Letters are ASCII letters, _ and
# all characters beyond ASCII. The sets are negated because one that ends in \U0010ffff takes 3 ms
# to compile.
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
# If a literal contains or is followed by one of these, its end is unknown.
_DOUBTS = {
    "string": "\\'",  # an escaped quote if the session has standard_conforming_strings off
    "dollar_string": "\ufffd",  # stands for any invalid byte, so different tags may look the same
    "stray": "\\",  # a command of psql, or a quote is missing before it
}
_GLUED = re.compile(rf"""[$"']|{_WORD}""")  # 'O'Brien'; PostgreSQL versions read 1$a$ differently
_LITERALS = {"escape_string", "string", "dollar_string", "number"}
# Words that are values: of an application's own parameter, and the rows of a dump after its COPY.
_VALUES = re.compile(
    r"""
    ("[^"]*")
  | (\bset\ [^;=.]{,99}\.[^;=]{,99}?(?:=|\bto\b)) (?:"[^"]*"?|[^";])*
  | (\bfrom\ stdin\b[^;]*;) .+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ROWS = re.compile(r"\bfrom\s+stdin\b[^;]*;", re.IGNORECASE)  # the rows of a dump follow


def redact(query: str, most: int = MAX_LENGTH) -> str:
    """Replace literals with `?`, drop comments, and return at most `most` characters on one line.

    >>> redact("SELECT * FROM t WHERE a = 'x''y' AND b > 1.5e3 -- why")
    'SELECT * FROM t WHERE a = ? AND b > ?'
    """
    tokens = _redact_token(query[:_MAX_READ])
    read = text = ""
    # Not all at once, because reading tokens takes longer than everything else.
    while len(text) <= most and (more := "".join(islice(tokens, most // 2 + 1))):
        read += more
        text = " ".join(read.split())
        text = _VALUES.sub(lambda found: found[1] or f"{found[2] or found[3]} ?", text)
    if len(query) > _MAX_READ and not text.endswith("…"):
        text += "…"
    return text if len(text) <= most else text[: most - 1] + "…"


def redact_for_matching(query: str) -> str:
    """Redact as much of a query as `strip_for_matching` needs."""
    return redact(query, MATCHED_LENGTH + 1)


def strip_for_matching(redacted: str) -> str:
    """Return a redacted query without a final ellipsis, as globs are compared with it."""
    return redacted.rstrip(" …")[:MATCHED_LENGTH]


def may_contain(query: str, pattern: re.Pattern[str]) -> bool:
    """Return whether a pattern matches, or might, outside of literals and comments."""
    text = redact(query, len(query))
    return pattern.search(query if text.endswith("…") else text) is not None


def find_literal(text: str) -> re.Match[str] | None:
    """Find the first literal or line comment that `redact` would hide."""
    return next((t for t in _TOKEN.finditer(text) if _is_hidden(t)), None)


def find_comments(query: str) -> Iterator[str]:
    """Yield the text of each complete block comment, up to where `redact` shows nothing more.

    >>> list(find_comments("SELECT '/* a */' /* b /* c */ */ -- /* d */"))
    [' b /* c */ ']
    """
    if "/*" not in query[:_MAX_READ]:
        return
    comments: list[str] = []
    places: list[int] = []  # in the redacted text
    text = ""
    for token in _redact_token(query[:_MAX_READ], comments):
        text += token
        places += [len(text)] * (len(comments) - len(places))
    rows = _ROWS.search(text)
    end = len(text) if rows is None else rows.end()
    yield from (text for text, place in zip(comments, places, strict=True) if place <= end)


def _is_hidden(token: re.Match[str]) -> bool:
    return token.lastgroup in _LITERALS or token.group().startswith("--")


def _redact_token(query: str, comments: list[str] | None = None) -> Iterator[str]:
    """Yield the redacted tokens, and add the text of each complete block comment to `comments`."""
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
            if token.group() == "/*":
                start, position = position, _skip_block_comment(query, position)
                if comments is not None and position <= len(query):
                    comments.append(query[start : position - 2])
            yield " "
        else:
            yield "?"
            if _DOUBTS.get(kind, "\0") in token.group() or _GLUED.match(query, position):
                yield " …"
                return


def _skip_block_comment(query: str, position: int) -> int:
    """Return where the comment that was opened before `position` ends; comments nest.

    The result is beyond the text if the comment has no end.
    """
    depth = 1
    for mark in re.compile(r"/\*|\*/").finditer(query, position):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(query) + 1
