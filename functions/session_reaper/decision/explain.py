"""Explains the decision on every session, also on those that no rule matches: a pure function."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from session_reaper.decision.matching import Miss, list_misses
from session_reaper.decision.model import Decision, Decisions, Verdict
from session_reaper.policy.enums import Action, Mode
from session_reaper.policy.model import Policy, Rule
from session_reaper.sessions.redaction import redact_for_matching, strip_for_matching
from session_reaper.sessions.session import Session, Slots


class ExplainedOutcome(StrEnum):
    """The outcome that a session would have."""

    CONDEMNED = "condemned"
    SPARED = "spared"
    KEPT = "kept"
    PROTECTED = "protected"  # whether or not a rule matches
    LEFT = "left"  # also if only observe-only rules match


class Explanation(NamedTuple):
    """The decision on a session and its reason; of a rule that does not match, how far off it is.

    `rule`: the rule that decides, observes, or would decide but for the protection.
    """

    decision: Decision
    outcome: ExplainedOutcome
    rule: Rule | None
    reason: str


def explain(
    decisions: Decisions,
    policy: Policy,
    redact_query: Callable[[str], str] = redact_for_matching,
) -> Iterator[Explanation]:
    """Explain each decision; `policy` is the one that decided, with the rules not in force."""
    rules = [r for r in policy.rules if r.mode is not Mode.OFF and r.action is not Action.KEEP]
    rules = [r for r in rules if r.may_condemn] or rules
    in_force = frozenset(rule.name for rule in decisions.rules_in_force)

    @cache
    def query_text(query: str) -> str:
        return strip_for_matching(redact_query(query))

    def find_misses(rule: Rule, session: Session) -> list[Miss]:
        not_in_force = _check_in_force(rule, in_force, decisions.slots)
        return [*not_in_force, *list_misses(rule, session, query_text)]

    def find_nearest(session: Session) -> str:
        """Describe the rule that misses the session by least; empty if it matches."""
        found = ((rule.name, find_misses(rule, session)) for rule in rules)
        name, misses = min(found, key=lambda each: _measure_distance(each[1]))
        texts = ", ".join(miss.text for miss in misses)
        return texts and f"; nearest: {name}: {texts}"

    for decision in decisions.decisions:
        outcome = _choose_outcome(decision)
        reason = decision.reason
        if outcome is ExplainedOutcome.PROTECTED:
            reason = _explain_protection(decision)
        elif outcome is ExplainedOutcome.LEFT and rules:
            reason += find_nearest(decision.session)
        rule = decision.rule or decision.protected_from
        yield Explanation(decision=decision, outcome=outcome, rule=rule, reason=reason)


def _choose_outcome(decision: Decision) -> ExplainedOutcome:
    match decision.verdict:
        case Verdict.CONDEMN:
            return ExplainedOutcome.CONDEMNED
        case Verdict.SPARE:
            return ExplainedOutcome.SPARED
        case Verdict.KEEP:
            return ExplainedOutcome.KEPT
    return ExplainedOutcome.LEFT if decision.protection is None else ExplainedOutcome.PROTECTED


def _explain_protection(decision: Decision) -> str:
    protection, rule = decision.protection, decision.protected_from
    reason = f"protected ({protection.by}): {protection.detail}" if protection else ""
    if rule is not None:
        reason += f"; otherwise rule {rule.name} would condemn it"
    if decision.rule is not None:
        reason += f"; observed by rule {decision.rule.name}: {decision.reason}"
    return reason


def _check_in_force(rule: Rule, in_force: frozenset[str], slots: Slots) -> Iterator[Miss]:
    """Describe a rule that is not in force, which may change while the session stays as it is."""
    if rule.name in in_force:
        return
    is_too_early = rule.when is not None and not rule.when.is_reached(slots)
    why = f"when {rule.when}" if is_too_early else f"until {rule.until}"
    yield Miss(f"not in force at {slots} ({why})", progress=0.0)


def _measure_distance(misses: list[Miss]) -> tuple[int, int, float]:
    """Order rules by the misses that time alone does not remove, then by the missing time."""
    lasting = sum(miss.progress is None for miss in misses)
    progress = min((miss.progress for miss in misses if miss.progress is not None), default=1.0)
    return (lasting, len(misses), -progress)
