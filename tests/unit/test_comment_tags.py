"""The tags in comments of a query, and nothing of its literals."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_reaper.deadline import Deadline
from session_reaper.report.document import describe_session, to_recording
from session_reaper.report.model import Outcome
from session_reaper.sessions.comment_tags import MAX_LENGTH, read_tags
from session_reaper.summary.groups import group_sessions

from tests.builders import a_decision, a_policy, a_result, a_session, a_snapshot
from tests.canary_queries import CANARY, leaks
from tests.generated_queries import HOSTILE, NAMES, queries


@pytest.mark.parametrize(
    ("query", "tags"),
    [
        ("SELECT 1", {}),
        ("/*route='/checkout'*/ SELECT 1", {"route": "/checkout"}),
        ("SELECT 1 /*action='pay',route='%2Fcheckout'*/", {"action": "pay", "route": "/checkout"}),
        ("SELECT 1 /* action='pay' , route='x' */;", {"action": "pay", "route": "x"}),
        ("SELECT 1 /*a%20b='1%2B1%3Dc'*/", {"a b": "?+?=c"}),
        (r"SELECT 1 /*name='DROP TABLE it\'s\\'*/", {"name": "DROP TABLE it's\\"}),
        # google-cloud-sqlcommenter in Django, in a query without parameters
        ("SELECT 1 /*route='%%5Eorders/%%28.%%2A%%29'*/", {"route": "^orders/(.*)"}),
        (
            "/*route='first'*/ SELECT 1 /*route='second',action='pay'*/",
            {"route": "first", "action": "pay"},
        ),
        ("/*route=''*/ SELECT 1", {}),
        ("/* /*route='x'*/ */ SELECT 1", {}),
        ("/*route='x' and more*/ SELECT 1", {}),
        ('/*route="x"*/ SELECT 1', {}),
        ("/*route:x*/ SELECT 1", {}),
        ("/*+ SeqScan(t) */ SELECT 1 /*route='x'*/", {"route": "x"}),
    ],
)
def test_tags_are_read_from_comments_in_sqlcommenter_s_format(
    query: str, tags: dict[str, str]
) -> None:
    assert read_tags(query, "") == tags


@pytest.mark.parametrize(
    "query",
    [
        "SELECT '/*route=canary*/', ' /*route=''canary''*/ '",
        r"SELECT E'/*route=\'canary\'*/'",
        r"SELECT 'a\' /*route=' || 'canary' || '*/ '",
        "SELECT $$/*route='canary'*/$$",
        "SELECT $a$ $$ /*route='canary'*/ $a$",
        "SELECT $$ /*route='canary'*/",
        "SELECT '/*route=''canary''*/",
        "SELECT 1 -- /*route='canary'*/",
        "SELECT 1 AS \"/*route='canary'*/\"",
        "SELECT 'O'Brien /*route='canary'*/ '",
        "SELECT 1 /*route='canary'",
        "SELECT 1 /* /*route='canary'*/",
        "COPY t FROM stdin;\n1\t/*route='canary'*/\n",
        "SELECT /*a='x'*/ 1 \\gset /*route='canary'*/",
    ],
)
def test_text_that_is_no_complete_comment_has_no_tags(query: str) -> None:
    assert not leaks(str(read_tags(query, "")))


def test_tags_of_a_literal_are_not_confused_with_those_of_a_comment() -> None:
    query = "/*route='x'*/ SELECT '/*route=''y''*/', $$/*route='z',a='b'*/$$ /*action='pay'*/"
    assert read_tags(query, "") == {"route": "x", "action": "pay"}


@pytest.mark.parametrize(
    ("end", "tags"),
    [
        ("", {}),
        ("x = 'a' /*action='pay',route='%2Fcheckout'*/", {"action": "pay", "route": "/checkout"}),
        ("x = 'a' /*route='/checkout'*/ ;\n", {"route": "/checkout"}),
        ("/*route='x'*/ and a", {}),
        ("a /*route='x'*/ /* other */", {}),
        ("a /* other */*route='x'*/", {}),
        ("oute='x'*/", {}),
        ("/*route=''*/", {}),
        ("/*route='x',*/", {}),
        ("/*route='x'action='y'*/", {}),
        ("/*route='a b'*/", {}),
        ("/*route='a''b'*/", {}),
        (r"/*route='a\'b'*/", {}),
        ("/*route='a$$--'*/", {}),
        ("/*route='a\"--'*/", {}),
        ("/*route='été'*/", {}),
    ],
)
def test_the_end_of_a_cut_query_has_tags_only_in_an_encoded_comment_that_is_its_last_token(
    end: str, tags: dict[str, str]
) -> None:
    assert read_tags("SELECT …", end) == tags


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/orders/42/items/7", "/orders/?/items/?"),
        ("%2Forders%2F%34%32", "/orders/?"),
        ("٤٢", "?"),
        ("alice@example.com", "?"),
        ("/users/alice%40example.com/edit", "/users/?/edit"),
        ("alice%2540example.com", "?"),
        ("alice%%2540example.com", "?"),
        ("alice%%40example.com", "?"),
        ("a b=alice@example.com,c", "a b=?,c"),
        ("a\nb\u202ec%00%1b[31m", "a?b?c??[?m"),
        ("x" * MAX_LENGTH, "x" * MAX_LENGTH),
        ("x" * 3 * MAX_LENGTH, "x" * (MAX_LENGTH - 1) + "…"),
        ("a\\\nb", "a?b"),
    ],
)
def test_a_value_is_redacted_printable_and_short(value: str, shown: str) -> None:
    assert read_tags(f"/*route='{value}'*/ SELECT 1", "") == {"route": shown}


TAGGED = f"/*route='{CANARY}'*/"
TEXTS = st.lists(
    st.sampled_from([*HOSTILE, *NAMES, CANARY, TAGGED, "/*route='", "'*/", f"='{CANARY}'", "1"])
)


@settings(max_examples=3 * settings().max_examples)
@given(queries())
def test_no_literal_is_in_a_tag_wherever_the_server_cuts(query: str) -> None:
    """The comments of these queries are not in sqlcommenter's format, unlike some literals."""
    for end in range(len(query) + 1):
        for padding in ("", "/*route='"):
            assert not leaks(str(read_tags(query[:end] + padding, "")))


@given(TEXTS.map("".join))
def test_no_literal_in_the_form_of_a_comment_is_in_a_tag(text: str) -> None:
    for literal in ("'{}'".format(text.replace("'", "''")), f"$any$ {text} $any$"):
        tags = read_tags(f"/*action='pay'*/ SELECT 1, {literal} /*step='last'*/", "")
        assert tags.items() <= {"action": "pay", "step": "last"}.items()
        assert tags["action"] == "pay"


@given(TEXTS.map("".join) | st.text(), TEXTS.map("".join) | st.text())
def test_tags_of_any_text_are_short_and_printable(query: str, end: str) -> None:
    for value in read_tags(query, end).values():
        assert value
        assert value.isprintable()
        assert len(value) <= MAX_LENGTH


# -- in reports ------------------------------------------------------------------------------------

QUERY = "/*action='pay',route='/checkout',user='alice'*/ SELECT 1"


def test_a_session_shows_the_tags_that_the_policy_names() -> None:
    decision = a_decision(a_session(query=QUERY))
    shown = describe_session(decision, a_policy(comment_tags=["route", "action", "other"]))
    assert shown["tags"] == {"route": "/checkout", "action": "pay"}
    assert [*shown["tags"]] == ["route", "action"]
    for policy in (None, a_policy(), a_policy(comment_tags="other", queries="full")):
        assert "tags" not in describe_session(decision, policy)


def test_a_recording_has_no_part_of_a_comment() -> None:
    session = a_session(query=QUERY, query_end=f"'{CANARY}' {QUERY}")
    recording = json.dumps(to_recording(a_snapshot(session)))
    assert CANARY not in recording
    assert "checkout" not in recording


def test_a_group_names_its_most_frequent_tags() -> None:
    routes = ["/checkout", "/checkout", "/basket"]
    results = [
        a_result(Outcome.TERMINATED, pid=pid, query=f"/*app='shop',route='{route}'*/ SELECT 1")
        for pid, route in enumerate(routes, 1)
    ]
    (group,) = group_sessions(results, ("route", "app", "other"))
    assert group.tags == "route /checkout (2 of 3), app shop"
    assert group_sessions(results)[0].tags == ""


def test_without_time_left_a_group_has_no_tags() -> None:
    results = [a_result(query="SELECT 1 /*route='a'*/")] * 3
    assert group_sessions(results, ("route",), Deadline(60))[0].tags == "route a"
    assert group_sessions(results, ("route",), Deadline(0))[0].tags == ""
