"""Queries without their literals and comments, for eyes that must not see them."""

import re

MAX_LENGTH = 200  # characters of a redacted query
_MOST_READ = 2000  # of one before: a server may keep a megabyte of it

# PostgreSQL's lexical forms (its manual, "Lexical Structure"), each also cut off by the end of the
# text: pg_stat_activity keeps the first track_activity_query_size bytes only.
_TOKEN = re.compile(
    r"""
    (?P<line_comment>--[^\n\r]*)
  | (?P<block_comment>/\*)
  | (?P<identifier>"(?:[^"]|"")*"?)
  | (?P<escape_string>[eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z))
  | (?P<string>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?:'|\Z))
  | (?P<dollar_string>\$(?P<tag>(?:(?:[A-Za-z_]|[^\x00-\x7f])(?:[0-9A-Za-z_]|[^\x00-\x7f])*)?)\$
        .*?(?:\$(?P=tag)\$|\Z))
  | (?P<parameter>\$[0-9]+)
  | (?P<word>(?:[A-Za-z_]|[^\x00-\x7f])(?:[0-9A-Za-z_$]|[^\x00-\x7f])*)
  | (?P<number>\.?[0-9][0-9_.]*
        (?:(?:[A-Za-z_]|[^\x00-\x7f])(?:[0-9A-Za-z_$]|[^\x00-\x7f])*(?:(?<=[eE])[+-][0-9]+)?)?)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_LITERALS = {"escape_string", "string", "dollar_string", "number"}


def redact(query: str, most: int = MAX_LENGTH) -> str:
    """The query with `?` for every literal, no comments, on one line, `most` characters of it.

    >>> redact("SELECT * FROM t WHERE a = 'x''y' AND b > 1.5e3 -- why")
    'SELECT * FROM t WHERE a = ? AND b > ?'
    """
    query = query[:_MOST_READ]  # a literal that is cut is a literal
    kept = []
    position = 0
    while position < len(query):
        token = _TOKEN.match(query, position)
        assert token is not None  # noqa: S101 -- `other` matches any character
        position = token.end()
        if token.lastgroup == "block_comment":
            position = _after_block_comment(query, position)
            kept.append(" ")
        elif token.lastgroup == "line_comment":
            kept.append(" ")
        elif token.lastgroup in _LITERALS:
            kept.append("?")
            # With standard_conforming_strings off a backslash escapes the quote after it: where
            # this string ends depends on a setting of that session, so nothing behind it is safe.
            # So with a $ behind a number, which opens a string or not as the version has it.
            ambiguous = {"string": "\\'", "number": "$"}.get(token.lastgroup, "\0")
            if ambiguous in token.group():
                kept.append(" …")
                break
        else:
            kept.append(token.group())
    text = " ".join("".join(kept).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _after_block_comment(query: str, position: int) -> int:
    """Where the comment that was opened before `position` ends; comments nest."""
    depth = 1
    for mark in re.compile(r"/\*|\*/").finditer(query, position):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(query)
