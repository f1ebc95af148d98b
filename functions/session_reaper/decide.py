"""What the policy says of each session: a pure function."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from session_reaper.durations import format_duration
from session_reaper.policy import (
    BUILTIN,
    Match,
    Policy,
    finds_any,
    is_within,
    matches_any,
)
from session_reaper.sessions import Session, Slots


class Verdict(Enum):
    """What is to be done with a session."""

    LEAVE = auto()  # protected, or no rule matches
    CONDEMN = auto()
    SPARE = auto()  # condemned, but a limit or the breaker holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the policy says of one session, and why."""

    session: Session
    verdict: Verdict
    rule: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The decisions on one target's sessions; `breaker` says why it tripped, if it did."""

    decisions: tuple[Decision, ...]
    breaker: str | None = None

    def having(self, verdict: Verdict) -> tuple[Decision, ...]:
        """The decisions of one verdict, in order."""
        return tuple(d for d in self.decisions if d.verdict is verdict)


def decide(sessions: Iterable[Session], slots: Slots, policy: Policy) -> Judgement:
    """Judge every session, longest idle first, within the policy's limits."""
    longest_first = sorted(sessions, key=_longest_idle_first)
    decisions = [_judge(session, policy) for session in longest_first]
    condemned = sum(d.verdict is Verdict.CONDEMN for d in decisions)
    breaker = _breaker(condemned, slots.used, policy.limits.max_share)
    allowed = 0 if breaker else policy.limits.max_terminations
    reason = breaker or f"limits.max_terminations of {allowed} was reached"
    return Judgement(decisions=tuple(_spare(decisions, allowed, reason)), breaker=breaker)


def _longest_idle_first(session: Session) -> tuple[float, int]:
    return (-session.idle_seconds, session.identity.pid)


def _judge(session: Session, policy: Policy) -> Decision:
    protection = _protection(session, policy)
    if protection:
        return _decision(session, Verdict.LEAVE, None, f"protected: {protection}")
    for rule in policy.rules:
        if _selects(rule.match, session):
            reason = _exceeded(rule.match, session)
            if reason:
                return _decision(session, Verdict.CONDEMN, rule.name, reason)
    return _decision(session, Verdict.LEAVE, None, "no rule matches")


def _decision(session: Session, verdict: Verdict, rule: str | None, reason: str) -> Decision:
    return Decision(session=session, verdict=verdict, rule=rule, reason=reason)


def _protection(session: Session, policy: Policy) -> str | None:
    if session.own_role:
        return "our own role"
    if session.superuser:
        return "a superuser"
    if session.replication:
        return "a replication role"
    if "\ufffd" in session.role + session.database:
        return "a name in an encoding that is not ours, which no pattern can be held against"
    covered = BUILTIN.covers(session)
    if covered:
        return f"{covered} (built in)"
    return policy.protect.covers(session)


def _selects(match: Match, session: Session) -> bool:
    """Whether every condition but the clocks holds; a condition that is not given always does."""
    return (
        session.state in match.state
        and (not match.role or matches_any(match.role, session.role))
        and (not match.database or matches_any(match.database, session.database))
        and (not match.application or matches_any(match.application, session.application))
        and (not match.client or is_within(match.client, session.client))
        and (not match.query or finds_any(match.query, session.query))
    )


# The clocks: the condition's name, the session's age by it, how a person says it.
_CLOCKS: tuple[tuple[str, Callable[[Session], float | None], str], ...] = (
    ("idle_for", lambda s: s.idle_seconds, "{state} for {age}"),
    ("transaction_for", lambda s: s.transaction_seconds, "transaction open for {age}"),
    ("connected_for", lambda s: s.connected_seconds, "connected for {age}"),
    ("query_for", lambda s: s.query_seconds, "query running for {age}"),
)


def _exceeded(match: Match, session: Session) -> str | None:
    """Every clock with its age, if all that are given have run out; else None."""
    said = []
    for name, age_of, sentence in _CLOCKS:
        threshold: float | None = getattr(match, name)
        if threshold is None:
            continue
        age = age_of(session)
        if age is None or age < threshold:
            return None
        phrase = sentence.format(state=session.state, age=format_duration(age))
        said.append(f"{phrase} ({name}: {format_duration(threshold)})")
    return ", ".join(said) or None


def _breaker(condemned: int, used: int, max_share: float | None) -> str | None:
    if max_share is None or 100 * condemned <= max_share * used:
        return None
    return (
        f"the policy condemns {condemned} of {used} client sessions, "
        f"more than limits.max_share of {max_share:g}%"
    )


def _spare(decisions: Iterable[Decision], allowed: int, reason: str) -> Iterable[Decision]:
    """Of the condemned, all past the first `allowed` are spared."""
    for decision in decisions:
        if decision.verdict is not Verdict.CONDEMN:
            yield decision
        elif allowed > 0:
            allowed -= 1
            yield decision
        else:
            spared = f"{decision.reason}; spared: {reason}"
            yield _decision(decision.session, Verdict.SPARE, decision.rule, spared)
