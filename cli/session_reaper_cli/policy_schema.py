"""Generates the published JSON Schema of a policy from the types that read it.

Editors use it to complete and check a policy. It never rejects a policy that the function accepts.
It accepts some that the function rejects: duplicate rule names, a glob that matches no query.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from session_reaper import documents
from session_reaper.policy import patterns, values
from session_reaper.policy.enums import Action, Mode
from session_reaper.policy.model import CLOCKS, Match, Policy, Rule, Threshold
from session_reaper.sessions.session import State

Schema = dict[str, Any]


def _list(item: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": item}


def _make_one_or_many(item: Schema) -> Schema:
    return {"anyOf": [item, _list(item)]}


def _make_choice(choices: Iterable[object]) -> Schema:
    return {"enum": [str(choice) for choice in choices]}


_TEXT: Schema = {"type": "string", "minLength": 1}
_ASCII: Schema = {"type": "string", "pattern": "^[ -~]*$"}
_APPLICATION: Schema = {**_TEXT, **_ASCII}
_WAIT_EVENT_TYPE: Schema = {
    "anyOf": [_make_choice(patterns.WAIT_EVENT_TYPES), {"type": "string", "pattern": "[*?[]"}]
}
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
    "pattern": "[.:]",  # in every address; a pattern cannot check more
    "examples": ["10.0.8.0/24", "10.0.8.7", "2001:db8::/32"],
}
_QUERY_GLOB: Schema = {
    "type": "string",
    "pattern": "[^*? ]",  # without another character it matches every query
    "not": {"pattern": r"[\^\\']|\(\?|\.\*"},
    "examples": ["select * for update", "listen "],
}

_LEAVES: Mapping[Callable[..., object], Schema] = {
    documents.non_empty_text: _TEXT,
    documents.positive_int: {"type": "integer", "minimum": 1},
    documents.non_negative_int: {"type": "integer", "minimum": 0},
    documents.boolean: {"type": "boolean"},
    patterns.read_name_glob: _TEXT,
    patterns.read_application_glob: _APPLICATION,
    patterns.read_application_globs: {"anyOf": [_APPLICATION, _list(_ASCII)]},
    patterns.read_network: _NETWORK,
    patterns.read_wait_event: _TEXT,
    patterns.read_wait_event_type: _WAIT_EVENT_TYPE,
    patterns.read_query_glob: _QUERY_GLOB,
    values.read_duration: _DURATION,
    values.read_mode: {"enum": [*map(str, Mode), False]},  # YAML 1.1 reads a bare off as false
    values.read_pause: _DURATION,
    values.read_percent: _PERCENT,
    values.read_version: {"const": 1},
}

# Rules between the keys of one mapping, with keywords of draft 7 only, because the language servers
# of editors support few newer ones.
_ACTIVE: Schema = {"const": str(State.ACTIVE)}
_HAS_ACTIVE: Schema = {"type": "array", "contains": _ACTIVE}


def _has_action(action: Action) -> Schema:
    return {"required": ["action"], "properties": {"action": {"const": str(action)}}}


_KEY_RULES: Mapping[type, Schema] = {
    Match: {
        "allOf": [
            {
                "if": {"required": ["query_for"]},
                "then": {"properties": {"state": {"anyOf": [_ACTIVE, _HAS_ACTIVE]}}},
            },
            {
                "if": {"required": ["waiting_for_client"]},
                "then": {"properties": {"state": _make_one_or_many(_ACTIVE)}},
            },
        ],
    },
    Threshold: {"minProperties": 1, "maxProperties": 1},
    Rule: {
        "allOf": [
            {
                "if": _has_action(Action.CANCEL),
                "then": {
                    "properties": {
                        "match": {
                            "properties": {
                                "state": _make_one_or_many(
                                    _make_choice([State.ACTIVE, State.FASTPATH])
                                ),
                                "waiting_for_client": {"const": False},
                            }
                        },
                        "until": False,
                    }
                },
                "else": {"properties": {"escalate_after": False}},
            },
            {
                "if": _has_action(Action.KEEP),
                "then": {"properties": dict.fromkeys(("until", "confirm_after", "mode"), False)},
                "else": {
                    "properties": {"match": {"anyOf": [{"required": [clock]} for clock in CLOCKS]}}
                },
            },
        ]
    },
}


def make_policy_schema() -> Schema:
    """Return the schema of a policy document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "session-reaper policy",
        "description": "Which sessions to terminate and which never to touch",
        **_make_mapping(Policy),
    }


def _make_mapping(kind: type) -> Schema:
    hints = get_type_hints(kind, include_extras=True)
    known = {f.name: f.default for f in fields(kind) if get_origin(hints[f.name]) is Annotated}
    return {
        "type": "object",
        "properties": {
            name: _add_description(hints[name], default) for name, default in known.items()
        },
        "required": [name for name, default in known.items() if default is MISSING],
        "additionalProperties": False,
        **_KEY_RULES.get(kind, {}),
    }


def _add_description(hint: Any, default: object) -> Schema:  # noqa: ANN401 -- a type hint
    reader, description = hint.__metadata__
    plain = {"default": default} if isinstance(default, int | str) else {}
    return {"description": description, **make_value_schema(reader, hint.__origin__), **plain}


def make_value_schema(reader: Callable[..., object], kind: Any) -> Schema:  # noqa: ANN401 -- as above
    """Return the schema of what `reader` accepts, where `kind` is the type that it returns."""
    if reader in _LEAVES:
        return _LEAVES[reader]
    if isinstance(reader, partial) and reader.func is documents.read_choice:
        return _make_choice(reader.args[0])
    if isinstance(reader, partial) and reader.func is documents.read_list:
        return _make_one_or_many(make_value_schema(reader.args[0], get_args(kind)[0]))
    for inner in (kind, *get_args(kind)):
        if isinstance(inner, type) and is_dataclass(inner):
            is_list = get_origin(kind) is tuple
            return _list(_make_mapping(inner)) if is_list else _make_mapping(inner)
    raise LookupError(f"no schema for the reader {reader}; add it to _LEAVES")


def write_schema() -> str:
    """Return the text of the schema's file."""
    return json.dumps(make_policy_schema(), indent=2, ensure_ascii=False) + "\n"
