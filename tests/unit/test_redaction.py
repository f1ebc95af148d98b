from __future__ import annotations

import re
import time

import pytest
from session_reaper.redaction import MAX_LENGTH, redact

CANARY = "canary"


@pytest.mark.parametrize(
    ("query", "redacted"),
    [
        ("", ""),
        ("select 1", "select ?"),
        (
            "SELECT * FROM t WHERE a = 'x''y' AND b > 1.5e3 -- why",
            "SELECT * FROM t WHERE a = ? AND b > ?",
        ),
        ("select  a,\n\tb\r\nfrom t", "select a, b from t"),
        ('select "Quoted ""Name""", t1.c2 from s$1', 'select "Quoted ""Name""", t1.c2 from s$1'),
        ("select $1, $22::int", "select $1, $22::int"),
        ("select a-1, a - -1, a->'k', a->>2", "select a-?, a - -?, a->?, a->>?"),
        ("insert into t values (1,'a'),(2,'b')", "insert into t values (?,?),(?,?)"),
        ("select array[1,2]::int[], a[1:2]", "select array[?,?]::int[], a[?:?]"),
        ("select a/b, a*b", "select a/b, a*b"),
        ("select 1/*c*/+2", "select ? +?"),
        ("select null, true, current_date", "select null, true, current_date"),
        ("select größe, 数量 from été", "select größe, 数量 from été"),
        ("update t set p = 'x' where id = 5; commit", "update t set p = ? where id = ?; commit"),
        ("alter role app password 'x'", "alter role app password ?"),
    ],
)
def test_what_is_left_of_a_query_is_still_of_use(query: str, redacted: str) -> None:
    assert redact(query) == redacted


@pytest.mark.parametrize(
    "literal",
    [
        "'canary'",
        "''''",
        "'canary''canary'",
        "'it''s -- canary'",
        "'/* canary'",
        "'$$ canary'",
        "'\"canary'",
        "'line\ncanary'",
        "E'canary'",
        "e'canary'",
        r"E'\'canary'",
        r"E'\\'",
        r"E'\\\'canary'",
        "E'a''canary'",
        "E'\\\ncanary'",
        "U&'canary'",
        "u&'\\0063anary'",
        "B'10101'",
        "b'0'",
        "X'CAFE'",
        "x'1f'",
        "N'canary'",
        "n'canary'",
        "$$canary$$",
        "$$ 'canary' $$",
        "$$ $a$ canary $$",
        "$$\ncanary\n$$",
        "$a$canary$a$",
        "$a$ $$ canary $$ $a$",
        "$a$ $b$ canary $b$ $a$",
        "$A$ $a$ canary $A$",
        "$_$canary$_$",
        "$tag_1$canary$tag_1$",
        "$été$canary$été$",
        "$€$canary$€$",
        "$a€b$canary$a€b$",
        "$\u00a0$canary$\u00a0$",
        "$\ufffd$canary$\ufffd$",  # a LATIN1 database's $é$, read as UTF-8
        "$a\ufffdt$ canary $a\ufffdt$",
        "$\u0663$ canary $\u0663$",
        "$😀$canary$😀$",
        "42",
        "3.14",
        "4.",
        ".5",
        "1e10",
        "1.5e-3",
        "1E+7",
        ".5e2",
        "0x1F",
        "0o17",
        "0b101",
        "1_000_000",
        "1_000.000_1e1_0",
    ],
)
def test_a_literal_of_any_form_becomes_one_question_mark(literal: str) -> None:
    assert redact(f"call f(a, {literal}, b)") == "call f(a, ?, b)"


@pytest.mark.parametrize(
    "query",
    [
        "select -- canary",
        "select -- canary\n1",
        "select --canary\r1",
        "select a--canary\n",
        "select /* canary */ 1",
        "select /* a /* canary */ canary */ 1",
        "select /*/ canary */ 1",
        "select /* /* */ canary",
        "select /** canary **/ 1",
        "select /* ' */ 1 /* canary ' */",
        "select /* -- */ 1 /* canary */",
        "select a +/* canary */ b",
        "/* user=canary */ select 1",
        "select /*/**//*canary*/*/ 1",
    ],
)
def test_no_comment_is_left(query: str) -> None:
    assert CANARY not in redact(query)


@pytest.mark.parametrize(
    "query",
    [
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
    ],
)
def test_a_literal_that_the_server_cut_off_is_none_the_less_one(query: str) -> None:
    assert CANARY not in redact(query)


@pytest.mark.parametrize(
    "query",
    [
        # With standard_conforming_strings off, \' is a quote within the string; with it on, the end.
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
        # The other way round: what looks like a string's inside is its outside.
        r"select 'a\' , $$canary$$, 'b'",
    ],
)
def test_behind_a_backslash_before_a_quote_nothing_is_shown(query: str) -> None:
    assert CANARY not in redact(query)


@pytest.mark.parametrize(
    ("query", "redacted"),
    [
        ("select fooé$a$b$a$", "select fooé$a$b$a$"),  # all of it one identifier
        ("select 1$a$canary$a$", "select ??"),
        ("select $1$a$canary$a$", "select $1?"),
        ("select x$a$, 'x $a$ canary'", "select x$a$, ?"),
        ("select E'canary", "select ?"),
        ("select E'canary\\", "select ?"),
        ("select €$a$, 'x $a$ canary'", "select €$a$, ?"),
        ("select \ufffd$a$, 'x $a$ canary'", "select \ufffd$a$, ?"),
        ("select \"a'b\", 'canary'", 'select "a\'b", ?'),
        ('select "a$$b", $$canary$$', 'select "a$$b", ?'),
        ('select "a--b", 1', 'select "a--b", ?'),
        ("select \"a/*b\", 'canary'", 'select "a/*b", ?'),
        ("select U&\"a'b\", 'canary'", 'select U&"a\'b", ?'),
        ("select a.E'canary'", "select a.?"),
        ("select nameE, 'canary'", "select nameE, ?"),
        ("select date'2024-01-01', time '10:00'", "select date?, time ?"),
        ("select 'a'\n'canary'", "select ? ?"),
        ("select 1.e5, 10canary", "select ?, ?"),
    ],
)
def test_literals_begin_and_end_where_postgres_says(query: str, redacted: str) -> None:
    assert redact(query) == redacted


@pytest.mark.parametrize(
    "query",
    [
        "select 1a$b$, 'x $b$ canary'",  # up to PostgreSQL 14: 1 AS a$b$, and a string
        "select 1e5$a$ canary $a$",  # a number and a dollar string
        "select 0x1F$a$ canary $a$",
        "select 1.$$ canary $$",
        "select 1_0$a$ canary $a$",
    ],
)
def test_a_dollar_behind_a_number_hides_no_literal(query: str) -> None:
    assert CANARY not in redact(query)


@pytest.mark.parametrize(
    "query", ["for i in 1..10 loop", "select 1e", "select 1.2.3.4", "select 5abc6", "select 1e+"]
)
def test_of_what_is_no_proper_number_no_digit_is_left_either(query: str) -> None:
    assert not re.search(r"\d", redact(query))


def test_a_long_query_is_cut() -> None:
    redacted = redact("select " + ", ".join(f"column_{n}" for n in range(1000)))
    assert len(redacted) == MAX_LENGTH
    assert redacted.endswith("…")
    assert redact("x" * MAX_LENGTH) == "x" * MAX_LENGTH


def test_the_cut_opens_no_literal() -> None:
    for length in range(MAX_LENGTH - 12, MAX_LENGTH + 12):
        assert CANARY not in redact("x" * length + " 'canary' $$canary$$ E'canary' -- canary")


def test_a_query_as_long_as_a_server_can_keep_costs_no_more_than_what_is_shown_of_it() -> None:
    # track_activity_query_size is at most 1 MB; a run may have a thousand such sessions to show,
    # and it shows them before it signals the first.
    query = "insert into t values " + "(1,'x',$1), " * 80_000
    start = time.process_time()
    redact(query)
    assert time.process_time() - start < 0.1
