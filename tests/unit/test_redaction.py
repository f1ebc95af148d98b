from __future__ import annotations

import re

import pytest
from session_reaper.sessions.redaction import MAX_LENGTH, redact

# What literals and comments hold, here and in the files that take these lists.
CANARY = "canary"
NUMBER = "87654321"


def leaks(text: str) -> bool:
    """Whether any four characters of a canary are in it."""
    found = text.lower()
    return any(
        whole[n : n + 4] in found for whole in (CANARY, NUMBER) for n in range(len(whole) - 3)
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
def test_what_is_left_of_a_query_is_still_of_use(query: str, redacted: str) -> None:
    assert redact(query) == redacted


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


@pytest.mark.parametrize("literal", LITERALS)
def test_a_literal_of_any_form_becomes_one_question_mark(literal: str) -> None:
    assert redact(f"call f(a, {literal}, b)") == "call f(a, ?, b)"


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


@pytest.mark.parametrize("query", COMMENTED)
def test_no_comment_is_left(query: str) -> None:
    assert not leaks(redact(query))


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


@pytest.mark.parametrize("query", CUT_OFF)
def test_a_literal_that_the_server_cut_off_is_none_the_less_one(query: str) -> None:
    assert not leaks(redact(query))


BACKSLASHED = [
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
]


@pytest.mark.parametrize("query", BACKSLASHED)
def test_behind_a_backslash_before_a_quote_nothing_is_shown(query: str) -> None:
    assert not leaks(redact(query))


@pytest.mark.parametrize(
    ("query", "redacted"),
    [
        ("select fooé$a$b$a$", "select fooé$a$b$a$"),  # all of it one identifier
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
def test_literals_begin_and_end_where_postgres_says(query: str, redacted: str) -> None:
    assert redact(query) == redacted


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


@pytest.mark.parametrize("query", MISQUOTED)
def test_where_a_quote_was_forgotten_nothing_behind_it_is_shown(query: str) -> None:
    """The server refuses it, and shows it all the same."""
    assert not leaks(redact(query))


DOLLARS = [
    "select 1a$b$, 'x $b$ canary'",  # up to PostgreSQL 14: 1 AS a$b$, and a string
    "select 1e5$a$ canary $a$",  # a number and a dollar string
    "select 0x1F$a$ canary $a$",
    "select 1.$$ canary $$",
    "select 1_0$a$ canary $a$",
    "select 1$a$canary$a$",
]


@pytest.mark.parametrize("query", DOLLARS)
def test_a_dollar_behind_a_number_hides_no_literal(query: str) -> None:
    assert not leaks(redact(query))


@pytest.mark.parametrize("tags", ["éé", "éè"])
def test_dollar_tags_of_another_encoding_that_look_the_same_are_not_taken_for_the_same(
    tags: str,
) -> None:
    # As a LATIN1 database's query comes to us.
    query = f"select $é$ ${tags[1]}$ canary $é$, ${tags[0]}$canary$é$, 1".encode("latin-1")
    assert redact(query.decode(errors="replace")) == "select ? …"


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
def test_of_what_is_no_proper_number_no_digit_is_left_either(query: str) -> None:
    assert not re.search(r"\d", redact(query))


def test_it_is_one_line_of_printable_characters() -> None:
    controls = "".join(map(chr, [*range(32), *range(127, 160), 0x200B, 0x202E, 0x2028, 0xFEFF]))
    assert redact(f'select a{controls}b, "a{controls}b", c') == 'select a b, "a b", c'


def test_a_long_query_is_cut() -> None:
    redacted = redact("select " + ", ".join(f"column_{n}" for n in range(1000)))
    assert len(redacted) == MAX_LENGTH
    assert redacted.endswith("…")
    assert redact("x" * MAX_LENGTH) == "x" * MAX_LENGTH


def test_that_not_all_of_it_was_read_is_shown() -> None:
    query = "select '" + "x" * 2000 + "'"
    assert redact(query) == "select ?…"
    assert redact(query, len(query)) == "select ?…"
    assert redact("select '" + "x" * 1992) == "select ?"
    assert redact(r"select \q" + "x" * 2000) == "select ? …"


def test_the_cut_opens_no_literal() -> None:
    for length in range(MAX_LENGTH - 12, MAX_LENGTH + 12):
        assert not leaks(redact("x" * length + " 'canary' $$canary$$ E'canary' -- canary"))


def test_nothing_is_read_behind_the_first_2000_characters_of_a_query() -> None:
    # track_activity_query_size is at most 1 MB; a run may have a thousand such sessions to show,
    # and it shows them before it signals the first.
    for opened in ("'", '"', "$$", "/*", "--", "E'", "("):
        start = f"values ({opened}".ljust(2000, "x")
        for rest in ("'", '"', "$$", "*/", "\n", ")", "(1,'x',$1), " * 80_000):
            assert redact(start + rest) == redact(start + "y")
