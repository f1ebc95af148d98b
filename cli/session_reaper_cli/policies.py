"""The policy of a command: a file or the bundled one, restricted to what the user names."""

from dataclasses import replace
from glob import escape
from pathlib import Path

from session_reaper.documents import may_hold_credential
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import Policy, read_policy
from session_reaper.policy.patterns import matches_any
from session_reaper.runs.policy_text import parse_document, read_bundled


def load(path: str) -> Policy:
    """Load a policy from a file; "" is the bundled one. Raises ConfigurationError."""
    if not path:
        return read_policy(parse_document(read_bundled()))
    document = read_document(Path(path))
    try:
        return read_policy(document)
    except ConfigurationError as error:
        raise ConfigurationError(path, str(error)) from None


def read_document(path: Path) -> object:
    """Parse a policy file. Raises ConfigurationError."""
    try:
        return parse_document(path.read_text("utf-8"))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "must be a text file in UTF-8"
    except ConfigurationError as error:
        problem = str(error)
    raise ConfigurationError(path_label(path), problem)


def path_label(path: Path) -> str:
    """Render a path for an error: a URI may stand in its place."""
    return "a file (not shown)" if may_hold_credential(str(path)) else str(path)


def restrict_to_role(policy: Policy, role: str) -> Policy:
    """Return the policy for the sessions of one role only.

    The rules then name the role literally, which lifts the protections that rest on the role.
    """
    rules = (
        replace(rule, match=replace(rule.match, role=(escape(role),)))
        for rule in policy.rules
        if not rule.match.role or matches_any(rule.match.role, role)
    )
    return replace(policy, rules=tuple(rules))
