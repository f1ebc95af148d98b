"""The policy of a command: a file or the bundled one, restricted to what the user names."""

from dataclasses import replace
from glob import escape
from pathlib import Path

from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import Policy, Rule
from session_reaper.policy.patterns import matches_any
from session_reaper.runs.policy_source import load_policy

DEFAULT_POLICY = ""
_SECONDS = 10.0


def load(path: str) -> Policy:
    """Load a policy from a file; "" is the bundled one. Raises ConfigurationError."""
    try:
        return load_policy(str(Path(path).resolve()) if path else "", Deadline(_SECONDS))
    except ConfigurationError as error:
        raise ConfigurationError(path or "default policy", error.problem) from None


def restrict_to_role(policy: Policy, role: str) -> Policy:
    """Return the policy for the sessions of one role only.

    The rules then name the role literally, which lifts the protections that rest on the role.
    """
    return replace(
        policy,
        rules=tuple(_restrict(rule, role) for rule in policy.rules if _may_match(rule, role)),
    )


def _may_match(rule: Rule, role: str) -> bool:
    return not rule.match.role or matches_any(rule.match.role, role)


def _restrict(rule: Rule, role: str) -> Rule:
    return replace(rule, match=replace(rule.match, role=(escape(role),)))
