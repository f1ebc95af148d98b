"""Signals sessions of one target, and verifies each outcome.

Every signal passes the guard. Each signalled session is verified until it is gone or its time is
over. A query that outlives its cancel may be followed by a terminate. Only the server of the
snapshot can prove that a session is gone.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision
from session_reaper.errors import BlindError, DeadlineError, ServerChangedError, TargetError
from session_reaper.observability import log_decision
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Action
from session_reaper.postgres.signals import Signal
from session_reaper.report.model import Outcome
from session_reaper.runs.target_results import TargetResults
from session_reaper.runs.target_session import TargetSession
from session_reaper.sessions.session import Identity, WaitGuard
from session_reaper.sessions.snapshot import ServerIdentity, Snapshot

VERIFY_SECONDS: Final = 2.0  # after a signal
_UNPROVEN: Final = "not signalled: the session may have changed"
_HIDDEN: Final = "not signalled: the session is hidden from our role now"
_LOCK_WAIT: Final = "left alone: it waits for a lock now"
_OTHER_WAIT: Final = "left alone: what it waits for has changed"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.004, 0.25  # seconds between two verifications
# Of the time left; the rest is for verification.
_SENDING_SHARE, _ANSWERS_SHARE = 0.5, 0.75


class _PendingSignal(NamedTuple):
    """A session that was signalled and may still exist, or still run its query.

    It is verified until `expiry`, and then terminated if `escalates`.
    """

    decision: Decision
    action: Action
    expiry: Deadline
    escalates: bool = False


class Signaller:
    """Sends signals to one server and follows each of them to its outcome."""

    def __init__(self, session: TargetSession, snapshot: Snapshot, results: TargetResults) -> None:
        """`snapshot` is the one that the decisions were made on."""
        self.server = session.server
        self._session = session
        self._snapshot = snapshot
        self._results = results
        self._deadline = session.job.deadline
        self._pending: list[_PendingSignal] = []
        # Not signalled, because the guard did not find them unchanged. They have escaped if the
        # server is still the one of the snapshot.
        self._missing: list[Decision] = []
        self._pause = _SHORTEST_PAUSE
        self._has_reconnected = False
        self._is_verified = True  # whether a verification has followed the last answer

    @property
    def is_pending(self) -> bool:
        """Return whether there are sessions to verify."""
        return bool(self._pending or self._missing)

    def take_next_pause(self) -> float:
        """Return the seconds to wait before the next verification, and double them for later."""
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return pause

    # -- signal ------------------------------------------------------------------------------------

    def signal(self, decisions: Sequence[Decision], action: Action) -> None:
        """Signal sessions in a pipeline, and spare those for which no time is left."""
        results = self._results
        sending = self._deadline.capped_at_share(_SENDING_SHARE)
        answers = self._deadline.capped_at_share(_ANSWERS_SHARE)
        used_before = results.used_after
        self._expect_signals(decisions)
        unanswered: deque[Decision] = deque()
        unsent = deque(decisions)

        def send() -> Iterator[Identity]:
            while unsent and sending.remaining() and not self._session.stop.is_set():
                decision = unsent.popleft()
                log_decision(results.report, decision)
                unanswered.append(decision)
                yield decision.session.identity

        guards = {decision.pid: decision.wait_guard for decision in decisions}
        lost: TargetError | None = None
        try:
            for answer in self.server.signal(send(), action, answers, guards):
                self._take_answer(unanswered.popleft(), action, answer)
        except DeadlineError as error:  # nothing was sent
            results.fail(error)
        except TargetError as error:
            lost = error
            results.fail(error)
            for decision in unanswered:
                self._await(decision, action)
        if unsent:
            results.fail(DeadlineError())
            # A session that was cancelled before stays lingering.
            results.spare(each for each in unsent if action is choose_action(each))
        if not self.is_pending:
            results.used_after = used_before
        if lost is not None:
            results.record()  # to reconnect may take until the run ends
            self.reconnect(lost)

    def _expect_signals(self, decisions: Iterable[Decision]) -> None:
        """Record that any of these sessions may be signalled from now on."""
        for decision in decisions:
            self._results.set(decision, Outcome.LINGERING)
        self._results.used_after = None
        self._results.record()

    def _take_answer(
        self, decision: Decision, action: Action, answer: Signal | TargetError
    ) -> None:
        is_escalation = action is not choose_action(decision)
        match answer:
            case TargetError():  # the signal may have been sent before the statement failed
                self._results.fail(answer)
                self._await(decision, action)
            case Signal.SENT:
                self._await(decision, action)
            case Signal.WAITING:
                self._leave_waiting(decision, is_cancelled=is_escalation)
            case _ if is_escalation:
                # The session changed, or we may not terminate it; check whether its query ended.
                self._await(decision, Action.CANCEL, may_escalate=False)
            case Signal.ESCAPED:
                self._results.set(decision, Outcome.SPARED, _UNPROVEN)
                self._missing.append(decision)
                self._expect_verification()
            case Signal.DENIED:
                self._results.settle(decision, Outcome.DENIED)
            case Signal.HIDDEN:
                self._results.settle(decision, Outcome.DENIED, _HIDDEN)
        if answer is Signal.HIDDEN:
            self._fail_as_blind()

    def _leave_waiting(self, decision: Decision, *, is_cancelled: bool) -> None:
        """Leave a session alone whose wait is not what its rule relies on.

        The guard has found the session itself unchanged, so the server is the one of the snapshot.
        """
        note = _LOCK_WAIT if decision.wait_guard == WaitGuard() else _OTHER_WAIT
        if not is_cancelled:
            self._results.settle(decision, Outcome.ESCAPED, note)
            return
        # Its query may still end, because of the cancel.
        self._await(decision, Action.CANCEL, may_escalate=False)
        self._results.set(decision, Outcome.ESCAPED, note)

    def _await(self, decision: Decision, action: Action, *, may_escalate: bool = True) -> None:
        """Add a signalled session to those that the next verifications look for."""
        pause = decision.rule.escalate_after if decision.rule else None
        escalates = may_escalate and action is Action.CANCEL and pause is not None
        seconds = pause if escalates and pause is not None else VERIFY_SECONDS
        in_time = seconds < self._deadline.remaining() or not escalates
        too_late = f"the run has no time for escalate_after: {format_duration(seconds)}"
        self._results.set(decision, Outcome.LINGERING, "" if in_time else too_late)
        expiry = self._deadline.capped_at(seconds)
        escalates = escalates and in_time
        self._pending.append(
            _PendingSignal(decision=decision, action=action, expiry=expiry, escalates=escalates)
        )
        self._expect_verification()

    def _expect_verification(self) -> None:
        self._is_verified, self._pause = False, _SHORTEST_PAUSE

    # -- verify and escalate -----------------------------------------------------------------------

    def verify(self) -> None:
        """Look for all sessions that are pending, and settle those whose outcome is known."""
        signalled = [(each.decision.session.identity, each.action) for each in self._pending]
        try:
            found = self.server.verify(signalled, self._deadline)
        except DeadlineError as error:
            if not self._is_verified:
                self._give_up(error)
            self._forget_pending()
            return
        except TargetError as error:
            self.reconnect(error)
            return
        try:
            self.check_server(found.server, hidden=not found.can_see)
        except ServerChangedError as error:
            self._give_up(error)
            return
        self._is_verified = True
        for decision in self._missing:
            self._results.settle(decision, Outcome.ESCAPED)
        self._missing.clear()
        is_blind = not found.can_see and not self._session.may_be_partial
        self._results.used_after = None if is_blind else found.used
        if is_blind:
            self._fail_as_blind()
        self._sort_pending(found.remaining)

    def _sort_pending(self, remaining: Collection[int]) -> None:
        """Settle the sessions that are gone, and escalate those that outlived their cancel."""
        pending, self._pending = self._pending, []
        outlived = []
        for each in pending:
            if each.decision.pid not in remaining:
                is_terminated = each.action is Action.TERMINATE
                outcome = Outcome.TERMINATED if is_terminated else Outcome.CANCELLED
                self._results.settle(each.decision, outcome)
            elif each.expiry.remaining() > 0:
                self._pending.append(each)
            elif each.escalates:
                pause = (each.decision.rule and each.decision.rule.escalate_after) or 0.0
                note = f"still running {format_duration(pause)} after its cancel"
                outlived.append(each.decision.with_note(note))
        if outlived:
            self.signal(outlived, Action.TERMINATE)

    def check_server(self, found: ServerIdentity, *, hidden: bool = False) -> None:
        """Raise ServerChangedError unless it is the server of the snapshot."""
        known = self._snapshot.server
        if known is None or not known.is_same(found, hidden=hidden):
            restarted = found.is_later_than(self._snapshot.taken_at)
            raise ServerChangedError(restarted=restarted)

    # -- errors ------------------------------------------------------------------------------------

    def reconnect(self, error: TargetError) -> None:
        """Replace the lost connection once, if there are sessions to look for."""
        self._results.fail(error)
        if not self.is_pending:
            return
        try:
            self.replace_connection(error)
        except TargetError as refusal:
            self._give_up(refusal)

    def replace_connection(self, error: TargetError) -> None:
        """Connect again, once. Raises TargetError: `error` the second time, else the refusal."""
        if self._has_reconnected:
            raise error
        self._has_reconnected = True
        self.server.close()  # its slot may be the only one that our role may use
        self.server = self._session.connect()

    def _give_up(self, error: TargetError) -> None:
        """Leave the outcomes as they are known: nothing more can be verified."""
        self._results.fail(error)
        for each in self._pending:
            self._results.set(each.decision, Outcome.LINGERING, f"not seen gone: {error.message}")
        for decision in self._missing:
            self._results.set(decision, Outcome.SPARED, f"{_UNPROVEN}: {error.message}")
        self._forget_pending()
        self._results.used_after = None

    def _forget_pending(self) -> None:
        self._pending.clear()
        self._missing.clear()

    def _fail_as_blind(self) -> None:
        self._results.fail(BlindError(self.server.role, self._snapshot.membership))


def choose_action(decision: Decision) -> Action:
    """Return what the session's rule does first."""
    return decision.rule.action if decision.rule else Action.TERMINATE
