"""Groups of sessions that a rule would have condemned, but for a protection."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from session_reaper.decision.model import Decision
from session_reaper.policy.protections import Protection
from session_reaper.sessions.lock_chains import Waiter


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectedGroup:
    """Protected sessions of one rule, protection, role and application.

    `waiters`: the sessions that wait for the one of them that most wait for.
    """

    rule: str
    protection: Protection
    role: str | None
    application: str
    count: int
    oldest_seconds: float
    waiters: Sequence[Waiter]


def group_protected(decisions: Iterable[Decision]) -> Sequence[ProtectedGroup]:
    """Group protected sessions, the largest group first."""
    members: dict[tuple[str, str, str | None, str], list[Decision]] = defaultdict(list)
    for decision in decisions:
        if decision.protected_from is not None and decision.protection is not None:
            session = decision.session
            names = (decision.protected_from.name, decision.protection.by)
            members[*names, session.role, session.application].append(decision)
    groups = [
        ProtectedGroup(
            rule=rule,
            protection=protection,
            role=role,
            application=application,
            count=len(found),
            oldest_seconds=max(each.session.idle_seconds for each in found),
            waiters=max((each.session.waiters for each in found), key=len),
        )
        for (rule, _, role, application), found in members.items()
        if (protection := found[0].protection) is not None
    ]
    return sorted(groups, key=lambda group: -group.count)
