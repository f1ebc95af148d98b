"""Loads the policy from the artifact, a file or an SSM parameter."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from session_reaper.aws.ssm import read_parameter
from session_reaper.deadline import Deadline
from session_reaper.documents import key_label
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import Policy, read_policy
from session_reaper.settings import SSM_PREFIX

MAX_POLICY_LENGTH = 64 * 1024  # characters; an SSM parameter holds 8 KiB at most


def load_policy(source: str, deadline: Deadline) -> Policy:
    """Load the policy that `POLICY` names: "" (bundled), `ssm:NAME`, or a path in the artifact.

    Raises ConfigurationError that names the source, also if SSM does not answer by the deadline.
    """
    try:
        return _parse(_read_text(source, deadline))
    except ConfigurationError as error:
        problem = " ".join(str(error).split())
        raise ConfigurationError(f"POLICY {source or '(default)'}", problem) from None


def _read_text(source: str, deadline: Deadline) -> str:
    if not source:
        return read_bundled()
    if source.startswith(SSM_PREFIX):
        return read_parameter(source.removeprefix(SSM_PREFIX), deadline)
    try:
        # A relative path starts at the root of the artifact, not at the working directory.
        return (Path(str(files("session_reaper"))).parent / source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("file", f"cannot be read: {error}") from None


@cache
def read_bundled() -> str:
    """Return the text of the default policy."""
    # JSON saves the default stack the import of a YAML parser.
    return (files("session_reaper.policy") / "default_policy.json").read_text("utf-8")


@cache  # a warm run does not parse an unchanged policy again
def _parse(text: str) -> Policy:
    return read_policy(parse_document(text))


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
