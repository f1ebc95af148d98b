"""Queries with a canary in every literal and comment, for the tests of redaction."""

from __future__ import annotations

CANARY = "canary"
"""The text of the literals and comments below."""

NUMBER = "87654321"
"""The number in the numeric literals below."""


def leaks(text: str) -> bool:
    """Return whether the text contains any four consecutive characters of a canary."""
    found = text.lower()
    return any(
        whole[n : n + 4] in found for whole in (CANARY, NUMBER) for n in range(len(whole) - 3)
    )


LITERALS = [
    "'canary'",
    "''''",
    "'canary''canary'",
    "'it''s -- canary'",
    "'/* canary'",
    "'$$ canary'",
    "'\"canary'",
    "'line\ncanary'",
    r"'\canary\\canary'",
    "'{canary,\"canary\"}'",
    "E'canary'",
    "e'canary'",
    r"E'\'canary'",
    r"E'\\'",
    r"E'\\\'canary'",
    r"E'\\''canary'",
    "E'a''canary'",
    "E'\\\ncanary'",
    r"E'\u0063\U00000061\x6e\141 canary'",
    "U&'canary'",
    "u&'\\0063anary'",
    r"U&'\\canary\+000041'",
    "B'10101'",
    "b'0'",
    "X'CAFE'",
    "x'87654321'",
    "N'canary'",
    "n'canary'",
    "$$canary$$",
    "$$ 'canary' $$",
    "$$ $a$ canary $$",
    "$$ canary $a$$",
    "$$\ncanary\n$$",
    r"$$ canary \' canary $$",
    "$a$canary$a$",
    "$a$ $$ canary $$ $a$",
    "$a$ $b$ canary $b$ $a$",
    "$a$ canary $b$a$",
    "$a$ canary $$a$",
    "$A$ $a$ canary $A$",
    "$_$canary$_$",
    "$tag_1$canary$tag_1$",
    "$été$canary$été$",
    "$€$canary$€$",
    "$a€b$canary$a€b$",
    "$\u00a0$canary$\u00a0$",
    "$\u0663$ canary $\u0663$",
    "$😀$canary$😀$",
    "42",
    "87654321",
    "3.14",
    "4.",
    "87654321.",
    ".5",
    ".87654321",
    "1e10",
    "1.5e-3",
    "1E+7",
    ".5e2",
    "0x1F",
    "0X87654321",
    "0o17",
    "0b101",
    "0x_1F",
    "1_000_000",
    "1_000.000_1e1_0",
    "1e-0_87654321",
    "1e+0_0_87654321",
]
"""Literals of every form."""

COMMENTED = [
    "select 1 -- canary",
    "select -- canary\n1",
    "select --canary\r1",
    "select a--canary\n",
    "select --canary\u2028canary\x0bcanary\x85canary",
    "select 1 <--canary",
    "select 1e-- canary",
    "select /* canary */ 1",
    "select /* a /* canary */ canary */ 1",
    "select /*/ canary */ 1",
    "select /* /* */ canary",
    "select /** canary **/ 1",
    "select /* ' */ 1 /* canary ' */",
    "select /* -- */ 1 /* canary */",
    "select a +/* canary */ b",
    "select a @/*/ canary */ b",
    "/* user=canary */ select 1",
    "select /*/**//*canary*/*/ 1",
]
"""Queries with comments."""

CUT_OFF = [
    "select 'canary",
    "select 'can''ary canary",
    "select E'canary",
    r"select E'canary \' canary",
    "select E'canary\\",
    "select U&'canary",
    "select N'canary",
    "select $$canary",
    "select $$canary $",
    "select $a$ canary",
    "select $a$ canary $a",
    "select $a$ canary $$",
    "select $a$ canary $A$",
    "select /* canary",
    "select /* /* canary */",
    "select /* canary *",
    "select -- canary",
    "select '' 'canary",
]
"""Queries that the server cut off inside a literal or a comment."""

BACKSLASHED = [
    # \' is a quote inside the string if standard_conforming_strings is off, else it ends the
    # string.
    r"select 'a\' canary ' b",
    r"select 'a\', 'canary'",
    r"select 'a\\\' canary'",
    r"select 'a\'' canary'",
    r"select 'a\\' || ' canary \' canary'",
    r"select N'a\' canary'",
    r"select 'a' 'b\' canary'",
    "select E'a'\n'b\\' canary'",
    "select E'a' -- c\n  'b\\' canary'",
    r"select * from t where a = 'x\' and b = ' or canary --'",
    # If it ends the string, the text after it is code.
    r"select 'a\' , $$canary$$, 'b'",
]
"""Queries with a backslash before a quote, whose meaning depends on a setting."""

MISQUOTED = [
    "select * from t where name = 'O'Brien canary'",
    "select * from t where name = 'O'8765 canary'",
    "select * from t where a = 'it's' and b = 'canary'",
    "select * from t where size = 5\" and name = 'canary'",
    "select * from t where size = x\" and name = 'canary'",
    'select * from t where size = x" and name = canary',
    'select * from t where size = x" and name = \'canary\' and "id" = 1',
    'select * from t where size = 5" and name = \'canary\' and "id" = 1',
    r"select * from t where a = x\' and b = canary",
    r"select 1 \gset canary",
    "\\restrict canary\nselect 1",
    r"\set token canary",
]
"""Queries with a missing quote; the server rejects them but still shows them."""

DOLLARS = [
    "select 1a$b$, 'x $b$ canary'",  # up to PostgreSQL 14: 1 AS a$b$, and a string
    "select 1e5$a$ canary $a$",  # a number and a dollar string
    "select 0x1F$a$ canary $a$",
    "select 1.$$ canary $$",
    "select 1_0$a$ canary $a$",
    "select 1$a$canary$a$",
]
"""Queries with a dollar sign after a number, whose meaning depends on the version."""

VALUES = [
    ("set my.token = canary", "set my.token = ?"),
    ("SET my.token=canary", "SET my.token= ?"),
    ("set local my.token to canary, canary", "set local my.token to ?"),
    ("begin;set session my . token = canary;select 1", "begin;set session my . token = ?;select ?"),
    ('set "my"."token" to "can;ary canary"; commit', 'set "my"."token" to ?; commit'),
    ('set my.token = "canary', "set my.token = ?"),
    ("set /* c */ my.token -- c\n = canary", "set my.token = ?"),
    (
        "alter role app in database d set my.token to canary",
        "alter role app in database d set my.token to ?",
    ),
    ("copy t from stdin;\n1\tcanary\n\\.\n", "copy t from stdin; ?"),
    ("COPY t (a) FROM STDIN WITH csv;\ncanary,'x", "COPY t (a) FROM STDIN WITH csv; ?"),
]
"""Queries with a word that is a value, each with its redacted form."""
