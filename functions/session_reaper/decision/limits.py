"""Holds back condemned sessions: `until`, the breaker, the limits."""

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from session_reaper.decision.model import Decision, Decisions, Verdict
from session_reaper.policy.enums import Action
from session_reaper.policy.model import Limits, Rule


def frees_slot(decision: Decision) -> bool:
    """Return whether this decision frees a slot: a terminate that our role may send."""
    return (
        decision.verdict is Verdict.CONDEMN
        and decision.session.signalable
        and decision.rule is not None
        and decision.rule.action is Action.TERMINATE
    )


def apply_limits(decisions: Decisions, limits: Limits | None) -> Decisions:
    """Hold back the sessions that `until` does not need or, if given, the limits do not allow.

    A session held back by a limit frees no slot; one that `until` does not need does not count
    against a limit. Each rule with `until` therefore gets, in the order of the policy, the smallest
    allowance with which enough slots are freed, including those freed by the rules before it and
    by the rules without `until`.
    """
    condemned, rules = decisions.having(Verdict.CONDEMN), decisions.rules_in_force
    if not condemned:
        return decisions
    counted = {rule.name for rule in rules if rule.until is None}
    allowances = {rule.name: 0 for rule in rules if rule.until is not None}

    def count_freed(allowance: int, name: str) -> int:
        """Count the slots that are freed if the rule `name` may condemn `allowance` sessions."""
        limit = _make_limiter(limits, allowances | {name: allowance})
        allowed = [d for d in condemned if limit(d) is None]
        return sum(d.rule is not None and d.rule.name in counted and frees_slot(d) for d in allowed)

    for rule in rules:
        if rule.until is not None:
            counted.add(rule.name)
            most = sum(d.rule is rule for d in condemned)
            # A bisection is enough: one more session displaces at most one other from a limit, so
            # a higher allowance never frees fewer slots. It returns `most` if fewer do not free
            # enough.
            by_allowance = partial(count_freed, name=rule.name)
            needed = rule.until.excess(decisions.slots)
            allowances[rule.name] = bisect_left(range(most), needed, key=by_allowance)
    return decisions.hold_back(_make_limiter(limits, allowances))


def _make_limiter(
    limits: Limits | None, allowances: Mapping[str, int]
) -> Callable[[Decision], str | None]:
    """Return a function that counts condemned sessions and names the limit that holds one back."""
    total = 0
    by_rule: Counter[str] = Counter()
    by_application: Counter[str] = Counter()
    max_total = limits.max_terminations if limits else sys.maxsize
    max_per_application = (limits and limits.max_per_application) or sys.maxsize
    total_reached = f"limits.max_terminations of {max_total} was reached"
    application_reached = f"limits.max_per_application of {max_per_application} was reached by "

    def limit(decision: Decision) -> str | None:
        nonlocal total
        rule, application = decision.rule, decision.session.application
        if (
            rule is not None
            and rule.name in allowances
            and by_rule[rule.name] >= allowances[rule.name]
        ):
            return f"not needed to reach {rule.until}"
        if total >= max_total:
            return total_reached
        if by_application[application] >= max_per_application:
            return application_reached + repr(application)
        # A session that will be denied uses up no limit.
        if decision.session.signalable:
            if rule is not None:
                by_rule[rule.name] += 1
            total += 1
            by_application[application] += 1
        return None

    return limit


def describe_pressure(decisions: Decisions) -> tuple[str, ...]:
    """Describe how many sessions each rule with `when` or `until` condemned, and why no more."""
    slots, sentences = decisions.slots, []
    freed = sum(frees_slot(d) for d in decisions.decisions if d.rule and d.rule.until is None)
    for rule in decisions.rules_in_force:
        matched = [d for d in decisions.decisions if d.rule is rule]
        needed = None
        if rule.until is not None:
            needed = rule.until.excess(slots) - freed
            freed += sum(map(frees_slot, matched))
        if rule.action is not Action.KEEP and (rule.when is not None or rule.until is not None):
            when = f" (when {rule.when})" if rule.when is not None else ""
            stop = _describe_stop(rule, needed, matched)
            sentences.append(f"rule {rule.name} in force at {slots}{when}: {stop}")
    return tuple(sentences)


def _describe_stop(rule: Rule, needed: int | None, matched: Sequence[Decision]) -> str:
    if rule.is_observe_only:
        return f"{len(matched)} would be terminated (mode: observe)"
    condemned = sum(d.verdict is Verdict.CONDEMN for d in matched)
    if needed is not None and needed <= 0:
        return f"no further session is needed to reach {rule.until}"
    freed = sum(map(frees_slot, matched))
    if needed is not None and freed >= needed:
        return f"{condemned} condemned, enough to reach {rule.until}"
    spared = len(matched) - condemned
    why = f"{spared} spared" if spared else "no more match"
    missing = "" if needed is None else f"; {needed - freed} more must end to reach {rule.until}"
    return f"{condemned} condemned, {why}{missing}"


def check_breaker(decisions: Decisions, limits: Limits) -> str | None:
    """Return why the breaker trips; None if it does not."""
    condemned, used = len(decisions.having(Verdict.CONDEMN)), decisions.slots.used
    found = f"the policy condemns {condemned} of {used} client sessions, more than "
    share, most = limits.max_share, limits.max_condemned
    if share is not None and used >= limits.min_sessions and 100 * condemned > share * used:
        return f"{found}limits.max_share of {share:g}%"
    if most is not None and condemned > most:
        return f"{found}limits.max_condemned of {most}"
    return None
