"""Loads the policy from the artifact, a file or an SSM parameter."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from session_reaper.aws.ssm import read_parameter
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import Policy, read_policy
from session_reaper.runs.policy_text import parse_document, read_bundled
from session_reaper.settings import SSM_PREFIX


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


@cache  # a warm run does not parse an unchanged policy again
def _parse(text: str) -> Policy:
    return read_policy(parse_document(text))
