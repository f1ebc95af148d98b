"""Generated queries: PostgreSQL's tokens, with a canary wherever data can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.canary_queries import CANARY, NUMBER

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
    """A token or a comment, with its redacted form."""

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
        comment(lambda text: f"/*{_balance(text)} /*{_balance(text)} */ {CANARY} */"),
    )


def _balance(text: str) -> str:
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
