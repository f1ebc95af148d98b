"""The decision on each session."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from session_reaper.policy.model import Rule
from session_reaper.sessions.session import Session, Slots


class Verdict(Enum):
    """What a run should do with a session."""

    LEAVE = auto()
    CONDEMN = auto()
    SPARE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the policy says about one session, and why."""

    session: Session
    verdict: Verdict
    rule: Rule | None
    reasons: tuple[str, ...]
    held_by: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def pid(self) -> int:
        """Return the pid of the session."""
        return self.session.identity.pid

    @property
    def reason(self) -> str:
        """Render why the rule matched, what held the session back, and what the run found."""
        held_by = () if self.held_by is None else (self.held_by,)
        return "; ".join([", ".join(self.reasons), *held_by, *self.notes])

    def with_note(self, note: str) -> "Decision":
        """Add what the run found out after the decision was made."""
        return replace(self, notes=(*self.notes, note))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The decisions on the sessions of one target, in the order in which they are signalled."""

    decisions: tuple[Decision, ...]
    slots: Slots
    rules_in_force: tuple[Rule, ...]
    breaker: str | None = None

    def having(self, verdict: Verdict) -> tuple[Decision, ...]:
        """Return the decisions with this verdict, in order."""
        return tuple(d for d in self.decisions if d.verdict is verdict)

    def hold_back(self, limit: Callable[[Decision], str | None]) -> "Decisions":
        """Spare each condemned session for which `limit` returns a reason."""
        return replace(self, decisions=tuple(hold_back(self.decisions, limit)))


def hold_back(
    decisions: Iterable[Decision], limit: Callable[[Decision], str | None]
) -> Iterator[Decision]:
    """Spare each condemned session for which `limit` returns a reason."""
    for decision in decisions:
        held_by = limit(decision) if decision.verdict is Verdict.CONDEMN else None
        if held_by:
            yield replace(decision, verdict=Verdict.SPARE, held_by=held_by)
        else:
            yield decision
