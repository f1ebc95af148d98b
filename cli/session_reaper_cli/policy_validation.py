"""Validates a policy file: the place of each error, and what means something else since 0.1."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Action
from session_reaper.policy.model import Policy, Rule, read_policy
from session_reaper.sessions.session import State

_SOUND_RULE: Final = {"name": "sound", "match": {"state": ["idle"], "idle_for": "1h"}}


def find_errors(document: object) -> tuple[str, ...]:
    """Return every error of a policy with its place; of one rule or key only the first."""
    try:
        read_policy(document)
    except ConfigurationError as error:
        parts = _find_errors_of_parts(document) if isinstance(document, dict) else ()
        # An error of the whole, such as two rules with one name, is in no part.
        return tuple(dict.fromkeys([*parts])) or (str(error),)
    return ()


def _find_errors_of_parts(document: Mapping[Any, Any]) -> Iterator[str]:
    sound = {"version": 1, "rules": [_SOUND_RULE]}
    for key in ("version", "rules"):
        if key not in document:
            yield f"{key}: is required"
    for key, value in document.items():
        if key == "rules" and isinstance(value, list) and value:
            for index, rule in enumerate(value):
                yield from _find_error({**sound, "rules": [rule]}, f"rules[{index}]")
        else:
            yield from _find_error({**sound, key: value})


def _find_error(document: object, place: str = "") -> Iterator[str]:
    try:
        read_policy(document)
    except ConfigurationError as error:
        yield str(error).replace("rules[0]", place, 1) if place else str(error)


def list_changes(policy: Policy) -> Iterator[str]:
    """List the places of a policy whose meaning has changed since 0.1."""
    if any(rule.may_condemn and not rule.match.role for rule in policy.rules):
        yield "rules without role also match sessions of dropped roles, unless protect.roles is set"
    for index, rule in enumerate(policy.rules):
        yield from (f"rules[{index}] ({rule.name}): {text}" for text in _list_rule_changes(rule))


def _list_rule_changes(rule: Rule) -> Iterator[str]:
    if rule.is_observe_only:
        yield "mode: observe decides nothing any more; a later rule may terminate the session"
    # A session that waits for its client waits for no lock.
    may_wait_for_lock = not (rule.match.wait_event_type or rule.match.waiting_for_client)
    if State.ACTIVE in rule.match.state and may_wait_for_lock:
        if rule.action is Action.KEEP:
            yield "also keeps sessions that wait for a lock"
        else:
            yield (
                "no longer matches a session that waits for a lock; add wait_event_type: Lock to"
                " match one"
            )
    if rule.match.query:
        yield "query is a glob over the redacted query, from its start and in any case"
    for role in sorted(rule.literal_roles) if rule.may_condemn else ():
        yield (
            f"role {role} is named literally, which lifts its built-in protections (replication,"
            " provider's and our own role)"
        )
