"""The comment tags of a session, also of a query that is too long to be read whole."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from pg8000.native import DatabaseError
from session_reaper.postgres.rows import QUERY_BYTES, QUERY_END_BYTES

from tests.integration.stage import ABORTED, IDLE, LEAK, rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import Output
    from tests.integration.stage import Stage

pytestmark = pytest.mark.every_major

COMMENT = "/*action='pay',route='%2Forders%2F42'*/"
TAGS = {"route": "/orders/?"}
LONG = f"SELECT '{'x' * 2 * QUERY_BYTES}'"
EVERYBODY = rule(state=[LEAK, ABORTED, IDLE])


@pytest.fixture
def roomy(own_server: Callable[..., Stage]) -> Stage:
    """A server that keeps long queries."""
    return own_server({"track_activity_query_size": "8kB"})


def test_tags_are_in_the_answer_the_log_and_the_summary(stage: Stage, output: Output) -> None:
    leak = stage.session(LEAK, query=f"{COMMENT} SELECT '/*route=''cAnArY''*/'")
    run = stage.reap(comment_tags=["route", "other"])
    assert run.session(leak)["tags"] == TAGS
    assert run.session(leak)["query"] == "SELECT ?"
    lines = map(json.loads, output.readouterr().out.splitlines())
    sessions = [line["session"]["tags"] for line in lines if "session" in line]
    assert sessions == [TAGS, TAGS]  # the decision and the outcome
    for text in (run.email.body, run.email.chat, run.email.webhook):
        assert "route /orders/?" in text
        assert "cAnArY" not in text
        assert "pay" not in text


def test_without_the_key_no_tag_is_shown(stage: Stage, output: Output) -> None:
    leak = stage.session(LEAK, query=f"{COMMENT} SELECT 1")
    run = stage.reap()
    assert "tags" not in run.session(leak)
    assert "/orders" not in output.readouterr().out + run.said


NO_COMMENTS = (
    "SELECT $a$ /*route='cAnArY'*/ $a$",
    "SELECT $$/*$$, 'x', '$$*/', '/*route=''cAnArY''*/'",
    "SELECT '/*' || 'route=''cAnArY''*/'",
    "SELECT 'a'\n'/*route=''cAnArY''*/'",
    "SELECT E'\\'/*route=\\'cAnArY\\'*/'",
    "SELECT U&'\\0041/*route=''cAnArY''*/'",
    "SELECT 1 AS \"/*route='cAnArY'*/\"",
    "SELECT 1 -- /*route='cAnArY'*/\n",
)


def test_what_only_looks_like_a_comment_has_no_tags(stage: Stage, output: Output) -> None:
    victims = [stage.session(LEAK, query=query) for query in NO_COMMENTS]
    unusual = stage.session(LEAK, query="SET standard_conforming_strings = off")
    unusual.connection.run("SELECT '\\'/*route=\\'cAnArY\\'*/'")
    run = stage.reap(comment_tags=["route"])
    assert run.outcomes() == {victim.pid: "terminated" for victim in (*victims, unusual)}
    shown = json.dumps(run.document) + output.readouterr().out + run.said + run.email.webhook
    assert "cAnArY" not in shown
    assert all("tags" not in run.session(victim) for victim in victims)


def test_a_long_query_has_the_tags_of_its_last_comment(roomy: Stage) -> None:
    tagged = roomy.session(LEAK, query=f"{LONG} {COMMENT}")
    prepended = roomy.session(LEAK, query=f"{COMMENT} {LONG}")
    far = roomy.session(LEAK, query=f"{LONG} {COMMENT}, '{'x' * QUERY_END_BYTES}'")
    run = roomy.reap(comment_tags="route")
    assert run.session(tagged)["tags"] == TAGS
    assert run.session(prepended)["tags"] == TAGS
    assert "tags" not in run.session(far)
    assert "x" * 300 not in json.dumps(run.document)


def test_the_end_of_a_text_that_the_server_cut_or_rejected_has_no_tags(roomy: Stage) -> None:
    canary = "/*route='cAnArY'*/"
    # The server keeps 8191 bytes, so the literal seems to end with a comment.
    padding = "x" * (8191 - len("SELECT $$") - len(canary))
    cut = roomy.session(LEAK, query=f"SELECT $${padding}{canary} $$")
    unclosed = roomy.session(LEAK)
    with suppress(DatabaseError):
        unclosed.connection.run(f"SELECT $${'x' * 2 * QUERY_BYTES}{canary}")
    idle = roomy.session(IDLE)
    with suppress(DatabaseError):
        idle.connection.run(f"SELECT $${'x' * 2 * QUERY_BYTES}{canary}")
    ((kept,),) = roomy.root.run("SELECT query FROM pg_stat_activity WHERE pid = :pid", pid=cut.pid)
    assert kept.endswith(canary)
    run = roomy.reap(EVERYBODY, comment_tags=["route"])
    assert set(run.outcomes()) == {cut.pid, unclosed.pid, idle.pid}
    assert "cAnArY" not in json.dumps(run.document) + run.said


@pytest.mark.parametrize("size", ["100", "2049", "3000B", "10kB", "1MB"])
def test_any_size_of_kept_queries_can_be_read(own_server: Callable[..., Stage], size: str) -> None:
    stage = own_server({"track_activity_query_size": size})
    leak = stage.session(LEAK, query=f"{COMMENT} SELECT 1")
    assert stage.reap(comment_tags=["route"]).session(leak)["tags"] == TAGS
