"""Decides what happens to each session: a pure function.

The first rule in force that matches a session, other than an observe-only rule, condemns or keeps
it. Then `until`, the breaker and the limits hold back some of the condemned sessions.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from session_reaper.decision.limits import apply_limits, check_breaker
from session_reaper.decision.matching import match_sessions
from session_reaper.decision.model import Decisions
from session_reaper.decision.parallel_dumps import find_parallel_dumps
from session_reaper.policy.enums import Mode, Order
from session_reaper.policy.model import Policy, Rule
from session_reaper.sessions.redaction import redact_for_matching
from session_reaper.sessions.session import Session, Slots


def decide(  # noqa: PLR0913 -- everything that a decision depends on
    sessions: Iterable[Session],
    slots: Slots,
    policy: Policy,
    *,
    freed: int = 0,
    among: Iterable[Session] | None = None,
    redact_query: Callable[[str], str] = redact_for_matching,
    check_time: Callable[[], None] = lambda: None,
) -> Decisions:
    """Decide on every session by the rules, then by the limits.

    `freed` is the number of slots that this run has freed; `when` still counts them as used.
    `among` are all sessions of the snapshot, if `sessions` are only some of them. `redact_query` is
    `str` for a recorded snapshot, whose queries are already redacted. `check_time` is called after
    each session, and may raise an exception to stop.
    """
    in_order = sorted(sessions, key=_ORDERS[policy.limits.order])
    dumping = find_parallel_dumps(in_order if among is None else among)
    used_before = replace(slots, used=slots.used + freed) if freed else slots
    rules = tuple(rule for rule in policy.rules if _is_in_force(rule, used_before))
    matched = []
    for decision in match_sessions(
        in_order, used_before, policy, rules, redact_query=redact_query, dumping=dumping
    ):
        matched.append(decision)
        check_time()
    decisions = Decisions(decisions=tuple(matched), slots=slots, rules_in_force=rules)
    if policy.limits.has_breaker:
        needed = apply_limits(decisions, None)
        breaker = check_breaker(needed, policy.limits)
        if breaker:
            return needed.hold_back(lambda _: breaker)._replace(breaker=breaker)
    return apply_limits(decisions, policy.limits)


def _is_in_force(rule: Rule, slots: Slots) -> bool:
    return (
        rule.mode is not Mode.OFF
        and (rule.when is None or rule.when.is_reached(slots))
        and (rule.until is None or rule.until.excess(slots) > 0)
    )


def _rank_by_harm(session: Session) -> tuple[int, int, int]:
    return (-len(session.waiters), -session.pinned, -(session.locks or 0))


_ORDERS: dict[Order, Callable[[Session], tuple[float, ...]]] = {
    Order.LONGEST: lambda s: (-s.idle_seconds, s.identity.pid),
    Order.MOST_HARMFUL: lambda s: (*_rank_by_harm(s), -s.idle_seconds, s.identity.pid),
    Order.NEWEST: lambda s: (s.idle_seconds, s.identity.pid),
}
