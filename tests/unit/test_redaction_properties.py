"""Redaction of generated queries: PostgreSQL's tokens, with a canary wherever data can be."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from session_reaper.sessions.redaction import MAX_LENGTH, redact

from tests.canary_queries import CANARY, leaks
from tests.generated_queries import HOSTILE, KEYWORDS, NAMES, Piece, pieces_of, queries


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
