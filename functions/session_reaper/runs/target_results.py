"""The results of the condemned sessions of one target, as far as they are known."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from session_reaper.decision.model import Decision
from session_reaper.errors import DeadlineError, TargetError
from session_reaper.report.model import Outcome, SessionResult, TargetReport, record_error
from session_reaper.runs.target_session import TargetSession

TOO_LATE: Final = "the run ended before its turn"


class TargetResults:
    """Keeps the outcome of each session, and the report that holds if the run ends now.

    Only the first error of a target is reported. `used_after` is the number of used slots, None if
    it is not known.
    """

    def __init__(self, session: TargetSession, report: TargetReport) -> None:
        """`report` contains the decisions."""
        self.error: TargetError | None = None
        self.used_after = report.used_after
        self.report = report
        self._session = session
        self._outcomes = session.job.outcomes
        self._results = {result.decision.pid: result for result in report.results}

    def set(self, decision: Decision, outcome: Outcome, note: str = "") -> None:
        """Set the outcome of a session; it may still change."""
        if note:
            decision = decision.with_note(note)
        self._results[decision.pid] = SessionResult(decision=decision, outcome=outcome)

    def settle(self, decision: Decision, outcome: Outcome, note: str = "") -> None:
        """Set and log the final outcome of a session."""
        self.set(decision, outcome, note)
        self._outcomes.write(self.report, self._results[decision.pid])

    def spare(self, decisions: Iterable[Decision]) -> None:
        """Set the outcome of sessions that were not signalled because of the error."""
        if self.error is None or isinstance(self.error, DeadlineError):
            note = TOO_LATE
        else:
            note = f"not signalled: {self.error.message}"
        for decision in decisions:
            self.set(decision, Outcome.SPARED, note)

    def fail(self, error: TargetError) -> None:
        """Set the error of the target, unless it already has one."""
        self.error = self.error or error

    def count(self, outcome: Outcome) -> int:
        """Count the sessions with this outcome."""
        return sum(result.outcome is outcome for result in self._results.values())

    def record(self) -> None:
        """Record the report that holds if the run ends now."""
        self._session.record(self._build_report())

    def complete(self) -> TargetReport:
        """Log every outcome that is not logged yet, and return the report."""
        report = self._build_report()
        for result in report.results:
            self._outcomes.write(report, result)
        return report

    def _build_report(self) -> TargetReport:
        results = tuple(self._results.values())
        report = replace(self.report, results=results, used_after=self.used_after)
        return report if self.error is None else record_error(report, self.error)
