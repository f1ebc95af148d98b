"""What the policy says of each session: a pure function.

Every session gets its verdict by itself first, from the first rule in force that matches it. Then
whatever holds victims back takes its turn, in this order: `until`, the breaker, the limits.
"""

import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum, auto
from functools import cache, partial
from operator import attrgetter
from typing import NamedTuple

from session_reaper.durations import format_duration
from session_reaper.patterns import is_within, matches_any, matches_query
from session_reaper.policy import (
    BUILTIN,
    Action,
    Holding,
    Limits,
    Match,
    Order,
    Policy,
    Protect,
    Rule,
)
from session_reaper.redaction import matched_text, redact, redact_for_matching
from session_reaper.sessions import Names, Session, Slots, State


class Verdict(Enum):
    """What is to be done with a session."""

    LEAVE = auto()  # protected, or no rule matches
    CONDEMN = auto()
    SPARE = auto()  # condemned, but a limit or the breaker holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the policy says of one session, and why. `rule` is None where it is left alone."""

    session: Session
    verdict: Verdict
    rule: Rule | None
    reason: str

    @property
    def pid(self) -> int:
        """The session's."""
        return self.session.identity.pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The decisions on one target's sessions, those who go first in front."""

    decisions: tuple[Decision, ...]
    slots: Slots
    rules: tuple[Rule, ...]  # in force
    breaker: str | None = None  # why it tripped

    def having(self, verdict: Verdict) -> tuple[Decision, ...]:
        """The decisions of one verdict, in order."""
        return tuple(d for d in self.decisions if d.verdict is verdict)

    def held_back(self, limit: Callable[[Decision], str | None]) -> "Judgement":
        """The same, but condemned sessions are spared for which `limit` gives a reason."""
        return replace(self, decisions=tuple(_held_back(self.decisions, limit)))

    @property
    def pressure(self) -> tuple[str, ...]:
        """A sentence on each rule in force for want of slots: what it took, and why no more."""
        return tuple(_pressure(self))


def decide(
    sessions: Iterable[Session],
    slots: Slots,
    policy: Policy,
    *,
    freed: int = 0,
    redact_query: Callable[[str], str] = redact_for_matching,
) -> Judgement:
    """Judge every session by the rules, and hold back what the limits do not allow.

    `freed` is what this run has freed already: `when` counts those slots as used still.
    `redact_query` is `str` for a recorded look: its queries are redacted already.
    """
    in_order = sorted(sessions, key=_ORDERS[policy.limits.order])
    before = replace(slots, used=slots.used + freed)
    rules = tuple(rule for rule in policy.rules if _is_in_force(rule, before))
    judged = tuple(_judged(in_order, before, rules, policy.protect, redact_query))
    judgement = Judgement(decisions=judged, slots=slots, rules=rules)
    if policy.limits.max_share is not None:
        needed = replace(judgement, decisions=_let_go(judged, slots, rules, None))
        breaker = _breaker(needed, policy.limits.max_share, policy.limits.min_sessions)
        if breaker:
            return replace(needed.held_back(lambda _: breaker), breaker=breaker)
    return replace(judgement, decisions=_let_go(judged, slots, rules, policy.limits))


def _is_in_force(rule: Rule, slots: Slots) -> bool:
    return (rule.when is None or rule.when.is_reached(slots)) and (
        rule.until is None or rule.until.excess(slots) > 0
    )


def _harm(session: Session) -> tuple[int, int, int]:
    return (-len(session.waiters), -session.pinned, -(session.locks or 0))


_ORDERS: dict[Order, Callable[[Session], tuple[float, ...]]] = {
    Order.LONGEST: lambda s: (-s.idle_seconds, s.identity.pid),
    Order.MOST_HARMFUL: lambda s: (*_harm(s), -s.idle_seconds, s.identity.pid),
    Order.NEWEST: lambda s: (s.idle_seconds, s.identity.pid),
}


# -- one session ----------------------------------------------------------------------------------


def _judged(
    sessions: Iterable[Session],
    slots: Slots,
    rules: Sequence[Rule],
    protect: Protect,
    redact_query: Callable[[str], str],
) -> Iterator[Decision]:
    tests = [_test(rule) for rule in rules]

    @cache  # sessions share their names, and what follows from them
    def selected(state: State, names: Names) -> str | tuple[_Test, ...]:
        """What protects them, or the rules whose conditions on them hold."""
        return _protected_by_name(names, protect) or tuple(
            test for test in tests if _selects(test.rule.match, state, names)
        )

    @cache  # for this call only: nothing keeps other people's queries
    def query_text(query: str) -> str:
        return matched_text(redact_query(query))

    for session in sessions:
        found = _protected(session, protect) or selected(session.state, session.names)
        if isinstance(found, str):
            yield _left(session, f"protected: {found}")
        else:
            yield _by_rule(session, slots, found, query_text)


def _left(session: Session, reason: str) -> Decision:
    return Decision(session=session, verdict=Verdict.LEAVE, rule=None, reason=reason)


def _by_rule(
    session: Session, slots: Slots, tests: Iterable["_Test"], query_text: Callable[[str], str]
) -> Decision:
    for test in tests:
        for of, least in test.numbers:
            number = of(session)
            if number is None or number < least:
                break
        else:
            if _fits(test.rule.match, session, query_text):
                return Decision(
                    session=session,
                    verdict=Verdict.CONDEMN,
                    rule=test.rule,
                    reason=", ".join(_said(test, session, slots)),
                )
    return _left(session, "no rule matches")


def _protected(session: Session, protect: Protect) -> str | None:
    """What protects it that it does not share with many."""
    if session.own_role:
        return "our own role"
    if session.superuser:
        return "a superuser"
    if session.replication:
        return "a replication role"
    if protect.clients and is_within(protect.clients, session.client):
        return f"client {session.client}"
    return None


def _protected_by_name(names: Names, protect: Protect) -> str | None:
    if "\ufffd" in names.role + names.database:
        return "a name in an encoding that is not ours, which no pattern can be held against"
    covered = BUILTIN.covers(names)
    return f"{covered} (built in)" if covered else protect.covers(names)


def _selects(match: Match, state: State, names: Names) -> bool:
    """Whether the conditions hold that sessions of these names share; one not given always does."""
    return (
        state in match.state
        and (not match.role or matches_any(match.role, names.role))
        and (not match.database or matches_any(match.database, names.database))
        and (not match.application or matches_any(match.application, names.application))
    )


def _waited(number: int, session: Session) -> float | None:
    """For how long so many, or more, have waited on it."""
    return session.waiters[number - 1].seconds if len(session.waiters) >= number else None


class _Measure(NamedTuple):
    """A condition that holds from a number up: the session's own, and how a person says it."""

    of: Callable[[Session], float | None]
    sentence: str
    shown: Callable[[float], str] = format_duration


def _measures(match: Match) -> dict[str, _Measure]:
    return {
        "idle_for": _Measure(attrgetter("idle_seconds"), "{state} for {}"),
        "transaction_for": _Measure(attrgetter("transaction_seconds"), "transaction open for {}"),
        "connected_for": _Measure(attrgetter("connected_seconds"), "connected for {}"),
        "query_for": _Measure(attrgetter("query_seconds"), "query running for {}"),
        "blocks": _Measure(lambda s: len(s.waiters), "{} waiting on it", str),
        "blocks_for": _Measure(partial(_waited, match.blocks or 1), "waited for {}"),
        "pins_vacuum_by": _Measure(
            attrgetter("pinned"), "holds vacuum back by {} transactions", "{:,}".format
        ),
    }


class _Test(NamedTuple):
    """A rule, and the numbers that its match asks for, made ready for thousands of sessions."""

    rule: Rule
    numbers: tuple[tuple[Callable[[Session], float | None], float], ...]
    measures: tuple[tuple[str, _Measure, float], ...]


def _test(rule: Rule) -> _Test:
    found = [(name, m, getattr(rule.match, name)) for name, m in _measures(rule.match).items()]
    measures = tuple((name, m, least) for name, m, least in found if least is not None)
    return _Test(rule, tuple((m.of, least) for _, m, least in measures), measures)


def _fits(match: Match, session: Session, query_text: Callable[[str], str]) -> bool:
    """Whether the conditions hold that are neither on names nor on numbers."""
    # The query comes last: to redact one takes longer than everything else together.
    return (
        (not match.client or is_within(match.client, session.client))
        and (match.waiting_for_client is None or match.waiting_for_client == _waits(session))
        and (not match.holds or not _held(session).isdisjoint(match.holds))
        and (not match.query or matches_query(match.query, query_text(session.query)))
    )


_COPY = re.compile(r"\bcopy\b", re.IGNORECASE)


def _waits(session: Session) -> bool:
    # A COPY waits for its client's rows, and is well. Servers from 14 on tell which session runs
    # one; before that its text does, without what it says in literals and comments.
    if not session.waiting_for_client:
        return False
    text = redact(session.query, len(session.query))
    # Where a literal ends may not be known: then what follows is not there.
    return not _COPY.search(session.query if text.endswith("…") else text)


def _held(session: Session) -> set[Holding]:
    held = {
        Holding.XID: session.xid_age is not None,
        Holding.XMIN: session.xmin_age is not None,
        Holding.LOCKS: bool(session.locks),
    }
    return {holding for holding, holds in held.items() if holds}


def _said(test: _Test, session: Session, slots: Slots) -> Iterator[str]:
    """Every condition that is not on names, with what the session has of it."""
    match = test.rule.match
    if test.rule.when is not None:
        yield f"{_used(slots)} (when {test.rule.when})"
    for name, measure, least in test.measures:
        number = measure.shown(measure.of(session) or 0)
        phrase = measure.sentence.format(number, state=session.state)
        yield f"{phrase} ({name}: {measure.shown(least)})"
    if match.waiting_for_client:
        yield "waits for its client (waiting_for_client: true)"
    if match.holds:
        held = ", ".join(holding for holding in match.holds if holding in _held(session))
        yield f"holds {held} (holds: {', '.join(match.holds)})"
    if session.waiters:
        yield f"waiting: {_waiting(session)}"
    if test.rule.action is Action.CANCEL:
        yield "to be cancelled"


_MOST_NAMED = 3  # waiters


def _waiting(session: Session) -> str:
    named = [
        f"{w.application or 'pid ' + str(w.pid)} as {w.role} for {format_duration(w.seconds)}"
        for w in session.waiters[:_MOST_NAMED]
    ]
    more = len(session.waiters) - len(named)
    return "; ".join([*named, f"{more} more"] if more else named)


# -- what holds back ------------------------------------------------------------------------------


def _held_back(
    decisions: Iterable[Decision], limit: Callable[[Decision], str | None]
) -> Iterator[Decision]:
    for decision in decisions:
        held_by = limit(decision) if decision.verdict is Verdict.CONDEMN else None
        if held_by:
            reason = f"{decision.reason}; spared: {held_by}"
            yield replace(decision, verdict=Verdict.SPARE, reason=reason)
        else:
            yield decision


def _frees(decision: Decision) -> bool:
    """Whether a slot becomes free, as far as it is up to us."""
    return (
        decision.verdict is Verdict.CONDEMN
        and decision.session.signalable
        and decision.rule is not None
        and decision.rule.action is Action.TERMINATE
    )


def _let_go(
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
        limit = _limit(limits, most | {name: number})
        going = [d for d in condemned if limit(d) is None]
        return sum(d.rule is not None and d.rule.name in counted and _frees(d) for d in going)

    for rule in rules:
        if rule.until is not None:
            counted.add(rule.name)
            numbers = range(sum(d.rule is rule for d in condemned) + 1)
            # One victim more never frees fewer: it takes one other's place at the most.
            by_number = partial(freed, name=rule.name)
            least = bisect_left(numbers, rule.until.excess(slots), key=by_number)
            most[rule.name] = least if least in numbers else sys.maxsize
    return tuple(_held_back(judged, _limit(limits, most)))


def _limit(limits: Limits | None, most: Mapping[str, int]) -> Callable[[Decision], str | None]:
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


def _pressure(judgement: Judgement) -> Iterator[str]:
    slots = judgement.slots
    freed = sum(_frees(d) for d in judgement.decisions if d.rule and d.rule.until is None)
    for rule in judgement.rules:
        mine = [d for d in judgement.decisions if d.rule is rule]
        needed = None
        if rule.until is not None:
            needed = rule.until.excess(slots) - freed
            freed += sum(map(_frees, mine))
        if rule.when is not None or rule.until is not None:
            when = f" (when {rule.when})" if rule.when is not None else ""
            yield f"rule {rule.name} in force at {_used(slots)}{when}: {_stopped(rule, needed, mine)}"


def _stopped(rule: Rule, needed: int | None, mine: Sequence[Decision]) -> str:
    condemned = sum(d.verdict is Verdict.CONDEMN for d in mine)
    if needed is not None and needed <= 0:
        return f"until {rule.until} it takes none"
    if needed is not None and sum(map(_frees, mine)) >= needed:
        return f"stopped after {condemned}, enough until {rule.until}"
    held = len(mine) - condemned
    why = f"{held} held back" if held else "no more match"
    takes = f"; until {rule.until} it takes {needed}" if needed is not None else ""
    return f"{condemned} condemned, {why}{takes}"


def _breaker(judgement: Judgement, max_share: Decimal, min_sessions: int) -> str | None:
    condemned, used = len(judgement.having(Verdict.CONDEMN)), judgement.slots.used
    if used < min_sessions or 100 * condemned <= max_share * used:
        return None
    return (
        f"the policy condemns {condemned} of {used} client sessions, "
        f"more than limits.max_share of {max_share:g}%"
    )


def _used(slots: Slots) -> str:
    return f"slots {slots.used}/{slots.usable}"
