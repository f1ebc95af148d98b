"""The published JSON Schema of a policy, made from the types that read one.

python -m infra.policy_schema             prints it
python -m infra.policy_schema --write     writes infra/policies/policy.schema.json
python -m infra.policy_schema --check     fails if that file says something else

Editors complete and check a policy by it. What takes more than a schema to tell (two rules of one
name, a glob that matches no query) it lets pass: it never refuses what the function reads.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from session_reaper import documents
from session_reaper.policy import patterns, values
from session_reaper.policy.enums import Action, HeldResource, Mode, Order, QueryVisibility
from session_reaper.policy.model import CLOCKS, Match, Policy, Rule, Threshold
from session_reaper.sessions.session import State

SCHEMA_FILE = Path(__file__).parent / "policies" / "policy.schema.json"

Schema = dict[str, Any]


def _list(item: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": item}


def _one_or_more(item: Schema) -> Schema:
    return {"anyOf": [item, _list(item)]}


def _names(kind: Iterable[object]) -> Schema:
    return {"enum": [str(name) for name in kind]}


_TEXT: Schema = {"type": "string", "minLength": 1}
_DURATION: Schema = {
    "type": "string",
    "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$",
    "examples": ["30s", "5m", "1h30m", "2d"],
}
_PERCENT: Schema = {
    "type": "string",
    "pattern": r"^(?![0.]+%)0*(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?)%$",
    "examples": ["50%"],
}
_NETWORK: Schema = {
    "type": "string",
    "pattern": "[.:]",  # what has neither is no address; the rest takes more than a pattern
    "examples": ["10.0.8.0/24", "10.0.8.7", "2001:db8::/32"],
}
_QUERY_GLOB: Schema = {
    "type": "string",
    "pattern": "[^*? ]",  # without one it matches every query
    "not": {"pattern": r"[\^\\']|\(\?|\.\*"},
    "examples": ["select * for update", "listen "],
}

_LEAVES: Mapping[Callable[..., object], Schema] = {
    documents.non_empty_text: _TEXT,
    documents.positive_int: {"type": "integer", "minimum": 1},
    documents.non_negative_int: {"type": "integer", "minimum": 0},
    documents.boolean: {"type": "boolean"},
    patterns.read_glob: _TEXT,
    patterns.read_network: _NETWORK,
    patterns.read_query_glob: _QUERY_GLOB,
    values.read_action: _names(Action),
    values.read_duration: _DURATION,
    values.read_held_resource: _names(HeldResource),
    values.read_mode: {"enum": [*map(str, Mode), False]},  # how YAML 1.1 reads a bare off
    values.read_order: _names(Order),
    values.read_pause: _DURATION,
    values.read_percent: _PERCENT,
    values.read_query_visibility: _names(QueryVisibility),
    values.read_state: _names(State),
    values.read_version: {"const": 1},
}

# What holds between the keys of one mapping. In words that draft 7 has, too: the editors' language
# servers know few of the newer ones.
_ACTIVE: Schema = {"const": str(State.ACTIVE)}
_HAS_ACTIVE: Schema = {"type": "array", "contains": _ACTIVE}
_BETWEEN: Mapping[type, Schema] = {
    Match: {
        "anyOf": [{"required": [clock]} for clock in CLOCKS],
        "allOf": [
            {
                "if": {"required": ["query_for"]},
                "then": {"properties": {"state": {"anyOf": [_ACTIVE, _HAS_ACTIVE]}}},
            },
            {
                "if": {"required": ["waiting_for_client"]},
                "then": {"properties": {"state": _one_or_more(_ACTIVE)}},
            },
        ],
    },
    Threshold: {"minProperties": 1, "maxProperties": 1},
    Rule: {
        "if": {"required": ["action"], "properties": {"action": {"const": str(Action.CANCEL)}}},
        "then": {
            "properties": {
                "match": {
                    "properties": {
                        "state": _one_or_more(_names([State.ACTIVE, State.FASTPATH])),
                        "waiting_for_client": {"const": False},
                    }
                },
                "until": False,
            }
        },
        "else": {"properties": {"escalate_after": False}},
    },
}


def policy_schema() -> Schema:
    """The schema of a whole policy document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "session-reaper policy",
        "description": "Which sessions to terminate, and which never to touch",
        **_mapping(Policy),
    }


def _mapping(kind: type) -> Schema:
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name: field.default for field in fields(kind)}
    return {
        "type": "object",
        "properties": {name: _described(hints[name], default) for name, default in known.items()},
        "required": [name for name, default in known.items() if default is MISSING],
        "additionalProperties": False,
        **_BETWEEN.get(kind, {}),
    }


def _described(hint: Any, default: object) -> Schema:  # noqa: ANN401 -- typing's own values
    reader, description = hint.__metadata__
    plain = {"default": default} if isinstance(default, int | str) else {}
    return {"description": description, **value_schema(reader, hint.__origin__), **plain}


def value_schema(reader: Callable[..., object], kind: Any) -> Schema:  # noqa: ANN401 -- as above
    """What `reader` takes, which gives a `kind`; a reader that is no leaf is known by that."""
    if reader in _LEAVES:
        return _LEAVES[reader]
    if isinstance(reader, partial) and reader.func is documents.read_several:
        return _one_or_more(value_schema(reader.args[0], get_args(kind)[0]))
    for inner in (kind, *get_args(kind)):
        if isinstance(inner, type) and is_dataclass(inner):
            is_list = get_origin(kind) is tuple
            return _list(_mapping(inner)) if is_list else _mapping(inner)
    raise LookupError(f"no schema is known for what {reader} reads: add it to _LEAVES")


def main(arguments: Sequence[str]) -> None:
    """Print, write or check the schema."""
    parser = argparse.ArgumentParser(prog="python -m infra.policy_schema")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help=f"to {SCHEMA_FILE.name}")
    what.add_argument("--check", action="store_true", help=f"that {SCHEMA_FILE.name} is the same")
    chosen = parser.parse_args(arguments)
    made = json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"
    if chosen.write:
        SCHEMA_FILE.write_text(made, "utf-8")
    elif not chosen.check:
        print(made, end="")
    elif not SCHEMA_FILE.exists() or SCHEMA_FILE.read_text("utf-8") != made:
        sys.exit(f"{SCHEMA_FILE.name} is not what the policy's types say: run `make schema`.")


if __name__ == "__main__":
    main(sys.argv[1:])
