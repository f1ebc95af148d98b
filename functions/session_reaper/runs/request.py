"""What one event asks for."""

from dataclasses import dataclass, replace
from typing import Annotated

from session_reaper.documents import (
    boolean,
    key_label,
    mapping_of,
    non_empty_text,
    one_or_many,
    short_repr,
)
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Mode, QueryVisibility
from session_reaper.policy.model import Policy, Rule, read_policy
from session_reaper.policy.values import read_mode
from session_reaper.report.advice import APPLICABLE


def _read_applicable(value: object, place: str) -> str:
    code = non_empty_text(value, place)
    if code not in APPLICABLE:
        problem = f"{short_repr(code)} cannot be applied; what can: {', '.join(APPLICABLE)}"
        raise ConfigurationError(place, problem)
    return code


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A manual event's wishes; a scheduled run has none. Empty means all."""

    mode: Annotated[Mode | None, read_mode] = None
    targets: Annotated[tuple[str, ...], one_or_many(non_empty_text)] = ()
    rules: Annotated[tuple[str, ...], one_or_many(non_empty_text)] = ()
    policy: Annotated[Policy | None, read_policy] = None
    check: Annotated[bool, boolean] = False  # tell what is to be mended, and do nothing
    record: Annotated[bool, boolean] = False  # return what is seen, and do nothing
    # Give the roles that leak these timeouts, and terminate nothing.
    apply: Annotated[tuple[str, ...], one_or_many(_read_applicable)] = ()

    @property
    def is_usual(self) -> bool:
        """Whether it asks for what the schedule does, if only of some targets."""
        return replace(self, targets=()) == RunRequest()


def read_request(event: object) -> RunRequest:
    """The request of an event. Raises ConfigurationError naming the key it cannot use."""
    if is_scheduled(event):
        return RunRequest()
    request: RunRequest = mapping_of(RunRequest)(event, "event")
    asked = [key for key in ("check", "record", "apply") if getattr(request, key)]
    if asked[1:]:
        problem = f"does not go together with {asked[0]}: one at a time"
        raise ConfigurationError(f"event.{asked[1]}", problem)
    return request


def is_scheduled(event: object) -> bool:
    """Whether it is from EventBridge or its Scheduler: an envelope with these two, whatever else."""
    return isinstance(event, dict) and "source" in event and "detail-type" in event


def effective_mode(*modes: Mode | None) -> Mode:
    """The lowest of those given. One at least must be."""
    return min(mode for mode in modes if mode is not None)


def policy_of_run(policy: Policy, request: RunRequest) -> Policy:
    """The event's policy in place of the stack's, if it brings one, and of it the rules it names.

    The stack's protections, its mode and its redaction hold all the same: an event makes a run more
    careful, never less.
    """
    if request.policy:
        modes = [mode for mode in (policy.mode, request.policy.mode) if mode is not None]
        policy = replace(
            request.policy,
            protect=policy.protect.merge(request.policy.protect),
            mode=min(modes, default=None),
            queries=request.policy.queries
            if policy.queries is QueryVisibility.FULL
            else policy.queries,
        )
    return replace(policy, rules=_select_rules(policy.rules, request.rules))


def _select_rules(rules: tuple[Rule, ...], names: tuple[str, ...]) -> tuple[Rule, ...]:
    known = [rule.name for rule in rules]
    for index, name in enumerate(names):
        if name not in known:
            problem = f"the policy has no rule {key_label(name)}; it has {', '.join(known)}"
            raise ConfigurationError(f"event.rules[{index}]", problem)
    return tuple(rule for rule in rules if not names or rule.name in names)
