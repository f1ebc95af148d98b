"""Redaction of generated queries: PostgreSQL's tokens, with a canary wherever data can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st
from session_reaper.sessions.redaction import MAX_LENGTH, redact

from tests.canary_queries import CANARY, NUMBER, leaks

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTILE = [
    *"'\"\\$;-/*?\n\r\0",
    "''",
    "\\'",
    "$$",
    "$a$",
    "$b$",
    "--",
    "/*",
    "*/",
    "E'",
    "é",
    "\ufffd",
]
NAMES = ["t.c", "größe", "s$1", "e", "x9", '"Q ""n"""', '"a$$b"', '"--"', '"/*"', "$1", "$22"]
KEYWORDS = ["select", "where", "order by", "between", "is null", "values", "any"]
OPERATORS = [
    ",",
    "(",
    ")",
    "=",
    "||",
    "->>",
    "::",
    "@>",
    "<=",
    "?|",
    "[",
    "]",
    "+ ",
    "- ",
    "/ ",
    "* ",
    "; ",
]
NUMBERS = [
    "{}",
    "{}.",
    "{}.5",
    ".{}",
    "0x{}",
    "0b{}",
    "1e{}",
    "1.5E-{}",
    ".1e+{}",
    "1_{}",
    "1e-1_{}",
    "{}x",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A token or a comment, and what is shown of it."""

    text: str
    shown: str
    glues: bool = False  # may stand next to its neighbours without a space


def pieces_of(body: st.SearchStrategy[str]) -> st.SearchStrategy[Piece]:
    """Return tokens of every kind, with text from `body` in the literals and comments."""

    def literal(form: Callable[[str], str]) -> st.SearchStrategy[Piece]:
        return body.map(lambda text: Piece(text=form(text), shown="?"))

    def comment(form: Callable[[str], str]) -> st.SearchStrategy[Piece]:
        return body.map(lambda text: Piece(text=form(text), shown=""))

    def dollar_quoted(tag: str, text: str) -> Piece:
        end = f"${tag}$"
        inside = text if (text + end).index(end) == len(text) else CANARY
        return Piece(text=f"{end}{inside}{end}", shown="?")

    return st.one_of(
        st.sampled_from([*NAMES, *KEYWORDS]).map(lambda name: Piece(text=name, shown=name)),
        st.sampled_from(OPERATORS).map(lambda sign: Piece(text=sign, shown=sign, glues=True)),
        st.sampled_from(NUMBERS).map(lambda form: Piece(text=form.format(NUMBER), shown="?")),
        st.sampled_from(["", "U&", "N", "b", "X"]).flatmap(
            lambda prefix: literal(lambda text: prefix + "'{}'".format(text.replace("'", "''")))
        ),
        literal(lambda text: "E'{}'".format(text.replace("\\", "\\\\").replace("'", "\\'"))),
        literal(lambda text: "e'{}'".format(text.replace("\\", "\\\\").replace("'", "''"))),
        st.builds(dollar_quoted, st.sampled_from(["", "a", "_1", "é", "body"]), body),
        comment(lambda text: "--{}\n".format(text.replace("\n", " ").replace("\r", " "))),
        comment(lambda text: f"/*{_balanced(text)} /*{_balanced(text)} */ {CANARY} */"),
    )


def _balanced(text: str) -> str:
    return text.replace("*", "").replace("/", "")


@st.composite
def queries(draw: st.DrawFn) -> str:
    """Return any sequence of PostgreSQL's tokens."""
    bodies = st.lists(st.sampled_from([*HOSTILE, CANARY]), min_size=1, max_size=6).map("".join)
    query, glues = "", True
    for piece in draw(st.lists(pieces_of(bodies), min_size=1, max_size=12)):
        between = ["", " ", "\n", f"/*{CANARY}*/", f"--{CANARY}\n"]
        query += (
            draw(st.sampled_from(between if glues or piece.glues else between[1:])) + piece.text
        )
        glues = piece.glues
    return query


@settings(max_examples=3 * settings().max_examples)
@given(queries())
def test_no_part_of_a_literal_or_comment_is_shown_wherever_the_server_cuts(query: str) -> None:
    whole = query.encode()
    for end in range(len(whole) + 1):
        cut = whole[:end].decode(errors="replace")
        assert not leaks(redact(cut, len(query))), cut


TAME = st.sampled_from(
    [CANARY, "", "it's", "''", '"', "$ $x$ $", "--", "/ *", "a\nb", "é", "\\n", ";", "1 2"]
)


@given(st.lists(pieces_of(TAME), max_size=20))
def test_everything_else_is_unchanged(pieces: list[Piece]) -> None:
    query = " ".join(piece.text for piece in pieces)
    shown = " ".join(" ".join(piece.shown for piece in pieces).split())
    assert redact(query, len(query)) == shown


SOUP = st.lists(
    st.sampled_from(
        [*HOSTILE, CANARY, *NAMES, *KEYWORDS, "1", "e+", "set a.b=", "copy from stdin;"]
    )
)


@given(SOUP.map("".join), st.integers(1, 50))
def test_a_shorter_result_is_the_beginning_of_a_longer_one(query: str, most: int) -> None:
    """Although fewer tokens are read for it."""
    whole = redact(query, len(query) + 2)
    shorter = whole if len(whole) <= most else whole[: most - 1] + "…"
    assert redact(query, most) == shorter


PRINTABLE = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" \n\t"))


@given(SOUP.map("".join) | PRINTABLE)
@example("set a.b to")
def test_redaction_is_idempotent(query: str) -> None:
    assert redact(redact(query)) == redact(query)


@given(SOUP.map("".join) | st.text())
def test_the_result_is_always_one_short_line_of_printable_characters(query: str) -> None:
    redacted = redact(query)
    assert redacted.isprintable()
    assert len(redacted) <= MAX_LENGTH
    assert redacted == " ".join(redacted.split())
