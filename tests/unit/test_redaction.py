from __future__ import annotations

import re

import pytest
from session_reaper.sessions.redaction import MAX_LENGTH, redact

from tests.canary_queries import (
    BACKSLASHED,
    COMMENTED,
    CUT_OFF,
    DOLLARS,
    LITERALS,
    MISQUOTED,
    VALUES,
    leaks,
)


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
        ("select a?'k', a ?| array['k'], b @? '$.k'", "select a??, a ?| array[?], b @? ?"),
        ("insert into t values (1,'a'),(2,'b')", "insert into t values (?,?),(?,?)"),
        ("select array[1,2]::int[], a[1:2]", "select array[?,?]::int[], a[?:?]"),
        ("select 'a'::text||'b', a='x'or b", "select ?::text||?, a=? …"),
        ("select a/b, a*b", "select a/b, a*b"),
        ("select 1/*c*/+2", "select ? +?"),
        ("select null, true, current_date", "select null, true, current_date"),
        ("select größe, 数量 from été", "select größe, 数量 from été"),
        ("update t set p = 'x' where id = 5; commit", "update t set p = ? where id = ?; commit"),
        ("do $$begin end$$ language plpgsql", "do ? language plpgsql"),
        ("alter role app password 'x'", "alter role app password ?"),
        (
            "create user mapping for app server s options (password 'x')",
            "create user mapping for app server s options (password ?)",
        ),
        ("notify ch, 'x'; execute p(1, 'x')", "notify ch, ?; execute p(?, ?)"),
        ("declare c cursor for select 1", "declare c cursor for select ?"),
        ("copy t from 'x' (format csv, null '')", "copy t from ? (format csv, null ?)"),
        ("<insufficient privilege>", "<insufficient privilege>"),
    ],
)
def test_the_code_of_a_query_stays_readable(query: str, redacted: str) -> None:
    assert redact(query) == redacted


@pytest.mark.parametrize("literal", LITERALS)
def test_a_literal_of_any_form_becomes_one_question_mark(literal: str) -> None:
    assert redact(f"call f(a, {literal}, b)") == "call f(a, ?, b)"


@pytest.mark.parametrize("query", COMMENTED)
def test_no_comment_is_shown(query: str) -> None:
    assert not leaks(redact(query))


@pytest.mark.parametrize("query", CUT_OFF)
def test_a_literal_that_the_server_cut_off_is_hidden(query: str) -> None:
    assert not leaks(redact(query))


@pytest.mark.parametrize("query", BACKSLASHED)
def test_nothing_is_shown_after_a_backslash_before_a_quote(query: str) -> None:
    assert not leaks(redact(query))


@pytest.mark.parametrize(
    ("query", "redacted"),
    [
        ("select fooé$a$b$a$", "select fooé$a$b$a$"),  # one identifier
        ("select $1$a$canary$a$", "select $1?"),
        ("select x$a$, 'x $a$ canary'", "select x$a$, ?"),
        ("select E'canary", "select ?"),
        ("select E'canary\\", "select ?"),
        ("select €$a$, 'x $a$ canary'", "select €$a$, ?"),
        ("select \ufffd$a$, 'x $a$ canary'", "select \ufffd$a$, ?"),
        ('select "a$$b", $$canary$$', 'select "a$$b", ?'),
        ('select "a--b", 1', 'select "a--b", ?'),
        ('select "a""/*b", \'canary\'', 'select "a""/*b", ?'),
        ("select U&\"a!0062\" uescape '!', 'canary'", 'select U&"a!0062" uescape ?, ?'),
        ("select a.E'canary'", "select a.?"),
        ("select nameE, 'canary'", "select nameE, ?"),
        ("select date'2024-01-01', time '10:00'", "select date?, time ?"),
        ("select interval '1' day, 'a' as b", "select interval ? day, ? as b"),
        ("select 'a'\n'canary'", "select ? ?"),
        ("select 1.e5, 10canary", "select ?, ?"),
    ],
)
def test_literals_begin_and_end_as_in_postgres(query: str, redacted: str) -> None:
    assert redact(query) == redacted


@pytest.mark.parametrize("query", MISQUOTED)
def test_nothing_is_shown_after_a_missing_quote(query: str) -> None:
    assert not leaks(redact(query))


@pytest.mark.parametrize("query", DOLLARS)
def test_a_literal_after_a_number_and_a_dollar_is_hidden(query: str) -> None:
    assert not leaks(redact(query))


@pytest.mark.parametrize("tags", ["éé", "éè"])
def test_different_dollar_tags_that_decode_to_the_same_text_are_not_confused(
    tags: str,
) -> None:
    # A query of a LATIN1 database, decoded as UTF-8.
    query = f"select $é$ ${tags[1]}$ canary $é$, ${tags[0]}$canary$é$, 1".encode("latin-1")
    assert redact(query.decode(errors="replace")) == "select ? …"


@pytest.mark.parametrize(("query", "redacted"), VALUES)
def test_a_word_that_is_a_value_becomes_a_question_mark(query: str, redacted: str) -> None:
    assert redact(query) == redacted


@pytest.mark.parametrize(
    "query",
    [
        "set search_path to app, public",
        "set role app; set session authorization app",
        "update t set a = b, c = excluded.d from s.t where t.x = s.y",
        "alter table s.t set schema archive",
        "copy s.t (a, b) from stdin",
        "copy s.t to stdout; select a",
        'select "set a.b = c", "from stdin;", d',
    ],
)
def test_a_word_that_is_a_name_stays(query: str) -> None:
    assert redact(query) == query


@pytest.mark.parametrize(
    "query", ["for i in 1..10 loop", "select 1e", "select 1.2.3.4", "select 5abc6", "select 1e+"]
)
def test_no_digit_of_a_malformed_number_is_shown(query: str) -> None:
    assert not re.search(r"\d", redact(query))


def test_the_result_is_one_line_of_printable_characters() -> None:
    controls = "".join(map(chr, [*range(32), *range(127, 160), 0x200B, 0x202E, 0x2028, 0xFEFF]))
    assert redact(f'select a{controls}b, "a{controls}b", c') == 'select a b, "a b", c'


def test_a_long_query_is_truncated() -> None:
    redacted = redact("select " + ", ".join(f"column_{n}" for n in range(1000)))
    assert len(redacted) == MAX_LENGTH
    assert redacted.endswith("…")
    assert redact("x" * MAX_LENGTH) == "x" * MAX_LENGTH


def test_an_ellipsis_marks_a_query_that_was_not_read_completely() -> None:
    query = "select '" + "x" * 2000 + "'"
    assert redact(query) == "select ?…"
    assert redact(query, len(query)) == "select ?…"
    assert redact("select '" + "x" * 1992) == "select ?"
    assert redact(r"select \q" + "x" * 2000) == "select ? …"


def test_truncation_shows_no_literal() -> None:
    for length in range(MAX_LENGTH - 12, MAX_LENGTH + 12):
        assert not leaks(redact("x" * length + " 'canary' $$canary$$ E'canary' -- canary"))


def test_nothing_is_read_behind_the_first_2000_characters_of_a_query() -> None:
    # track_activity_query_size is at most 1 MB; a run may have a thousand such sessions to show,
    # and it shows them before it signals the first.
    for opened in ("'", '"', "$$", "/*", "--", "E'", "("):
        start = f"values ({opened}".ljust(2000, "x")
        for rest in ("'", '"', "$$", "*/", "\n", ")", "(1,'x',$1), " * 80_000):
            assert redact(start + rest) == redact(start + "y")
