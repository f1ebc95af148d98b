"""The text of a policy: the bundled one, and JSON or YAML parsed into a document."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from session_reaper.documents import key_label
from session_reaper.errors import ConfigurationError

MAX_POLICY_LENGTH = 64 * 1024  # characters; an SSM parameter holds 8 KiB at most


@cache
def read_bundled() -> str:
    """Return the text of the default policy."""
    # JSON saves the default stack the import of a YAML parser.
    return (files("session_reaper.policy") / "default_policy.json").read_text("utf-8")


def parse_document(text: str) -> object:
    """Parse a policy in JSON or YAML, without reading it. Raises ConfigurationError."""
    if len(text) > MAX_POLICY_LENGTH:
        raise ConfigurationError("document", f"is longer than {MAX_POLICY_LENGTH:,} characters")
    try:
        return _parse_json(text) if text.lstrip().startswith("{") else _parse_yaml(text)
    except RecursionError:
        raise ConfigurationError("document", "is nested too deeply") from None


def _parse_json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates)
    except ValueError:  # YAML may also begin with a brace
        return _parse_yaml(text)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ConfigurationError(key_label(duplicate), "duplicate key")
    return document


def _parse_yaml(text: str) -> object:
    from session_reaper.runs.yaml import parse_yaml  # noqa: PLC0415 -- JSON policies save the import

    return parse_yaml(text)
