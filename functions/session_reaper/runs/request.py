"""Reads what an event asks a run to do."""

from dataclasses import dataclass, replace
from typing import Annotated

from session_reaper.documents import (
    boolean,
    mapping_of,
    non_empty_text,
    one_of,
    one_or_many,
    short_repr,
)
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Action, Mode, QueryVisibility
from session_reaper.policy.model import Policy, Rule, read_policy
from session_reaper.policy.values import read_mode
from session_reaper.report.timeouts import APPLICABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The options of a manual event; a scheduled run has none.

    Empty `targets` and `rules` mean all. `check` reports what to fix, `record` returns snapshots,
    `explain` returns every session with the decision on it, and `apply` gives the roles that leak
    these timeouts; none of the four signals a session.
    """

    mode: Annotated[Mode | None, read_mode] = None
    targets: Annotated[tuple[str, ...], one_or_many(non_empty_text)] = ()
    rules: Annotated[tuple[str, ...], one_or_many(non_empty_text)] = ()
    policy: Annotated[Policy | None, read_policy] = None
    check: Annotated[bool, boolean] = False
    record: Annotated[bool, boolean] = False
    explain: Annotated[bool, boolean] = False
    apply: Annotated[tuple[str, ...], one_or_many(one_of(APPLICABLE))] = ()

    @property
    def is_usual(self) -> bool:
        """Whether the run does what a scheduled run does, possibly on fewer targets."""
        return replace(self, targets=()) == RunRequest()


def read_request(event: object) -> RunRequest:
    """Read the request of an event. Raises ConfigurationError with the offending key."""
    if is_scheduled(event):
        return RunRequest()
    request: RunRequest = mapping_of(RunRequest)(event, "event")
    given = [key for key in ("check", "record", "explain", "apply") if getattr(request, key)]
    if given[1:]:
        problem = f"cannot be combined with {given[0]}"
        raise ConfigurationError(f"event.{given[1]}", problem)
    return request


def is_scheduled(event: object) -> bool:
    """Return whether the event is an envelope of EventBridge, Scheduler or an alarm's action."""
    if not isinstance(event, dict) or "source" not in event:
        return False
    return "detail-type" in event or "alarmData" in event


def choose_lowest_mode(*modes: Mode | None) -> Mode:
    """Return the lowest of the modes that are given, at least one."""
    return min(mode for mode in modes if mode is not None)


def merge_policy(policy: Policy, request: RunRequest) -> Policy:
    """Replace the stack's policy by the event's, if it has one, and keep only the rules it names.

    The stack's protections, mode and redaction still apply, so an event can only make a run more
    careful. The event's rules lift the protections of no role that the stack's rules do not lift.
    """
    if request.policy:
        modes = [mode for mode in (policy.mode, request.policy.mode) if mode is not None]
        policy = replace(
            request.policy,
            protect=policy.protect.merge(request.policy.protect),
            mode=min(modes, default=None),
            liftable_roles=policy.lifted_roles,
            queries=request.policy.queries
            if policy.queries is QueryVisibility.FULL
            else policy.queries,
        )
    return replace(policy, rules=_select_rules(policy.rules, request.rules))


def _select_rules(rules: tuple[Rule, ...], names: tuple[str, ...]) -> tuple[Rule, ...]:
    known = [rule.name for rule in rules]
    for index, name in enumerate(names):
        if name not in known:
            problem = f"unknown rule {short_repr(name)}; known: {', '.join(known)}"
            raise ConfigurationError(f"event.rules[{index}]", problem)
    # A `keep` rule stays in any case: without it, a later rule would terminate what it keeps.
    return tuple(
        rule for rule in rules if not names or rule.name in names or rule.action is Action.KEEP
    )
