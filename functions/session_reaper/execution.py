"""What is done to one target's condemned, each thing in its time: confirm, signal, verify, escalate.

A session whose rule wants it is looked at again before it is signalled. Whatever is signalled is
looked for until it is gone or nobody waits any longer, and a query that outlives its cancel may be
followed by a terminate. Each signal goes through the same guard.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.decide import Decision, Verdict, decide
from session_reaper.durations import format_duration
from session_reaper.errors import BlindError, DeadlineError, TargetError
from session_reaper.observability import log_decision
from session_reaper.policy import Action, Mode, Policy
from session_reaper.postgres import Server, Signal
from session_reaper.report import Fate, Outcome, TargetReport, failed
from session_reaper.sessions import Look, Scope

VERIFY_SECONDS: Final = 2.0  # after a signal
ENDED_BEFORE: Final = "spared: the run ended before its turn"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.004, 0.25  # seconds between two looks of verify


def look_at(server: Server, scope: Scope, deadline: Deadline) -> Look:
    """What is to be known. Raises TargetError; BlindError if it cannot be seen."""
    look = server.look(scope, deadline)
    if not look.can_see:
        raise BlindError(look.role)
    return look


@dataclass(slots=True, kw_only=True)
class _Batch:
    """Decisions that are due at the same time, `pause` seconds after the look."""

    pause: float
    due: Deadline
    decisions: Sequence[Decision]


@dataclass(slots=True, kw_only=True)
class _Signalled:
    """A session that was signalled and may still be there, or still at its query."""

    decision: Decision
    action: Action
    over: Deadline  # nobody waits any longer
    escalates: bool = False  # then it is terminated


class Execution:
    """The condemned of one target on their way from decision to outcome."""

    def __init__(
        self,
        report: TargetReport,
        policy: Policy,
        mode: Mode,
        connect: Callable[[], Server],
        deadline: Deadline,
    ) -> None:
        self._report = report
        self._policy = policy
        self._mode = mode
        self._connect = connect
        self._deadline = deadline
        self._fates = {fate.decision.pid: fate for fate in report.fates}
        self._used_after = report.used_after
        self._batches: list[_Batch] = []
        self._pending: list[_Signalled] = []
        self._pause = _SHORTEST_PAUSE
        self._error: TargetError | None = None
        self._reconnected = False
        self._verified = True  # since the last signal

    def steps(self, server: Server, condemned: Iterable[Decision]) -> Iterator[TargetReport]:
        """Do it all. Each report is true until the next one, even if that never comes."""
        self._server = server
        self._batches = list(self._in_batches(condemned))
        while self._batches or self._pending:
            if self._batches and self._batches[0].due.seconds() == 0:
                yield from self._begin(self._batches.pop(0))
            elif self._pending:
                self._verify()
                yield failed(self._so_far(), DeadlineError())
            if self._error is not None:
                self._batches.clear()
            self._wait()
        yield self._so_far()

    def _so_far(self) -> TargetReport:
        fates = tuple(self._fates.values())
        report = replace(self._report, fates=fates, used_after=self._used_after)
        return report if self._error is None else failed(report, self._error)

    def _meets(self, decision: Decision, outcome: Outcome, why: str = "") -> None:
        """What becomes of a session, as far as is known now."""
        if why:
            decision = replace(decision, reason=f"{decision.reason}; {why}")
        self._fates[decision.pid] = Fate(decision=decision, outcome=outcome)

    def _in_batches(self, condemned: Iterable[Decision]) -> Iterator[_Batch]:
        """By the pause that their rules want, the shortest first."""
        for pause, decisions in groupby(sorted(condemned, key=_pause_of), key=_pause_of):
            batch = _Batch(pause=pause, due=Deadline(pause), decisions=tuple(decisions))
            in_time = pause == 0 or pause < self._deadline.seconds()
            too_late = f"spared: the run has no time for confirm_after: {format_duration(pause)}"
            for decision in batch.decisions:
                self._meets(decision, Outcome.SPARED, ENDED_BEFORE if in_time else too_late)
            if in_time:
                yield batch

    def _wait(self) -> None:
        """Until something is due, or may have happened."""
        seconds = [self._deadline.seconds(), *(batch.due.seconds() for batch in self._batches)]
        if self._pending:
            seconds.append(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._pending or self._batches:
            time.sleep(min(seconds))

    # -- confirm and signal ------------------------------------------------------------------------

    def _begin(self, batch: _Batch) -> Iterator[TargetReport]:
        yield failed(self._so_far(), DeadlineError())
        decisions = self._confirmed(batch) if batch.pause else batch.decisions
        if self._mode is Mode.OBSERVE:
            for decision in decisions:
                log_decision(self._report, decision)
                allowed = decision.session.signalable
                self._meets(decision, Outcome.WOULD_TERMINATE if allowed else Outcome.DENIED)
            return
        for decision in decisions:  # until more is known: signalled perhaps, not seen gone
            self._meets(decision, Outcome.LINGERING)
        yield failed(self._so_far(), DeadlineError())
        # No more than half of the time that is left: the other half is for proving it.
        half = self._deadline.within(self._deadline.seconds() / 2)
        for decision in decisions:
            # Before the signal, and whether or not it comes to it.
            log_decision(self._report, decision)
            if self._error is not None or not self._sends(decision, _action_of(decision), half):
                self._meets(decision, Outcome.SPARED, ENDED_BEFORE)
            yield failed(self._so_far(), DeadlineError())

    def _confirmed(self, batch: _Batch) -> Sequence[Decision]:
        """Of a batch, what a second look condemns again: the same transaction, by the same rule."""
        try:
            look = look_at(self._server, self._policy.scope(), self._deadline)
        except TargetError as error:
            self._lose(error)
            return ()
        then = {decision.pid: decision for decision in batch.decisions}
        same = [
            session
            for session in look.sessions
            if (first := then.get(session.identity.pid)) is not None
            and session.identity.continues(first.session.identity)
        ]
        # The first look has judged the pressure and the share: our own kills since then undo neither.
        limits = replace(self._policy.limits, max_share=None)
        policy = replace(self._policy, limits=limits)
        freed = sum(fate.outcome is Outcome.TERMINATED for fate in self._fates.values())
        now = {d.pid: d for d in decide(same, look.slots, policy, freed=freed).decisions}
        later = f"left alone: {format_duration(batch.pause)} later"
        confirmed = []
        for pid, first in then.items():
            second = now.get(pid)
            if second is None:
                self._meets(
                    first, Outcome.ESCAPED, f"{later} it is another transaction, or matches no more"
                )
            elif second.rule is not first.rule:
                what = f"rule {second.rule.name} matches" if second.rule else second.reason
                self._meets(first, Outcome.ESCAPED, f"{later} {what}")
            elif second.verdict is Verdict.SPARE:
                self._meets(second, Outcome.SPARED)
            else:
                confirmed.append(second)
        return confirmed

    def _sends(self, decision: Decision, action: Action, deadline: Deadline) -> bool:
        """Signal one session; false if there was no time to."""
        try:
            signal = self._server.signal(decision.session.identity, action, deadline)
        except DeadlineError as over:
            self._error = self._error or over
            return False
        except TargetError as lost:  # the answer is lost: as far as we know, it was signalled
            self._await(decision, action)
            self._lose(lost)
            return True
        match signal:
            case Signal.SENT:
                self._await(decision, action)
            case Signal.ESCAPED | Signal.DENIED if action is not _action_of(decision):
                # Not as it was when it was cancelled, or not ours to end: is its query over?
                self._await(decision, Action.CANCEL, escalates=False)
            case Signal.ESCAPED:
                self._meets(decision, Outcome.ESCAPED)
            case Signal.DENIED:
                self._meets(decision, Outcome.DENIED)
        return True

    # -- verify and escalate -----------------------------------------------------------------------

    def _await(self, decision: Decision, action: Action, *, escalates: bool = True) -> None:
        pause = decision.rule.escalate_after if decision.rule else None
        escalates = escalates and action is Action.CANCEL and pause is not None
        seconds = pause if escalates and pause is not None else VERIFY_SECONDS
        in_time = seconds < self._deadline.seconds() or not escalates
        too_late = f"the run has no time for escalate_after: {format_duration(seconds)}"
        self._meets(decision, Outcome.LINGERING, "" if in_time else too_late)
        over = self._deadline.within(seconds)
        pending = _Signalled(decision=decision, action=action, over=over, escalates=escalates)
        self._pending.append(pending)
        self._verified, self._pause = False, _SHORTEST_PAUSE

    def _verify(self) -> None:
        """Look for all that are pending."""
        signalled = [(each.decision.session.identity, each.action) for each in self._pending]
        try:
            remaining, self._used_after = self._server.verify(signalled, self._deadline)
        except DeadlineError as over:
            if not self._verified:
                self._give_up(over)
            self._pending.clear()
            return
        except TargetError as lost:
            self._lose(lost)
            return
        self._verified = True
        if self._used_after is None:
            self._error = self._error or BlindError(self._server.role)
        pending, self._pending = self._pending, []
        for each in pending:
            if each.decision.pid not in remaining:
                gone = each.action is Action.TERMINATE
                self._meets(each.decision, Outcome.TERMINATED if gone else Outcome.CANCELLED)
            elif each.over.seconds() > 0:
                self._pending.append(each)
            elif each.escalates:
                self._escalate(each.decision)

    def _escalate(self, decision: Decision) -> None:
        """Terminate a session whose query outlived its cancel."""
        pause = (decision.rule and decision.rule.escalate_after) or 0.0
        why = f"still at it {format_duration(pause)} after its cancel"
        decision = replace(decision, reason=f"{decision.reason}; {why}")
        self._sends(decision, Action.TERMINATE, self._deadline)

    # -- trouble -----------------------------------------------------------------------------------

    def _lose(self, error: TargetError) -> None:
        """The connection is lost, the signals are not: another connection looks for them, once."""
        self._error = self._error or error
        if not self._pending:
            return
        if self._reconnected:
            self._give_up(error)
            return
        self._reconnected = True
        try:
            self._server = self._connect()
        except TargetError as shut:
            self._give_up(shut)

    def _give_up(self, error: TargetError) -> None:
        """Nobody can say what became of those that are pending: they stay lingering."""
        self._error = self._error or error
        self._pending.clear()
        self._used_after = None


def _pause_of(decision: Decision) -> float:
    return (decision.rule and decision.rule.confirm_after) or 0.0


def _action_of(decision: Decision) -> Action:
    return decision.rule.action if decision.rule else Action.TERMINATE
