"""Terminates the condemned sessions of one target.

If a rule has `confirm_after`, a second snapshot must condemn its sessions again before they are
signalled. Sessions of other rules do not wait for that. `runs/signalling.py` does the rest.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision, Verdict
from session_reaper.errors import BlindError, ConnectionLostError, DeadlineError, TargetError
from session_reaper.observability import log_decision
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Action, Mode
from session_reaper.postgres.server import Server
from session_reaper.report.model import Outcome, TargetReport
from session_reaper.runs.deciding import decide_in_time
from session_reaper.runs.signalling import Signaller, choose_action
from session_reaper.runs.target_results import TOO_LATE, TargetResults
from session_reaper.runs.target_session import TargetSession
from session_reaper.sessions.snapshot import Snapshot, SnapshotScope


def take_visible_snapshot(session: TargetSession, server: Server, scope: SnapshotScope) -> Snapshot:
    """Take a snapshot of a server. Raises TargetError; BlindError if sessions are hidden."""
    snapshot = server.take_snapshot(scope, session.job.deadline)
    if not snapshot.can_see and not session.may_be_partial:
        raise BlindError(snapshot.role, snapshot.membership)
    return snapshot


class _Batch(NamedTuple):
    """Decisions that are due at the same time, `pause` seconds after the snapshot."""

    pause: float
    due: Deadline
    decisions: Sequence[Decision]


class Termination:
    """Takes the condemned sessions of one target from decision to outcome."""

    def __init__(self, session: TargetSession, report: TargetReport, snapshot: Snapshot) -> None:
        """`report` contains the decisions that were made on the snapshot."""
        self._session = session
        self._deadline = session.job.deadline
        self._stop = session.stop
        self._results = TargetResults(session, report)
        self._signaller = Signaller(session, snapshot, self._results)
        self._batches: list[_Batch] = []

    def run(self, condemned: Sequence[Decision]) -> TargetReport:
        """Terminate the sessions, as far as the time allows, and return the report."""
        self._batches = list(self._group(condemned))
        if condemned:
            self._results.record()
        while self._batches or self._signaller.is_pending:
            if self._batches and self._batches[0].due.remaining() == 0:
                self._process(self._batches.pop(0))
            elif self._signaller.is_pending:
                self._signaller.verify()
            if self._batches and self._stop.is_set():
                self._results.fail(DeadlineError())
            if self._results.error is not None:
                for batch in self._batches:
                    self._results.spare(batch.decisions)
                self._batches.clear()
            self._results.record()
            self._wait()
        return self._results.complete()

    def _group(self, condemned: Iterable[Decision]) -> Iterator[_Batch]:
        """Group decisions by the pause that their rules ask for, the shortest first."""
        for pause, decisions in groupby(sorted(condemned, key=_get_pause), key=_get_pause):
            batch = _Batch(
                pause=pause, due=self._deadline.capped_at(pause), decisions=tuple(decisions)
            )
            in_time = pause == 0 or pause < self._deadline.remaining()
            no_time = f"the run has no time for confirm_after: {format_duration(pause)}"
            for decision in batch.decisions:
                self._results.set(decision, Outcome.SPARED, TOO_LATE if in_time else no_time)
            if in_time:
                yield batch

    def _wait(self) -> None:
        """Wait until a batch is due or a signal may have taken effect."""
        seconds = [self._deadline.remaining(), *(batch.due.remaining() for batch in self._batches)]
        if self._signaller.is_pending:
            seconds.append(self._signaller.take_next_pause())
        if self._signaller.is_pending or self._batches:
            if self._stop.is_set():
                time.sleep(min(seconds))
            else:
                self._stop.wait(min(seconds))

    def _process(self, batch: _Batch) -> None:
        decisions = self._confirm(batch) if batch.pause else batch.decisions
        observed: list[Decision] = []
        by_action: dict[Action, list[Decision]] = {}
        for decision in decisions:
            if self._session.job.mode is Mode.OBSERVE or decision.verdict is Verdict.OBSERVE:
                observed.append(decision)
                self._results.set(decision, _choose_observed_outcome(decision))
            else:
                by_action.setdefault(choose_action(decision), []).append(decision)
        self._results.record()
        for action, group in by_action.items():
            if self._results.error is None:
                self._signaller.signal(group, action)
            else:
                self._results.spare(group)
        # Logging may take until the run ends, so every outcome is recorded before, and signals
        # sent.
        for decision in observed:
            log_decision(self._results.report, decision)
            self._results.settle(decision, _choose_observed_outcome(decision))

    def _confirm(self, batch: _Batch) -> Sequence[Decision]:
        """Return what a second snapshot condemns again: the same transaction, by the same rule."""
        try:
            snapshot = self._take_second_snapshot()
        except TargetError as error:
            self._signaller.reconnect(error)
            self._results.spare(batch.decisions)
            return ()
        try:
            second = self._decide_again(batch, snapshot)
        except TargetError as error:
            self._results.fail(error)
            self._results.spare(batch.decisions)
            return ()
        later = f"left alone: {format_duration(batch.pause)} later"
        confirmed = []
        for before in batch.decisions:
            now = second.get(before.pid)
            if now is None:
                note = f"{later} it is another transaction, or no longer matches"
                self._results.settle(before, Outcome.ESCAPED, note)
            elif now.rule is not before.rule:
                note = f"rule {now.rule.name} matches" if now.rule else now.reason
                self._results.settle(before, Outcome.ESCAPED, f"{later} {note}")
            elif now.verdict is Verdict.SPARE:
                self._results.settle(now, Outcome.SPARED)
            else:
                confirmed.append(now)
        return confirmed

    def _take_second_snapshot(self) -> Snapshot:
        """Take a snapshot of the same server; on a second connection if the first is lost.

        Raises TargetError.
        """
        try:
            snapshot = self._take_snapshot()
        except ConnectionLostError as lost:
            self._signaller.replace_connection(lost)
            snapshot = self._take_snapshot()
            if snapshot.server is None:  # nothing proves that it is the same server
                raise lost from None
        if snapshot.server is not None:
            self._signaller.check_server(snapshot.server)
        return snapshot

    def _take_snapshot(self) -> Snapshot:
        scope = self._session.job.policy.scope()
        return take_visible_snapshot(self._session, self._signaller.server, scope)

    def _decide_again(self, batch: _Batch, snapshot: Snapshot) -> dict[int, Decision]:
        """Decide on the sessions of a batch that are still in the same transaction, by pid."""
        before = {decision.pid: decision.session.identity for decision in batch.decisions}
        same = [
            session
            for session in snapshot.sessions
            if (identity := before.get(session.identity.pid)) is not None
            and session.identity.continues(identity)
        ]
        # The breaker and `when` were decided on the first snapshot; what the run itself has
        # terminated since then must not change that.
        policy = self._session.job.policy
        policy = replace(policy, limits=policy.limits.without_breaker())
        freed = self._results.count(Outcome.TERMINATED)
        decided = decide_in_time(snapshot, policy, self._deadline, only=same, freed=freed)
        return {decision.pid: decision for decision in decided.decisions}


def _choose_observed_outcome(decision: Decision) -> Outcome:
    """Return the outcome of a session that is not signalled, because of the mode of run or rule."""
    is_denied = decision.verdict is not Verdict.OBSERVE and not decision.session.signalable
    return Outcome.DENIED if is_denied else Outcome.WOULD_TERMINATE


def _get_pause(decision: Decision) -> float:
    return (decision.rule and decision.rule.confirm_after) or 0.0
