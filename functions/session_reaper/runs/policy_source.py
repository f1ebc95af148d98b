"""Where a policy comes from, and its text as a document."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from session_reaper.aws.clients import AWS_ERRORS, call, explain_error, get_client
from session_reaper.deadline import Deadline
from session_reaper.documents import key_label
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import Policy, read_policy

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient

MAX_POLICY_LENGTH = 64 * 1024  # characters; an SSM parameter holds 8 KiB at most
SSM_PREFIX = "ssm:"


def load_policy(source: str, deadline: Deadline) -> Policy:
    """The policy that `POLICY` names: "" the bundled one, `ssm:NAME`, else a path in the artifact.

    Raises ConfigurationError, its text beginning with the source; by the deadline, if SSM is slow.
    """
    try:
        return _parse(_read_text(source, deadline))
    except ConfigurationError as error:
        problem = " ".join(str(error).split())
        raise ConfigurationError(f"POLICY {source or '(default)'}", problem) from None


def _read_text(source: str, deadline: Deadline) -> str:
    if not source:
        return _read_bundled()
    if source.startswith(SSM_PREFIX):
        return _read_parameter(source.removeprefix(SSM_PREFIX), deadline)
    try:
        # A relative path is meant from the artifact's root, wherever the process was started.
        return (Path(str(files("session_reaper"))).parent / source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("file", f"cannot be read: {error}") from None


@cache
def _read_bundled() -> str:
    # JSON, not YAML: a stack that names no policy does not pay for importing a parser.
    return (files("session_reaper.policy") / "default_policy.json").read_text("utf-8")


def _read_parameter(name: str, deadline: Deadline) -> str:
    def read() -> str:
        ssm: SSMClient = get_client("ssm")
        value = ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
        if not isinstance(value, str):
            raise TypeError
        return value

    try:
        return call("ssm", read, deadline)
    except AWS_ERRORS as error:
        problem = f"cannot be read: {explain_error(error)}"
        raise ConfigurationError("parameter", problem) from None


@cache  # a pure function: a warm run with an unchanged policy parses nothing
def _parse(text: str) -> Policy:
    if len(text) > MAX_POLICY_LENGTH:
        raise ConfigurationError("document", f"is longer than {MAX_POLICY_LENGTH:,} characters")
    try:
        document = _json(text) if text.lstrip().startswith("{") else _yaml(text)
    except RecursionError:
        raise ConfigurationError("document", "is nested too deep") from None
    return read_policy(document)


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except ValueError:  # a YAML document may begin with a brace, too
        return _yaml(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigurationError(
            key_label(twice), "this key is there twice; the first would be lost"
        )
    return document


def _yaml(text: str) -> object:
    # Imported when there is YAML to read: a policy in JSON does not pay for it.
    from session_reaper.runs.yaml import parse_yaml  # noqa: PLC0415 -- see above

    return parse_yaml(text)
