"""Compares our lexer with PostgreSQL's: the server decides where a literal ends."""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import pytest
from pg8000.native import Connection, DatabaseError
from session_reaper.sessions.redaction import redact

from tests.canary_queries import BACKSLASHED, COMMENTED, DOLLARS, LITERALS, MISQUOTED, leaks
from tests.integration.stage import IDLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.stage import Stage, Victim

SETTINGS = {
    "conforming": "SET standard_conforming_strings = on",
    "escaping": "SET standard_conforming_strings = off; SET backslash_quote = on;"
    " SET escape_string_warning = off",
}
KEPT = 100  # bytes of a query: the smallest setting of a server


def read_query(stage: Stage, session: Victim) -> str:
    """The session's query as a snapshot has it."""
    ((query,),) = stage.root.run(
        "SELECT textsend(query) FROM pg_stat_get_activity(:pid)", pid=session.pid
    )
    return str(query.decode(errors="replace"))


@pytest.mark.thorough
@pytest.mark.every_major
def test_no_part_of_a_literal_is_shown_wherever_the_server_cuts(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"track_activity_query_size": str(KEPT)})
    stage.role("app")
    session = stage.session(IDLE)
    lengths = set()
    for setting in SETTINGS.values():
        session.connection.run(setting)
        for text in [*LITERALS, *COMMENTED, *BACKSLASHED, *DOLLARS, *MISQUOTED]:
            size = len(text.encode())
            for end in range(2, size + 1):  # so many bytes of it are kept
                padding = " " * (KEPT - 1 - len("SELECT ") - min(end, KEPT - 30))
                query = f"SELECT {padding}{text}".replace("\0", "")
                with suppress(DatabaseError):  # a refused query is shown too
                    session.connection.run(query)
                kept = read_query(stage, session)
                assert query.startswith(kept)
                assert not leaks(redact(kept)), kept
                lengths.add(len(kept.encode()))
    assert max(lengths) == KEPT - 1
    assert min(lengths) < KEPT - 1  # or in the middle of a character


def test_no_part_of_a_literal_in_another_encoding_is_shown(stage: Stage) -> None:
    stage.database("latin", "ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    stage.role("app")
    session = stage.session(IDLE, database="latin")
    query = "SELECT $é$ $è$ canary $é$, 'é canary', $è$ $é$ canary $è$"
    assert len(session.connection.run(query)[0]) == 3
    kept = read_query(stage, session)
    assert kept == query.replace("é", "\ufffd").replace("è", "\ufffd")
    assert not leaks(redact(kept))


FRAGMENTS = [
    *("'", "''", "\\", "\\'", '"', '""', "$", "$$", "$a$", "$a", "--", "/*", "*/", "-", "/", "*"),
    *(
        "E'",
        "e'",
        "N'",
        "U&'",
        'U&"',
        "B'",
        "X'",
        "1",
        "1e",
        "1e-",
        "0x",
        "_1",
        ".",
        "é",
        "\n",
        "\r",
    ),
    *(" ", "\t", "||", "AS ", ", ", "e", "n", "::text", "::json"),
]
FORMS = ["'{}'", "E'{}'", "U&'{}'", "N'{}'", "$${}$$", "$a${}$a$", "$é${}$é$", "1 {}", '1 "{}"']
FORMS += ["1 /*{}*/", "1 --{}\n", "1e5 AS {}", "'a' AS {}", "'a'\n'{}'", "E'a'\n'{}'", "1{}"]


WORD = re.compile(r"zq\d+qz")
QUERIES = 3000


def soups(random: Random) -> Iterator[str]:
    """SELECT lists that are nearly valid, each of whose words is unique."""
    number = 0
    while True:
        items = []
        for _ in range(random.randint(1, 3)):
            number += 1
            body = [f"zq{number}qz", *random.choices(FRAGMENTS, k=random.choice((0, 0, 1, 2, 3)))]
            random.shuffle(body)
            item = random.choice(FORMS).format("".join(body))
            if random.random() < 0.2:
                place = random.randint(0, len(item))
                item = item[:place] + random.choice(FRAGMENTS) + item[place:]
            items.append(item)
        yield "SELECT " + ", ".join(items)


@pytest.mark.every_major
@pytest.mark.parametrize("setting", SETTINGS)
def test_only_words_that_the_server_reads_as_names_are_shown(
    root: Connection, setting: str
) -> None:
    root.run(SETTINGS[setting])
    accepted, hidden = 0, 0
    for query in islice(soups(Random(4711)), QUERIES):  # noqa: S311 -- the same ones in every run
        try:
            root.run(query)
        except DatabaseError:
            continue
        names = WORD.findall(" ".join(column["name"] for column in root.columns))
        seen = WORD.findall(redact(query, len(query)))
        assert set(seen) <= set(names), query
        accepted += 1
        hidden += set(seen) < set(names)
    assert accepted > QUERIES / 3
    assert hidden < accepted / 8  # in doubt; a number may be glued to a name up to 14
