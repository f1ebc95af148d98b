from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from session_reaper.deadline import Deadline
from session_reaper.decision.decide import decide
from session_reaper.documents import one_or_many
from session_reaper.errors import ConfigurationError
from session_reaper.policy.builtin import PROVIDER_DATABASES, PROVIDER_ROLES, TOOLS
from session_reaper.policy.model import Policy, read_policy
from session_reaper.runs.policy_source import load_policy
from session_reaper.runs.yaml import parse_yaml
from session_reaper_cli.policy_schema import make_policy_schema as make_schema
from session_reaper_cli.policy_schema import make_value_schema, write_schema

from tests.builders import a_document, a_rule, a_session, some_slots

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "infra" / "policies").glob("*.yaml"))
MADE = make_schema()
SCHEMA = Draft202012Validator(MADE)

IDLE: dict[str, Any] = {"state": "idle", "idle_for": "5m"}
ACTIVE: dict[str, Any] = {"state": "active", "query_for": "5m"}


def a_rule_with(match: dict[str, Any], **keys: object) -> dict[str, Any]:
    """Return a policy with one rule."""
    return a_document({"name": "a", "match": match, **keys})


def examples_of(markdown: str) -> list[str]:
    """Return the complete policies in a text."""
    return [
        text for text in re.findall(r"```yaml\n(.*?)```", markdown, re.DOTALL) if "version:" in text
    ]


# -- the published file -----------------------------------------------------------------------------


def test_the_published_schema_is_up_to_date() -> None:
    published = (ROOT / "infra" / "policies" / "policy.schema.json").read_text("utf-8")
    assert published == write_schema(), "run make schema"


def test_the_schema_is_a_valid_json_schema() -> None:
    Draft202012Validator.check_schema(MADE)


def test_every_key_has_a_description_and_unknown_keys_are_refused() -> None:
    mappings = [value for value in _parts(MADE) if value.get("type") == "object"]
    assert len(mappings) == 7  # Policy, Rule, Match, two Thresholds, Protect, Limits
    for mapping in mappings:
        assert mapping["additionalProperties"] is False
        assert all(value["description"] for value in mapping["properties"].values())


def _parts(value: object) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [part for item in value for part in _parts(item)]
    if isinstance(value, dict):
        return [value, *(part for item in value.values() for part in _parts(item))]
    return []


def test_the_schema_contains_the_defaults() -> None:
    limits = MADE["properties"]["limits"]["properties"]
    defaults = {name: key["default"] for name, key in limits.items() if "default" in key}
    assert defaults == {"max_terminations": 100, "min_sessions": 1, "order": "longest"}
    assert MADE["properties"]["queries"]["default"] == "redacted"


def test_a_reader_without_a_schema_is_an_error() -> None:
    with pytest.raises(LookupError, match="add it to _LEAVES"):
        make_value_schema(one_or_many(lambda value, _: str(value)), tuple[str, ...])


# -- the examples -----------------------------------------------------------------------------------


def test_the_example_policies_exist() -> None:
    names = [example.stem for example in EXAMPLES]
    assert names == ["article", "default", "development", "per-application", "production"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid_and_names_the_schema(example: Path) -> None:
    load_policy(str(example), Deadline(10))
    text = example.read_text("utf-8")
    SCHEMA.validate(parse_yaml(text))
    assert text.startswith("# yaml-language-server: $schema=policy.schema.json\n")
    assert (example.parent / "policy.schema.json").exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_into_a_standard_ssm_parameter(example: Path) -> None:
    text = example.read_bytes()
    assert len(text) <= 4096  # the limit of a standard parameter
    assert b"{{" not in text  # SSM reads it as a reference


def test_the_default_example_is_the_bundled_policy() -> None:
    default = next(example for example in EXAMPLES if example.stem == "default")
    assert load_policy(str(default), Deadline(10)) == load_policy("", Deadline(10))


def test_the_examples_use_almost_every_key() -> None:
    shown = "".join(example.read_text("utf-8") for example in EXAMPLES)
    keys = {key for part in _parts(MADE) for key in part.get("properties", {})}
    assert {key for key in keys if f"{key}:" not in shown} <= {"client", "database"}


def test_the_policies_in_the_readme_are_valid() -> None:
    policies = examples_of((ROOT / "README.md").read_text("utf-8"))
    assert policies
    for text in policies:
        document = parse_yaml(text)
        assert isinstance(read_policy(document), Policy)
        SCHEMA.validate(document)


RECIPES = re.findall(
    r"```yaml\n(rules:\n.*?)```", (ROOT / "docs" / "policy.md").read_text("utf-8"), re.DOTALL
)


def test_the_recipes_in_the_documentation_are_valid() -> None:
    assert len(RECIPES) == 2
    for recipe in RECIPES:
        SCHEMA.validate(parse_yaml(f"version: 1\n{recipe}"))


UNREAD = {"state": "active", "wait_event_type": "Client", "wait_event": "ClientWrite"}
WAITS = {"waits_for_lock": True, "wait_event_type": "Lock", "wait_event": "relation"}


@pytest.mark.parametrize(
    ("recipe", "session", "decided"),
    [
        (0, {"role": "batch_7", "idle_seconds": 3600.0}, "condemn by batch"),
        (0, {"role": "batch_7", "idle_seconds": 3599.0}, "keep by keep-batch"),
        (0, {"role": "batch"}, "condemn by everything-else"),
        (0, {"idle_seconds": 299.0}, "leave"),
        (1, {"idle_seconds": 60.0}, "observe by warn"),
        (1, {"idle_seconds": 59.0}, "leave"),
        (1, {"state": "idle", "query": 'LISTEN "jobs"'}, "keep by keep-listeners"),
        (1, {"state": "idle", "query": "SELECT 1 -- LISTEN jobs"}, "leave"),
        (1, {"application": "billing"}, "keep by keep-billing"),
        (1, {**UNREAD, "application": "billing", "query_seconds": 9e9}, "keep by keep-billing"),
        (1, {"role": "migrator", "application": ""}, "keep by keep-unnamed-migrations"),
        (1, {"role": "migrator"}, "observe by warn"),
        (1, {**UNREAD, "query_seconds": 1800.0}, "condemn by unread"),
        (1, {**UNREAD, "query_seconds": 1799.0}, "leave"),
        (1, {**UNREAD, "query_seconds": 1800.0, "wait_event": "ClientRead"}, "leave"),
        (1, {**UNREAD, "query_seconds": 1800.0, **WAITS}, "leave"),
        (1, {**WAITS, "role": "migrator", "application": ""}, "keep by keep-unnamed-migrations"),
    ],
)
def test_the_recipes_in_the_documentation_do_what_they_say(
    recipe: int, session: dict[str, Any], decided: str
) -> None:
    policy = read_policy(parse_yaml(f"version: 1\n{RECIPES[recipe]}"))
    (decision,) = decide([a_session(**session)], some_slots(), policy).decisions
    by = f" by {decision.rule.name}" if decision.rule else ""
    assert f"{decision.verdict.name.lower()}{by}" == decided


# -- valid and invalid policies ---------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"rules": [a_rule()]},
        {"version": 1},
        a_document(version=2),
        a_document(version="1"),
        a_document(version=True),
        a_document(modes="off"),
        a_document(mode="kill"),
        a_document(mode=True),
        a_document(mode=None),
        a_document(queries="all"),
        a_document(queries=True),
        a_document(queries=None),
        a_document(rules=[]),
        a_document(rules=a_rule()),
        a_document(protect={"role": "app"}),
        a_document(protect={"roles": []}),
        a_document(protect={"roles": [""]}),
        a_document(protect={"roles": [5]}),
        a_document(protect={"clients": "localhost"}),
        a_document(protect=None),
        a_document(limits={"max": 5}),
        a_document(limits={"max_terminations": 0}),
        a_document(limits={"max_terminations": "50"}),
        a_document(limits={"max_terminations": 1.5}),
        a_document(limits={"max_share": 50}),
        a_document(limits={"max_share": "50"}),
        a_document(limits={"max_share": "0%"}),
        a_document(limits={"max_share": "00.0%"}),
        a_document(limits={"max_share": "100.1%"}),
        a_document(limits={"max_share": "101%"}),
        a_document(limits={"min_sessions": 0}),
        a_document(limits={"max_condemned": 0}),
        a_document(protect={"applications": [""]}),
        a_document(protect={"applications": ["ä"]}),
        a_rule_with({**IDLE, "application": ""}),
        a_rule_with({**IDLE, "application": ["a", "ä"]}),
        a_rule_with({**IDLE, "application": ["a", "\t"]}),
        a_rule_with({**IDLE, "role": [""]}),
        a_rule_with({**ACTIVE, "wait_event_type": "lock"}),
        a_rule_with({**ACTIVE, "wait_event_type": ["Lock", "ClientRead"]}),
        a_document(limits={"order": "oldest"}),
        a_document({"name": "a"}),
        a_document({"match": IDLE}),
        a_document({"name": "", "match": IDLE}),
        a_rule_with({"idle_for": "5m"}),
        a_rule_with({"state": "idle"}),
        a_rule_with({"state": "idle", "blocks": 1}),
        a_rule_with({**IDLE, "state": []}),
        a_rule_with({**IDLE, "state": "Idle"}),
        a_rule_with({**IDLE, "state": ["idle", "disabled"]}),
        a_rule_with({**IDLE, "idle_fo": "5m"}),
        a_rule_with({**IDLE, "idle_for": 300}),
        a_rule_with({**IDLE, "idle_for": "300"}),
        a_rule_with({**IDLE, "idle_for": "5 m"}),
        a_rule_with({**IDLE, "idle_for": ["5m"]}),
        a_rule_with({**IDLE, "role": ["app", None]}),
        a_rule_with({**IDLE, "query": []}),
        *(
            a_rule_with({**IDLE, "query": query})
            for query in (
                "",
                "*",
                "?*",
                "^a",
                "[^a]",
                r"\w",
                "(?i)a",
                "a.*b",
                "a = 'b'",
                ["a", "*"],
            )
        ),
        a_rule_with({**IDLE, "holds": "row"}),
        a_rule_with({**IDLE, "blocks": 0}),
        a_rule_with({**IDLE, "pins_vacuum_by": "10"}),
        a_rule_with({**IDLE, "query_for": "5m"}),
        a_rule_with({**IDLE, "waiting_for_client": True}),
        a_rule_with({**ACTIVE, "waiting_for_client": "yes"}),
        a_rule_with({**ACTIVE, "state": ["active", "idle"], "waiting_for_client": False}),
        a_rule_with(IDLE, when={}),
        a_rule_with(IDLE, when={"slots_used": "85%", "slots_free": 5}),
        a_rule_with(IDLE, until={"slots_used": 70}),
        a_rule_with(IDLE, until={"slots_free": -1}),
        a_rule_with(IDLE, confirm_after=5),
        a_rule_with(IDLE, action="kill"),
        a_rule_with(IDLE, action="cancel"),
        a_rule_with({**ACTIVE, "state": ["active", "idle"]}, action="cancel"),
        a_rule_with({**ACTIVE, "waiting_for_client": True}, action="cancel"),
        a_rule_with(ACTIVE, action="cancel", until={"slots_free": 5}),
        a_rule_with(ACTIVE, escalate_after="10s"),
        a_rule_with(IDLE, mode="kill"),
        a_rule_with({"state": "idle"}, mode="observe"),
        a_rule_with({"role": "app"}, action="keep"),
        a_rule_with(IDLE, action="keep", mode="observe"),
        a_rule_with(IDLE, action="keep", until={"slots_free": 5}),
        a_rule_with(IDLE, action="keep", confirm_after="2s"),
        a_rule_with(IDLE, action="keep", escalate_after="2s"),
        a_rule_with(ACTIVE, action="terminate", escalate_after="10s"),
    ],
)
def test_function_and_schema_refuse_an_invalid_policy(document: object) -> None:
    with pytest.raises(ConfigurationError):
        read_policy(document)
    assert not SCHEMA.is_valid(document)


@pytest.mark.parametrize(
    "document",
    [
        a_document(version=1.0),
        a_document(mode=False),
        a_document(protect={}, limits={}),
        a_document(protect={"roles": "ä"}, limits={"max_condemned": 1}),
        a_rule_with({**IDLE, "application": ["", "api"], "role": "ä"}),
        *(
            a_document(limits={"max_share": share})
            for share in ("100%", "100.00%", "0100%", "0.01%")
        ),
        *(
            a_rule_with({**IDLE, "idle_for": time})
            for time in ("0s", "1.5h", "1m1m", "9ms", "3650d")
        ),
        *(
            a_rule_with({**IDLE, "client": client})
            for client in ("::1", "10.0.0.0/255.0.0.0", "fe80::1%eth0", ["10.0.8.7", "10.0.8.7"])
        ),
        *(
            a_rule_with({**IDLE, "query": query})
            for query in ("listen ", "* (select ?", "[.]*a", "a|b+", ["select ?", "*\n\t naïve 😀"])
        ),
        a_rule_with({"state": ["idle", "active"], "query_for": "5m"}),
        a_rule_with({**ACTIVE, "wait_event_type": ["Lock", "L*", "[!L]*"], "wait_event": "Any"}),
        a_rule_with({**ACTIVE, "waiting_for_client": False}, action="cancel", escalate_after="0s"),
        a_rule_with(ACTIVE | {"state": ["fastpath function call", "active"]}, action="cancel"),
        a_rule_with(ACTIVE, action="cancel", when={"slots_free": 0}),
        a_rule_with({"state": "idle in transaction", "blocks_for": "30s"}, confirm_after="5m"),
        a_rule_with({"state": ["idle", "active"]}, action="keep", when={"slots_free": 5}),
        a_rule_with({**ACTIVE, "waiting_for_client": True}, action="keep"),
        a_rule_with(ACTIVE, action="cancel", mode="observe", escalate_after="2s"),
        a_rule_with(IDLE, mode=False),
    ],
)
def test_function_and_schema_accept_an_unusual_policy(document: dict[str, Any]) -> None:
    read_policy(document)
    SCHEMA.validate(document)


def test_the_documentation_lists_every_built_in_protection() -> None:
    text = (ROOT / "docs" / "policy.md").read_text("utf-8")
    patterns = (
        *(pattern for tool in TOOLS for pattern in tool.applications),
        *PROVIDER_ROLES,
        *PROVIDER_DATABASES,
    )
    assert [pattern for pattern in patterns if f"`{pattern}`" not in text] == []
