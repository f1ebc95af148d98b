"""Root blockers that a rule would end, and that the run cannot end."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from session_reaper.decision.model import Decision, Decisions
from session_reaper.policy.model import Match, Rule
from session_reaper.sessions.lock_chains import Waiter

PREPARED_TRANSACTION: Final = "prepared transaction"


class UnreachableBlocker(NamedTuple):
    """A blocker out of reach: what puts it there, and the sessions that wait, longest wait first.

    `decision`: on a protected session; None for a prepared transaction, which has no session.
    """

    rule: Rule
    by: str
    decision: Decision | None
    waiters: Sequence[Waiter]


def find_unreachable_blockers(
    decisions: Decisions, prepared_waiters: Sequence[Waiter]
) -> Iterator[UnreachableBlocker]:
    """Find the blockers that a rule on blockers would have condemned.

    `prepared_waiters`: the sessions that wait for prepared transactions.
    """
    for decision in decisions.protected:
        rule, protection = decision.blockers_rule, decision.protection
        if rule is not None and protection is not None:
            yield UnreachableBlocker(rule, protection.by, decision, decision.session.waiters)
    for rule in decisions.rules_in_force:
        if rule.may_condemn and _blocks_long_enough(rule.match, prepared_waiters):
            yield UnreachableBlocker(rule, PREPARED_TRANSACTION, None, prepared_waiters)
            return


def _blocks_long_enough(match: Match, waiters: Sequence[Waiter]) -> bool:
    number = match.blocks or 1
    return (
        match.is_on_blockers
        and len(waiters) >= number
        and waiters[number - 1].seconds >= (match.blocks_for or 0)
    )
