"""The decision on each session."""

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from session_reaper.decision.wait_guard import guard_wait
from session_reaper.policy.model import Match, Rule
from session_reaper.policy.protections import Protection
from session_reaper.sessions.session import Session, Slots, WaitGuard


class Verdict(Enum):
    """The treatment that a session gets from a run."""

    LEAVE = auto()  # no rule matches
    KEEP = auto()  # a `keep` rule decided
    OBSERVE = auto()  # only observe-only rules match: report it and do nothing
    CONDEMN = auto()
    SPARE = auto()  # condemned, but `until`, a limit or the breaker held it back

    @property
    def is_reported(self) -> bool:
        """Return whether the session gets an outcome."""
        return self in (Verdict.OBSERVE, Verdict.CONDEMN, Verdict.SPARE)


class Decision(NamedTuple):
    """The decision of a policy on one session, with its reasons.

    `rule` is None if no rule matches; for an observed session it is the first observe-only rule
    that does. `held_by` names what spared it: `until`, a limit or the breaker. `protection` is that
    of a session that no rule condemned, and `protected_from` the first rule that would have
    condemned it without the protection; `blockers_rule` is the first rule on blockers that would
    have. `keeping_waits` are the conditions of the earlier `keep` rules that only the session's
    wait does not meet. `notes` are what the run found out later.
    """

    session: Session
    verdict: Verdict
    rule: Rule | None
    reasons: tuple[str, ...]
    held_by: str | None = None
    protection: Protection | None = None
    protected_from: Rule | None = None
    blockers_rule: Rule | None = None
    keeping_waits: tuple[Match, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pid(self) -> int:
        """Return the pid of the session."""
        return self.session.identity.pid

    @property
    def reason(self) -> str:
        """Return the reasons, `held_by` and the notes as one text."""
        held_by = () if self.held_by is None else (self.held_by,)
        return "; ".join([", ".join(self.reasons), *held_by, *self.notes])

    @property
    def wait_guard(self) -> WaitGuard:
        """Return what the guard must check of the session's wait."""
        if self.rule is None:
            return WaitGuard()
        return guard_wait(self.session, self.rule.match, self.keeping_waits)

    def with_note(self, note: str) -> "Decision":
        """Return a copy with one more note."""
        return self._replace(notes=(*self.notes, note))


class Decisions(NamedTuple):
    """The decisions on the sessions of one target, in the order in which they are signalled."""

    decisions: tuple[Decision, ...]
    slots: Slots
    rules_in_force: tuple[Rule, ...]
    breaker: str | None = None

    def having(self, verdict: Verdict) -> tuple[Decision, ...]:
        """Return the decisions with this verdict, in order."""
        return tuple([d for d in self.decisions if d.verdict is verdict])

    @property
    def protected(self) -> tuple[Decision, ...]:
        """The decisions on the sessions that a rule would have condemned but for a protection."""
        return tuple(d for d in self.decisions if d.protected_from is not None)

    def hold_back(self, limit: Callable[[Decision], str | None]) -> "Decisions":
        """Spare each condemned session for which `limit`, called in order, returns a reason."""
        if not self.having(Verdict.CONDEMN):
            return self
        return self._replace(decisions=tuple(_spare_if_limited(d, limit) for d in self.decisions))


def _spare_if_limited(decision: Decision, limit: Callable[[Decision], str | None]) -> Decision:
    held_by = limit(decision) if decision.verdict is Verdict.CONDEMN else None
    return decision._replace(verdict=Verdict.SPARE, held_by=held_by) if held_by else decision
