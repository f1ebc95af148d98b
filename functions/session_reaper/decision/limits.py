"""Holds back condemned sessions: `until`, the breaker, the limits."""

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial

from session_reaper.decision.model import Decision, Decisions, Verdict, hold_back
from session_reaper.policy.enums import Action
from session_reaper.policy.model import Limits, Rule
from session_reaper.sessions.session import Slots


def frees_slot(decision: Decision) -> bool:
    """Whether a slot becomes free, as far as it is up to us."""
    return (
        decision.verdict is Verdict.CONDEMN
        and decision.session.signalable
        and decision.rule is not None
        and decision.rule.action is Action.TERMINATE
    )


def apply_limits(
    judged: Sequence[Decision], slots: Slots, rules: Sequence[Rule], limits: Limits | None
) -> tuple[Decision, ...]:
    """Hold back what `until` does not take and what the limits, if given, do not allow.

    Whom a limit holds frees nothing, and whom `until` does not take has no place under a limit. So
    each rule with `until`, in the policy's order, gets the least number of victims with which
    enough go, those of the rules before it and of those without `until` counted.
    """
    condemned = [decision for decision in judged if decision.verdict is Verdict.CONDEMN]
    counted = {rule.name for rule in rules if rule.until is None}
    most = {rule.name: 0 for rule in rules if rule.until is not None}

    def freed(number: int, name: str) -> int:
        """How many slots become free if so many of this rule's victims may go."""
        limit = _make_limiter(limits, most | {name: number})
        going = [d for d in condemned if limit(d) is None]
        return sum(d.rule is not None and d.rule.name in counted and frees_slot(d) for d in going)

    for rule in rules:
        if rule.until is not None:
            counted.add(rule.name)
            numbers = range(sum(d.rule is rule for d in condemned) + 1)
            # One victim more never frees fewer: it takes one other's place at the most.
            by_number = partial(freed, name=rule.name)
            least = bisect_left(numbers, rule.until.excess(slots), key=by_number)
            most[rule.name] = least if least in numbers else sys.maxsize
    return tuple(hold_back(judged, _make_limiter(limits, most)))


def _make_limiter(
    limits: Limits | None, most: Mapping[str, int]
) -> Callable[[Decision], str | None]:
    """What tells of each decision in turn why it is held back, if it is."""
    total = 0
    by_rule: Counter[str] = Counter()
    by_application: Counter[str] = Counter()
    most_of_all = limits.max_terminations if limits else sys.maxsize
    most_of_one = (limits and limits.max_per_application) or sys.maxsize
    of_all = f"limits.max_terminations of {most_of_all} was reached"
    of_one = f"limits.max_per_application of {most_of_one} was reached by "

    def limit(decision: Decision) -> str | None:
        nonlocal total
        rule, application = decision.rule, decision.session.application
        if rule is not None and rule.name in most and by_rule[rule.name] >= most[rule.name]:
            return f"until {rule.until} it takes no more"
        if total >= most_of_all:
            return of_all
        if by_application[application] >= most_of_one:
            return of_one + repr(application)
        # One that will be denied takes nobody's place.
        if decision.session.signalable:
            if rule is not None:
                by_rule[rule.name] += 1
            total += 1
            by_application[application] += 1
        return None

    return limit


def describe_pressure(judgement: Decisions) -> tuple[str, ...]:
    """Describe each rule in force for want of slots: what it took, and why no more."""
    return tuple(_describe_rules(judgement))


def _describe_rules(judgement: Decisions) -> Iterator[str]:
    slots = judgement.slots
    freed = sum(frees_slot(d) for d in judgement.decisions if d.rule and d.rule.until is None)
    for rule in judgement.rules:
        mine = [d for d in judgement.decisions if d.rule is rule]
        needed = None
        if rule.until is not None:
            needed = rule.until.excess(slots) - freed
            freed += sum(map(frees_slot, mine))
        if rule.when is not None or rule.until is not None:
            when = f" (when {rule.when})" if rule.when is not None else ""
            yield f"rule {rule.name} in force at {slots}{when}: {_describe_stop(rule, needed, mine)}"


def _describe_stop(rule: Rule, needed: int | None, mine: Sequence[Decision]) -> str:
    condemned = sum(d.verdict is Verdict.CONDEMN for d in mine)
    if needed is not None and needed <= 0:
        return f"until {rule.until} it takes none"
    if needed is not None and sum(map(frees_slot, mine)) >= needed:
        return f"stopped after {condemned}, enough until {rule.until}"
    held = len(mine) - condemned
    why = f"{held} held back" if held else "no more match"
    takes = f"; until {rule.until} it takes {needed}" if needed is not None else ""
    return f"{condemned} condemned, {why}{takes}"


def check_breaker(judgement: Decisions, max_share: Decimal, min_sessions: int) -> str | None:
    """Return why the breaker trips; None if it does not."""
    condemned, used = len(judgement.having(Verdict.CONDEMN)), judgement.slots.used
    if used < min_sessions or 100 * condemned <= max_share * used:
        return None
    return (
        f"the policy condemns {condemned} of {used} client sessions, "
        f"more than limits.max_share of {max_share:g}%"
    )
