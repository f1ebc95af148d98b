"""The decision on each session."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from session_reaper.policy.model import Rule
from session_reaper.sessions.session import Session, Slots


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
class Decisions:
    """The decisions on one target's sessions, those who go first in front."""

    decisions: tuple[Decision, ...]
    slots: Slots
    rules: tuple[Rule, ...]  # in force
    breaker: str | None = None  # why it tripped

    def having(self, verdict: Verdict) -> tuple[Decision, ...]:
        """The decisions of one verdict, in order."""
        return tuple(d for d in self.decisions if d.verdict is verdict)

    def hold_back(self, limit: Callable[[Decision], str | None]) -> "Decisions":
        """Spare each condemned session for which `limit` gives a reason."""
        return replace(self, decisions=tuple(hold_back(self.decisions, limit)))


def hold_back(
    decisions: Iterable[Decision], limit: Callable[[Decision], str | None]
) -> Iterator[Decision]:
    """Spare each condemned session for which `limit` gives a reason."""
    for decision in decisions:
        held_by = limit(decision) if decision.verdict is Verdict.CONDEMN else None
        if held_by:
            reason = f"{decision.reason}; spared: {held_by}"
            yield replace(decision, verdict=Verdict.SPARE, reason=reason)
        else:
            yield decision
