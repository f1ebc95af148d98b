from __future__ import annotations

import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import read_policy
from session_reaper.runs.yaml import parse_yaml

from infra.policy_schema import policy_schema
from tests.builders import a_document, a_rule
from tests.documents import KEYS, Document, json_values, mistaken_documents, policy_documents

SCHEMA = Draft202012Validator(policy_schema())


def keys_of(document: object) -> set[str]:
    """The keys of all mappings in a document."""
    if isinstance(document, dict):
        return {*document}.union(*map(keys_of, document.values()))
    return set().union(*map(keys_of, document)) if isinstance(document, list) else set()


def is_read_as_the_schema_says_or_refused_with_its_place(document: object) -> None:
    try:
        read_policy(document)
    except ConfigurationError as error:
        place, _, problem = str(error).partition(": ")
        assert place
        assert problem
    else:
        SCHEMA.validate(document)


def test_the_generated_policies_leave_no_key_out() -> None:
    seen: set[str] = set()

    @settings(max_examples=100)
    @given(policy_documents())
    def collect(document: Document) -> None:
        seen.update(keys_of(document))

    collect()
    assert sorted(seen) == KEYS


@given(policy_documents())
def test_a_policy_reads_the_same_from_json_and_from_yaml(document: Document) -> None:
    policy = read_policy(document)
    written = json.dumps(document)
    assert read_policy(json.loads(written)) == policy
    # Written anew from JSON, in which nothing is shared: PyYAML would write an alias.
    assert read_policy(parse_yaml(yaml.safe_dump(json.loads(written)))) == policy


@given(policy_documents())
def test_the_schema_takes_every_policy_that_the_engine_reads(document: Document) -> None:
    SCHEMA.validate(document)


@settings(max_examples=4 * settings().max_examples)
@given(mistaken_documents())
def test_a_mistake_is_refused_with_its_place_or_is_none_to_the_schema_either(
    document: Document,
) -> None:
    is_read_as_the_schema_says_or_refused_with_its_place(document)


@given(json_values())
def test_whatever_json_can_hold_is_refused_with_its_place(document: object) -> None:
    is_read_as_the_schema_says_or_refused_with_its_place(document)


@given(st.text("a(?)*.1[^]$'\"\\ !=i-/", max_size=12))
def test_a_query_glob_of_any_characters_is_read_or_refused_with_its_place(query: str) -> None:
    document = a_document(a_rule(state="idle", idle_for="5m", query=query))
    is_read_as_the_schema_says_or_refused_with_its_place(document)
