from __future__ import annotations

import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import read_policy
from session_reaper.runs.yaml import parse_yaml
from session_reaper_cli.policy_schema import make_policy_schema

from tests.builders import a_document, a_rule
from tests.documents import KEYS, Document, json_values, mistaken_documents, policy_documents

SCHEMA = Draft202012Validator(make_policy_schema())


def keys_of(document: object) -> set[str]:
    """Return the keys of all mappings in a document."""
    if isinstance(document, dict):
        return {*document}.union(*map(keys_of, document.values()))
    return set().union(*map(keys_of, document)) if isinstance(document, list) else set()


def assert_valid_by_the_schema_or_refused_with_a_place(document: object) -> None:
    try:
        read_policy(document)
    except ConfigurationError as error:
        place, _, problem = str(error).partition(": ")
        assert place
        assert problem
    else:
        SCHEMA.validate(document)


def test_the_generated_policies_use_every_key() -> None:
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
    # Parsed again because PyYAML writes an alias for a shared value.
    assert read_policy(parse_yaml(yaml.safe_dump(json.loads(written)))) == policy


@given(policy_documents())
def test_the_schema_accepts_every_policy_that_the_function_reads(document: Document) -> None:
    SCHEMA.validate(document)


@settings(max_examples=4 * settings().max_examples)
@given(mistaken_documents())
def test_a_changed_policy_is_valid_by_the_schema_or_refused_with_a_place(
    document: Document,
) -> None:
    assert_valid_by_the_schema_or_refused_with_a_place(document)


@given(json_values())
def test_any_json_is_valid_by_the_schema_or_refused_with_a_place(document: object) -> None:
    assert_valid_by_the_schema_or_refused_with_a_place(document)


@given(st.text("a(?)*.1[^]$'\"\\ !=i-/", max_size=12))
def test_any_query_glob_is_read_or_refused_with_a_place(query: str) -> None:
    document = a_document(a_rule(state="idle", idle_for="5m", query=query))
    assert_valid_by_the_schema_or_refused_with_a_place(document)
