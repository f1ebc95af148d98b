"""Matches sessions against protections and rules."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import NamedTuple

from session_reaper.decision.model import Decision, Verdict
from session_reaper.policy.builtin import BUILTIN_PROTECTIONS
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Action, HeldResource
from session_reaper.policy.model import Match, Protect, Rule
from session_reaper.policy.patterns import is_within, matches_any, matches_query
from session_reaper.sessions.redaction import redact, strip_for_matching
from session_reaper.sessions.session import Names, Session, Slots, State

# -- one session ----------------------------------------------------------------------------------


def match_sessions(
    sessions: Iterable[Session],
    slots: Slots,
    rules: Sequence[Rule],
    protect: Protect,
    redact_query: Callable[[str], str],
) -> Iterator[Decision]:
    """Decide on each session by itself: leave it, or condemn it by the first rule that matches."""
    tests = [_compile_rule(rule) for rule in rules]

    @cache  # sessions share their names, and what follows from them
    def selected(state: State, names: Names) -> str | tuple[_CompiledRule, ...]:
        """What protects them, or the rules whose conditions on them hold."""
        return _find_protection_by_name(names, protect) or tuple(
            test for test in tests if _matches_names(test.rule.match, state, names)
        )

    @cache  # for this call only: nothing keeps other people's queries
    def query_text(query: str) -> str:
        return strip_for_matching(redact_query(query))

    for session in sessions:
        found = _find_protection(session, protect) or selected(session.state, session.names)
        if isinstance(found, str):
            yield _leave(session, f"protected: {found}")
        else:
            yield _apply_rules(session, slots, found, query_text)


def _leave(session: Session, reason: str) -> Decision:
    return Decision(session=session, verdict=Verdict.LEAVE, rule=None, reason=reason)


def _apply_rules(
    session: Session,
    slots: Slots,
    tests: Iterable["_CompiledRule"],
    query_text: Callable[[str], str],
) -> Decision:
    for test in tests:
        for of, least in test.numbers:
            number = of(session)
            if number is None or number < least:
                break
        else:
            if _matches_rest(test.rule.match, session, query_text):
                return Decision(
                    session=session,
                    verdict=Verdict.CONDEMN,
                    rule=test.rule,
                    reason=", ".join(_describe_match(test, session, slots)),
                )
    return _leave(session, "no rule matches")


def _find_protection(session: Session, protect: Protect) -> str | None:
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


def _find_protection_by_name(names: Names, protect: Protect) -> str | None:
    if "\ufffd" in names.role + names.database:
        return "a name in an encoding that is not ours, which no pattern can be held against"
    covered = BUILTIN_PROTECTIONS.covers(names)
    return f"{covered} (built in)" if covered else protect.covers(names)


def _matches_names(match: Match, state: State, names: Names) -> bool:
    """Whether the conditions hold that sessions of these names share; one not given always does."""
    return (
        state in match.state
        and (not match.role or matches_any(match.role, names.role))
        and (not match.database or matches_any(match.database, names.database))
        and (not match.application or matches_any(match.application, names.application))
    )


def _seconds_waited(number: int, session: Session) -> float | None:
    """For how long so many, or more, have waited on it."""
    return session.waiters[number - 1].seconds if len(session.waiters) >= number else None


class _NumericCondition(NamedTuple):
    """A condition that holds from a number up: the session's own, and how a person says it."""

    of: Callable[[Session], float | None]
    sentence: str
    shown: Callable[[float], str] = format_duration


def _numeric_conditions(match: Match) -> dict[str, _NumericCondition]:
    return {
        "idle_for": _NumericCondition(attrgetter("idle_seconds"), "{state} for {}"),
        "transaction_for": _NumericCondition(
            attrgetter("transaction_seconds"), "transaction open for {}"
        ),
        "connected_for": _NumericCondition(attrgetter("connected_seconds"), "connected for {}"),
        "query_for": _NumericCondition(attrgetter("query_seconds"), "query running for {}"),
        "blocks": _NumericCondition(lambda s: len(s.waiters), "{} waiting on it", str),
        "blocks_for": _NumericCondition(
            partial(_seconds_waited, match.blocks or 1), "waited for {}"
        ),
        "pins_vacuum_by": _NumericCondition(
            attrgetter("pinned"), "holds vacuum back by {} transactions", "{:,}".format
        ),
    }


class _CompiledRule(NamedTuple):
    """A rule, and the numbers that its match asks for, made ready for thousands of sessions."""

    rule: Rule
    numbers: tuple[tuple[Callable[[Session], float | None], float], ...]
    measures: tuple[tuple[str, _NumericCondition, float], ...]


def _compile_rule(rule: Rule) -> _CompiledRule:
    found = [
        (name, m, getattr(rule.match, name)) for name, m in _numeric_conditions(rule.match).items()
    ]
    measures = tuple((name, m, least) for name, m, least in found if least is not None)
    return _CompiledRule(rule, tuple((m.of, least) for _, m, least in measures), measures)


def _matches_rest(match: Match, session: Session, query_text: Callable[[str], str]) -> bool:
    """Whether the conditions hold that are neither on names nor on numbers."""
    # The query comes last: to redact one takes longer than everything else together.
    return (
        (not match.client or is_within(match.client, session.client))
        and (
            match.waiting_for_client is None
            or match.waiting_for_client == _is_waiting_for_client(session)
        )
        and (not match.holds or not _held_resources(session).isdisjoint(match.holds))
        and (not match.query or matches_query(match.query, query_text(session.query)))
    )


_COPY = re.compile(r"\bcopy\b", re.IGNORECASE)


def _is_waiting_for_client(session: Session) -> bool:
    # A COPY waits for its client's rows, and is well. Servers from 14 on tell which session runs
    # one; before that its text does, without what it says in literals and comments.
    if not session.waiting_for_client:
        return False
    text = redact(session.query, len(session.query))
    # Where a literal ends may not be known: then what follows is not there.
    return not _COPY.search(session.query if text.endswith("…") else text)


def _held_resources(session: Session) -> set[HeldResource]:
    held = {
        HeldResource.XID: session.xid_age is not None,
        HeldResource.XMIN: session.xmin_age is not None,
        HeldResource.LOCKS: bool(session.locks),
    }
    return {holding for holding, holds in held.items() if holds}


def _describe_match(test: _CompiledRule, session: Session, slots: Slots) -> Iterator[str]:
    """Every condition that is not on names, with what the session has of it."""
    match = test.rule.match
    if test.rule.when is not None:
        yield f"{slots} (when {test.rule.when})"
    for name, measure, least in test.measures:
        number = measure.shown(measure.of(session) or 0)
        phrase = measure.sentence.format(number, state=session.state)
        yield f"{phrase} ({name}: {measure.shown(least)})"
    if match.waiting_for_client:
        yield "waits for its client (waiting_for_client: true)"
    if match.holds:
        held = ", ".join(holding for holding in match.holds if holding in _held_resources(session))
        yield f"holds {held} (holds: {', '.join(match.holds)})"
    if session.waiters:
        yield f"waiting: {_describe_waiters(session)}"
    if test.rule.action is Action.CANCEL:
        yield "to be cancelled"


_MOST_NAMED = 3  # waiters


def _describe_waiters(session: Session) -> str:
    named = [
        f"{w.application or 'pid ' + str(w.pid)} as {w.role} for {format_duration(w.seconds)}"
        for w in session.waiters[:_MOST_NAMED]
    ]
    more = len(session.waiters) - len(named)
    return "; ".join([*named, f"{more} more"] if more else named)
