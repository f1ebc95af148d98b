"""Terminates the condemned sessions of one target: confirm, signal, verify, escalate.

A session whose rule asks for it is looked at again before it is signalled. Whatever is signalled is
looked for until it is gone or its time is over, and a query that outlives its cancel may be followed
by a terminate. Every signal goes through the same guard, and only the server that the decision was
made on can show that a session is gone.
"""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Decision, Verdict
from session_reaper.errors import (
    BlindError,
    DeadlineError,
    ServerChangedError,
    TargetError,
)
from session_reaper.observability import log_decision
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Action, Mode
from session_reaper.policy.model import Policy
from session_reaper.postgres.server import Server, Signal
from session_reaper.report.model import Outcome, SessionResult, TargetReport, record_error
from session_reaper.runs.target_session import TargetSession
from session_reaper.sessions.session import Identity, WaitGuard
from session_reaper.sessions.snapshot import ServerIdentity, Snapshot, SnapshotScope

VERIFY_SECONDS: Final = 2.0  # after a signal
_ENDED_BEFORE: Final = "the run ended before its turn"
_UNPROVEN: Final = "not signalled: whether the session has changed is not known"
_HIDDEN: Final = "not signalled: the session is hidden from our role now"
_LOCK_WAIT: Final = "left alone: it waits for a lock now"
_OTHER_WAIT: Final = "left alone: what it waits for has changed"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.004, 0.25  # seconds between two looks of verify


def take_visible_snapshot(server: Server, scope: SnapshotScope, deadline: Deadline) -> Snapshot:
    """Take the snapshot of a server. Raises TargetError; BlindError if sessions are hidden."""
    look = server.look(scope, deadline)
    if not look.can_see:
        raise BlindError(look.role, look.membership)
    return look


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Decisions that are due at the same time, `pause` seconds after the snapshot."""

    pause: float
    due: Deadline
    decisions: Sequence[Decision]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PendingSignal:
    """A session that was signalled and may still be there, or still at its query."""

    decision: Decision
    action: Action
    over: Deadline  # afterwards it is not looked for any more
    escalates: bool = False  # then it is terminated


class Termination:
    """The condemned sessions of one target on their way from decision to outcome."""

    def __init__(
        self,
        session: TargetSession,
        report: TargetReport,
        snapshot: Snapshot,
        policy: Policy,
        mode: Mode,
    ) -> None:
        """`report` tells what was decided on the snapshot."""
        self._session = session
        self._report = report
        self._snapshot = snapshot
        self._policy = policy
        self._mode = mode
        self._server = session.server
        self._outcomes = session.job.outcomes
        self._deadline = session.deadline
        self._fates = {fate.decision.pid: fate for fate in report.results}
        self._used_after = report.used_after
        self._batches: list[_Batch] = []
        self._pending: list[_PendingSignal] = []
        # Not found as they were, so not signalled: changed, unless it was another server that said so.
        self._missing: list[Decision] = []
        self._pause = _SHORTEST_PAUSE
        self._error: TargetError | None = None
        self._reconnected = False
        self._verified = True  # since the last answer to a signal

    def run(self, condemned: Iterable[Decision]) -> TargetReport:
        """Terminate them all, or do as much of it as the time allows; return the report."""
        self._batches = list(self._in_batches(condemned))
        self._record()
        while self._batches or self._pending or self._missing:
            if self._batches and self._batches[0].due.remaining() == 0:
                self._begin(self._batches.pop(0))
            elif self._pending or self._missing:
                self._verify()
            if self._error is not None:
                for batch in self._batches:
                    self._spare(batch.decisions)
                self._batches.clear()
            self._record()
            self._wait()
        report = self._report_so_far()
        for fate in report.results:
            self._outcomes.write(report, fate)
        return report

    def _report_so_far(self) -> TargetReport:
        fates = tuple(self._fates.values())
        report = replace(self._report, results=fates, used_after=self._used_after)
        return report if self._error is None else record_error(report, self._error)

    def _record(self) -> None:
        """Record what holds even if the run ends now."""
        self._session.record(self._report_so_far())

    def _set(self, decision: Decision, outcome: Outcome, why: str = "") -> None:
        """Set the outcome of a session, as far as it is known now."""
        if why:
            decision = decision.with_note(why)
        self._fates[decision.pid] = SessionResult(decision=decision, outcome=outcome)

    def _settle(self, decision: Decision, outcome: Outcome, why: str = "") -> None:
        """Set and log the final outcome of a session."""
        self._set(decision, outcome, why)
        self._outcomes.write(self._report, self._fates[decision.pid])

    def _spare(self, decisions: Iterable[Decision]) -> None:
        """Set the outcome of sessions that were not signalled, because of the error so far."""
        for decision in decisions:
            self._set(decision, Outcome.SPARED, _explain_not_signalled(self._error))

    def _in_batches(self, condemned: Iterable[Decision]) -> Iterator[_Batch]:
        """Group decisions by the pause that their rules ask for, the shortest first."""
        for pause, decisions in groupby(sorted(condemned, key=_pause_of), key=_pause_of):
            batch = _Batch(pause=pause, due=Deadline(pause), decisions=tuple(decisions))
            in_time = pause == 0 or pause < self._deadline.remaining()
            too_late = f"the run has no time for confirm_after: {format_duration(pause)}"
            for decision in batch.decisions:
                self._set(decision, Outcome.SPARED, _ENDED_BEFORE if in_time else too_late)
            if in_time:
                yield batch

    def _wait(self) -> None:
        """Wait until something is due, or may have happened."""
        seconds = [self._deadline.remaining(), *(batch.due.remaining() for batch in self._batches)]
        if self._pending or self._missing:
            seconds.append(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._pending or self._missing or self._batches:
            time.sleep(min(seconds))

    # -- confirm and signal ------------------------------------------------------------------------

    def _begin(self, batch: _Batch) -> None:
        decisions = self._confirm(batch) if batch.pause else batch.decisions
        by_action: dict[Action, list[Decision]] = {}
        for decision in decisions:
            if decision.verdict is Verdict.OBSERVE:
                log_decision(self._report, decision)
                self._settle(decision, Outcome.WOULD_TERMINATE)
            elif self._mode is Mode.OBSERVE:
                log_decision(self._report, decision)
                allowed = decision.session.signalable
                self._settle(decision, Outcome.WOULD_TERMINATE if allowed else Outcome.DENIED)
            else:
                by_action.setdefault(_action_of(decision), []).append(decision)
        for action, few in by_action.items():
            if self._error is None:
                self._signal(few, action)
            else:
                self._spare(few)

    def _confirm(self, batch: _Batch) -> Sequence[Decision]:
        """Return what a second snapshot condemns again: the same transaction, by the same rule."""
        try:
            look = take_visible_snapshot(self._server, self._policy.scope(), self._deadline)
            if look.server is not None:
                self._check_server(look.server)
        except TargetError as error:
            self._lose(error)
            self._spare(batch.decisions)
            return ()
        then = {decision.pid: decision for decision in batch.decisions}
        same = [
            session
            for session in look.sessions
            if (first := then.get(session.identity.pid)) is not None
            and session.identity.continues(first.session.identity)
        ]
        # The first snapshot has judged the pressure and the share: our own kills since then undo
        # neither.
        policy = replace(self._policy, limits=self._policy.limits.without_breaker())
        freed = sum(fate.outcome is Outcome.TERMINATED for fate in self._fates.values())
        now = {d.pid: d for d in decide(same, look.slots, policy, freed=freed).decisions}
        later = f"left alone: {format_duration(batch.pause)} later"
        confirmed = []
        for pid, first in then.items():
            second = now.get(pid)
            if second is None:
                self._settle(
                    first, Outcome.ESCAPED, f"{later} it is another transaction, or matches no more"
                )
            elif second.rule is not first.rule:
                what = f"rule {second.rule.name} matches" if second.rule else second.reason
                self._settle(first, Outcome.ESCAPED, f"{later} {what}")
            elif second.verdict is Verdict.SPARE:
                self._settle(second, Outcome.SPARED)
            else:
                confirmed.append(second)
        return confirmed

    def _signal(self, decisions: Sequence[Decision], action: Action) -> None:
        """Signal sessions in a pipeline; those that the time does not allow are spared."""
        # A half of the time that is left is for sending, a quarter for late answers, the rest for
        # proving what became of the sessions.
        left = self._deadline.remaining()
        sending = self._deadline.capped_at(left / 2)
        answers = self._deadline.capped_at(left * 3 / 4)
        used_before = self._used_after
        self._used_after = None
        for decision in decisions:  # until more is known: perhaps signalled, not seen gone
            self._set(decision, Outcome.LINGERING)
        self._record()
        unanswered: deque[Decision] = deque()
        unsent = deque(decisions)

        def send() -> Iterator[Identity]:
            while unsent and sending.remaining():
                decision = unsent.popleft()
                # Logged before the signal, whatever becomes of it.
                log_decision(self._report, decision)
                unanswered.append(decision)
                yield decision.session.identity

        try:
            guards = {decision.pid: decision.wait_guard for decision in decisions}
            for answer in self._server.signal(send(), action, answers, guards):
                self._take_answer(unanswered.popleft(), action, answer)
        except DeadlineError as over:  # nothing was sent
            self._error = self._error or over
        except TargetError as lost:
            # Signalled, as far as we know: looked for by another connection.
            for decision in unanswered:
                self._await(decision, action)
            self._lose(lost)
        if unsent:
            self._error = self._error or DeadlineError()
            # An escalation that was not sent leaves a session that was cancelled, and goes on.
            self._spare(each for each in unsent if action is _action_of(each))
        if not self._pending and not self._missing:  # nothing was sent
            self._used_after = used_before

    def _take_answer(
        self, decision: Decision, action: Action, answer: Signal | TargetError
    ) -> None:
        is_escalation = action is not _action_of(decision)
        match answer:
            case TargetError():  # the signal may have been sent before the statement failed
                self._error = self._error or answer
                self._await(decision, action)
            case Signal.SENT:
                self._await(decision, action)
            case Signal.WAITING:
                is_victim = decision.wait_guard == WaitGuard()
                self._settle(decision, Outcome.ESCAPED, _LOCK_WAIT if is_victim else _OTHER_WAIT)
            case _ if is_escalation:
                # The session changed, or we may not terminate it: look whether its query ended.
                self._await(decision, Action.CANCEL, escalates=False)
            case Signal.ESCAPED:
                self._set(decision, Outcome.SPARED, _UNPROVEN)
                self._missing.append(decision)
                self._verified, self._pause = False, _SHORTEST_PAUSE
            case Signal.DENIED:
                self._settle(decision, Outcome.DENIED)
            case Signal.HIDDEN:
                self._settle(decision, Outcome.DENIED, _HIDDEN)
        if answer is Signal.HIDDEN:
            self._error = self._error or BlindError(self._server.role, self._snapshot.membership)

    # -- verify and escalate -----------------------------------------------------------------------

    def _await(self, decision: Decision, action: Action, *, escalates: bool = True) -> None:
        pause = decision.rule.escalate_after if decision.rule else None
        escalates = escalates and action is Action.CANCEL and pause is not None
        seconds = pause if escalates and pause is not None else VERIFY_SECONDS
        in_time = seconds < self._deadline.remaining() or not escalates
        too_late = f"the run has no time for escalate_after: {format_duration(seconds)}"
        self._set(decision, Outcome.LINGERING, "" if in_time else too_late)
        over = self._deadline.capped_at(seconds)
        pending = _PendingSignal(decision=decision, action=action, over=over, escalates=escalates)
        self._pending.append(pending)
        self._verified, self._pause = False, _SHORTEST_PAUSE

    def _verify(self) -> None:
        """Look for all that are pending."""
        signalled = [(each.decision.session.identity, each.action) for each in self._pending]
        try:
            found = self._server.verify(signalled, self._deadline)
        except DeadlineError as over:
            if not self._verified:
                self._give_up(over)
            self._pending.clear()
            self._missing.clear()
            return
        except TargetError as lost:
            self._lose(lost)
            return
        try:
            self._check_server(found.server, hidden=found.used is None)
        except ServerChangedError as changed:
            self._give_up(changed)
            return
        self._verified = True
        for decision in self._missing:
            self._settle(decision, Outcome.ESCAPED)
        self._missing.clear()
        self._used_after = found.used
        if found.used is None:
            self._error = self._error or BlindError(self._server.role, self._snapshot.membership)
        self._sort_pending(found.remaining)

    def _sort_pending(self, remaining: Collection[int]) -> None:
        """Settle the sessions that are gone, and escalate those that outlived their cancel."""
        pending, self._pending = self._pending, []
        outlived = []
        for each in pending:
            if each.decision.pid not in remaining:
                gone = each.action is Action.TERMINATE
                self._settle(each.decision, Outcome.TERMINATED if gone else Outcome.CANCELLED)
            elif each.over.remaining() > 0:
                self._pending.append(each)
            elif each.escalates:
                outlived.append(each.decision)
        if outlived:
            self._escalate(outlived)

    def _escalate(self, decisions: Iterable[Decision]) -> None:
        """Terminate sessions whose queries outlived their cancel."""
        escalated = []
        for decision in decisions:
            pause = (decision.rule and decision.rule.escalate_after) or 0.0
            why = f"still at it {format_duration(pause)} after its cancel"
            escalated.append(decision.with_note(why))
        self._signal(escalated, Action.TERMINATE)

    def _check_server(self, found: ServerIdentity, *, hidden: bool = False) -> None:
        """Raise ServerChangedError unless it is the server that the decisions were made on."""
        known = self._snapshot.server
        if known is None or not known.is_same(found, hidden=hidden):
            restarted = found.is_later_than(self._snapshot.taken_at)
            raise ServerChangedError(restarted=restarted)

    # -- trouble -----------------------------------------------------------------------------------

    def _lose(self, error: TargetError) -> None:
        """The connection is lost, the signals are not: another connection looks for them, once."""
        self._error = self._error or error
        if not self._pending and not self._missing:
            return
        if self._reconnected:
            self._give_up(error)
            return
        self._reconnected = True
        self._server.close()  # its slot may be the only one that our role may use
        try:
            self._server = self._session.connect()
        except TargetError as shut:
            self._give_up(shut)

    def _give_up(self, error: TargetError) -> None:
        """Leave what is pending as lingering, what is missing as spared: no server can show more."""
        self._error = self._error or error
        for each in self._pending:
            self._set(each.decision, Outcome.LINGERING, f"not seen gone: {error.message}")
        for decision in self._missing:
            self._set(decision, Outcome.SPARED, f"{_UNPROVEN}: {error.message}")
        self._pending.clear()
        self._missing.clear()
        self._used_after = None


def _explain_not_signalled(error: TargetError | None) -> str:
    if error is None or isinstance(error, DeadlineError):
        return _ENDED_BEFORE
    return f"not signalled: {error.message}"


def _pause_of(decision: Decision) -> float:
    return (decision.rule and decision.rule.confirm_after) or 0.0


def _action_of(decision: Decision) -> Action:
    return decision.rule.action if decision.rule else Action.TERMINATE
