"""Matches sessions against protections and rules."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

from session_reaper.decision.model import Decision, Verdict
from session_reaper.decision.wait_guard import LOCK
from session_reaper.policy.builtin import (
    find_protection,
    find_protection_by_name,
    find_protection_by_role,
)
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Action, HeldResource
from session_reaper.policy.model import CLOCKS, Match, Policy, Rule
from session_reaper.policy.patterns import Globs, is_within, matches_any, matches_query
from session_reaper.policy.protections import ProtectedBy, Protection
from session_reaper.sessions.redaction import may_contain, strip_for_matching
from session_reaper.sessions.session import Names, Session, Slots, State

PARALLEL_DUMP: Final = Protection(
    kind=ProtectedBy.BUILT_IN, detail="a parallel dump (built in)", tool="pg_dump"
)

# -- matching -------------------------------------------------------------------------------------


def match_sessions(  # noqa: PLR0913 -- everything that a match depends on
    sessions: Iterable[Session],
    slots: Slots,
    policy: Policy,
    rules: Iterable[Rule],
    *,
    redact_query: Callable[[str], str],
    dumping: Container[int],
) -> Iterator[Decision]:
    """Decide on each session: the first rule that matches and is not observe-only decides.

    `rules` are those of the policy that are in force. `dumping` are the pids of parallel dumps.
    """
    groups: dict[object, _Group] = {}
    find_by_client = cache(policy.protect.find_by_client)

    @cache  # only during this call, so that no query text is kept
    def query_text(query: str) -> str:
        return strip_for_matching(redact_query(query))

    for session in sessions:
        key = (
            *(session.identity.state, session.role, session.database, session.application),
            *(session.superuser, session.replication, session.own_role),
        )
        group = groups.get(key)
        if group is None:
            group = groups[key] = _check_group(session, policy, rules)
        protection = (
            group.first_protection
            or find_by_client(session.client)
            or group.protection_by_name
            # Before the protections that a literal role lifts.
            or (PARALLEL_DUMP if session.identity.pid in dumping else None)
            or group.protection_by_role
        )
        yield _decide_session(session, slots, protection, group, query_text)


class _Group(NamedTuple):
    """The results that many sessions share: protections, and the rules that may match.

    `lifting`: the names of the rules that match in spite of a protection that can be lifted.
    """

    first_protection: Protection | None
    protection_by_name: Protection | None
    protection_by_role: Protection | None
    rules: Sequence[Rule]
    lifting: Container[str]


def _check_group(session: Session, policy: Policy, rules: Iterable[Rule]) -> _Group:
    """Find what depends only on the state, the names and the attributes of the role."""
    state, names = session.state, session.names
    matching = [rule for rule in rules if _matches_names(rule.match, state, names)]
    return _Group(
        find_protection(session) or policy.protect.find_by_dropped_role(session.role),
        find_protection_by_name(names) or policy.protect.find(names),
        find_protection_by_role(session),
        matching,
        {rule.name for rule in matching if policy.lifts(rule, names.role)},
    )


def _decide_session(
    session: Session,
    slots: Slots,
    protection: Protection | None,
    group: _Group,
    query_text: Callable[[str], str],
) -> Decision:
    """Decide by the rules of the group; without lifting its protection, a rule does not match."""
    observed: Rule | None = None
    protected_from: Rule | None = None
    blockers_rule: Rule | None = None
    reason = "no rule matches"
    for index, rule in enumerate(group.rules):
        if not _matches_session(rule.match, session, query_text):
            continue
        if session.waits_for_lock and not rule.matches_lock_waits:
            reason = f"waits for a lock, and rule {rule.name} has no wait_event_type"
        elif protection and not (protection.can_be_lifted and rule.name in group.lifting):
            if rule.action is Action.KEEP:
                break
            if rule.may_condemn:
                protected_from = protected_from or rule
                if rule.match.is_on_blockers:
                    blockers_rule = blockers_rule or rule
        elif rule.is_observe_only:
            observed = observed or rule
        else:
            return _apply_rule(rule, session, slots, group.rules[:index], query_text)
    if observed is not None:
        reasons = (*_describe_match(observed, session, slots), "only observed (mode: observe)")
    else:
        reasons = (f"protected: {protection.detail}" if protection else reason,)
    return Decision(
        session=session,
        verdict=Verdict.OBSERVE if observed else Verdict.LEAVE,
        rule=observed,
        reasons=reasons,
        protection=protection,
        protected_from=protected_from,
        blockers_rule=blockers_rule,
    )


def _matches_session(match: Match, session: Session, query_text: Callable[[str], str]) -> bool:
    """Return whether the conditions hold that the names did not decide."""
    return (
        _reaches_thresholds(match, session)
        and _matches_wait(match, session)
        and _matches_rest(match, session, query_text)
    )


def _reaches_thresholds(match: Match, session: Session) -> bool:
    for key, least in match.thresholds.items():
        value = _NUMERIC_CONDITIONS[key].get_value(session, match)
        if value is None or value < least:
            return False
    return True


def _apply_rule(
    rule: Rule,
    session: Session,
    slots: Slots,
    earlier: Iterable[Rule],
    query_text: Callable[[str], str],
) -> Decision:
    reasons = tuple(_describe_match(rule, session, slots))
    if rule.action is Action.KEEP:
        reasons = (f"kept by rule {rule.name}", *reasons)
        return Decision(session=session, verdict=Verdict.KEEP, rule=rule, reasons=reasons)
    keeps = [each.match for each in earlier if each.action is Action.KEEP]
    return Decision(
        session=session,
        verdict=Verdict.CONDEMN,
        rule=rule,
        reasons=reasons,
        keeping_waits=tuple(m for m in keeps if _misses_only_wait(m, session, query_text)),
    )


def _misses_only_wait(match: Match, session: Session, query_text: Callable[[str], str]) -> bool:
    """Return whether conditions that the session does not meet would hold with another wait."""
    return (
        match.has_wait_condition
        and _reaches_thresholds(match, session)
        and _matches_rest(match, session, query_text)
    )


def _matches_names(match: Match, state: State, names: Names) -> bool:
    """Return whether the conditions on the state and the names hold."""
    return (
        state in match.state
        and (not match.role or (names.role is not None and matches_any(match.role, names.role)))
        and (not match.database or matches_any(match.database, names.database))
        and (not match.application or matches_any(match.application, names.application))
    )


def _get_seconds_waited(session: Session, match: Match) -> float | None:
    """Return for how long at least `blocks` sessions have waited for this one."""
    number = match.blocks or 1
    if len(session.waiters) < number:
        return None
    return session.seconds_waited(session.waiters[number - 1])


class _NumericCondition(NamedTuple):
    """A condition that holds from a threshold on."""

    get_value: Callable[[Session, Match], float | None]
    phrase: str
    format: Callable[[float], str] = format_duration


_NUMERIC_CONDITIONS: Final = {
    "idle_for": _NumericCondition(lambda s, _: s.idle_seconds, "{state} for {}"),
    "transaction_for": _NumericCondition(
        lambda s, _: s.transaction_seconds, "transaction open for {}"
    ),
    "connected_for": _NumericCondition(lambda s, _: s.connected_seconds, "connected for {}"),
    "query_for": _NumericCondition(lambda s, _: s.query_seconds, "query running for {}"),
    "blocks": _NumericCondition(lambda s, _: len(s.waiters), "{} waiting on it", str),
    "blocks_for": _NumericCondition(_get_seconds_waited, "waited for {}"),
    "pins_vacuum_by": _NumericCondition(
        lambda s, _: s.pinned, "holds vacuum back by {} transactions", "{:,}".format
    ),
}


def _matches_wait(match: Match, session: Session) -> bool:
    """Return whether the conditions hold on what the session waits for."""
    return (
        (not match.wait_event_type or _matches_wait_type(match.wait_event_type, session))
        and (not match.wait_event or _matches_optional(match.wait_event, session.wait_event))
        and (
            match.waiting_for_client is None
            or match.waiting_for_client == _is_waiting_for_client(session)
        )
    )


def _matches_rest(match: Match, session: Session, query_text: Callable[[str], str]) -> bool:
    """Return whether the conditions hold that concern neither names, numbers nor the wait."""
    # The query comes last because redacting it takes longer than all other conditions together.
    return (
        (not match.client or is_within(match.client, session.client))
        and (not match.holds or not _find_held_resources(session).isdisjoint(match.holds))
        and (not match.query or matches_query(match.query, query_text(session.query)))
    )


def _matches_optional(globs: Globs, value: str | None) -> bool:
    return value is not None and matches_any(globs, value)


def _matches_wait_type(globs: Globs, session: Session) -> bool:
    """Return whether the session waits for such an event; for a lock, its workers count."""
    return _matches_optional(globs, session.wait_event_type) or (
        session.waits_for_lock and matches_any(globs, LOCK)
    )


_COPY = re.compile(r"\bcopy\b", re.IGNORECASE)


def _is_waiting_for_client(session: Session) -> bool:
    """Return whether an active session waits for its client, other than for the rows of a COPY.

    Before PostgreSQL 14 only the query text, without its literals and comments, shows a COPY.
    """
    return session.waiting_for_client and not may_contain(session.query, _COPY)


def _find_held_resources(session: Session) -> set[HeldResource]:
    is_held = {
        HeldResource.XID: session.xid_age is not None,
        HeldResource.XMIN: session.xmin_age is not None,
        HeldResource.LOCKS: bool(session.locks),
    }
    return {resource for resource, held in is_held.items() if held}


def _describe_match(rule: Rule, session: Session, slots: Slots) -> Iterator[str]:
    """Describe every condition except those on names, each with the value of the session."""
    match = rule.match
    if rule.when is not None:
        yield f"{slots} (when {rule.when})"
    for name, least in match.thresholds.items():
        condition = _NUMERIC_CONDITIONS[name]
        value = condition.format(condition.get_value(session, match) or 0)
        phrase = condition.phrase.format(value, state=session.state)
        yield f"{phrase} ({name}: {condition.format(least)})"
    if match.wait_event_type or match.wait_event:
        yield f"waits for {_describe_wait(session)}"
    if match.waiting_for_client:
        yield "waits for its client (waiting_for_client: true)"
    if match.holds:
        held = ", ".join(each for each in match.holds if each in _find_held_resources(session))
        yield f"holds {held} (holds: {', '.join(match.holds)})"
    if session.waiters:
        yield f"waiting: {_describe_waiters(session)}"
    if rule.action is Action.CANCEL:
        yield "to be cancelled"


def _describe_wait(session: Session) -> str:
    own = f"{session.wait_event_type}: {session.wait_event}"
    if session.waits_for_lock and session.wait_event_type != LOCK:
        return f"{own}, and a parallel worker for a lock"
    return own


_MAX_WAITERS_NAMED = 3


def _describe_waiters(session: Session) -> str:
    named = [
        f"{w.application or 'pid ' + str(w.pid)} as {w.role} for {format_duration(session.seconds_waited(w))}"
        for w in session.waiters[:_MAX_WAITERS_NAMED]
    ]
    more = len(session.waiters) - len(named)
    return "; ".join([*named, f"{more} more"] if more else named)


# -- misses ---------------------------------------------------------------------------------------


class Miss(NamedTuple):
    """A condition that does not hold; of a clock, the share of its time that has passed.

    `progress`: None if the session itself must change.
    """

    text: str
    progress: float | None = None


def list_misses(rule: Rule, session: Session, query_text: Callable[[str], str]) -> list[Miss]:
    """List the conditions of a rule that a session does not meet; none if it matches.

    Leaves out the query of a session that misses more, because redacting it takes long.
    """
    match = rule.match
    misses = [*_list_name_misses(match, session), *_list_other_misses(match, session)]
    if session.waits_for_lock and not rule.matches_lock_waits:
        misses.append(Miss("waits for a lock, and the rule has no wait_event_type"))
    if not misses and match.query and not matches_query(match.query, query_text(session.query)):
        misses.append(Miss("its query does not match"))
    for name, least in match.thresholds.items():
        condition = _NUMERIC_CONDITIONS[name]
        value = condition.get_value(session, match)
        if value is None:
            if not misses:  # usually the others say why
                misses.append(Miss(f"{_ABSENT[name]} ({name}: {condition.format(least)})"))
        elif value < least:
            phrase = condition.phrase.format(condition.format(value), state=session.state)
            progress = value / least if name in CLOCKS else None
            misses.append(Miss(f"{phrase} of {condition.format(least)}", progress))
    return misses


_ABSENT: Final = {
    "transaction_for": "no transaction is open",
    "query_for": "no query is running",
    "blocks_for": "too few sessions wait for it",
}


def _list_name_misses(match: Match, session: Session) -> Iterator[Miss]:
    if session.state not in match.state:
        yield Miss(f"is {session.state}, not {' or '.join(match.state)}")
    for name, globs in (
        ("role", match.role),
        ("database", match.database),
        ("application", match.application),
    ):
        value = getattr(session, name)
        if globs and (value is None or not matches_any(globs, value)):
            yield Miss(f"{name} {'(dropped)' if value is None else repr(value)} does not match")


def _list_other_misses(match: Match, session: Session) -> Iterator[Miss]:
    if match.client and not is_within(match.client, session.client):
        yield Miss(f"client {session.client or '(local)'} does not match")
    if match.waiting_for_client not in (None, _is_waiting_for_client(session)):
        waits = "does not wait" if match.waiting_for_client else "waits"
        yield Miss(f"{waits} for its client")
    if match.wait_event_type and not _matches_wait_type(match.wait_event_type, session):
        yield Miss(f"wait_event_type {session.wait_event_type} does not match")
    if match.wait_event and not _matches_optional(match.wait_event, session.wait_event):
        yield Miss(f"wait_event {session.wait_event} does not match")
    if match.holds and _find_held_resources(session).isdisjoint(match.holds):
        yield Miss(f"holds no {' or '.join(match.holds)}")
