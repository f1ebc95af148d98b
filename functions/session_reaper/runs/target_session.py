"""What one job on one target has in hand."""

from collections.abc import Callable
from dataclasses import dataclass

from session_reaper.deadline import Deadline
from session_reaper.observability import OutcomeLog
from session_reaper.postgres.server import Server
from session_reaper.report.model import TargetReport
from session_reaper.runs.parallel import Progress
from session_reaper.targets.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetJob:
    """A target, and where its job tells what it has done."""

    target: Target
    progress: Progress[TargetReport]
    outcomes: OutcomeLog
    deadline: Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSession:
    """An open connection to one target."""

    job: TargetJob
    server: Server
    connect: Callable[[], Server]  # makes another connection, should this one be lost
    by_fallback: Callable[[], Server]  # makes one by the fallback secret
    report: TargetReport  # so far

    @property
    def target(self) -> Target:
        """The target."""
        return self.job.target

    @property
    def deadline(self) -> Deadline:
        """The end of all that is done on the target."""
        return self.job.deadline

    def record(self, report: TargetReport) -> None:
        """Record what holds even if the time is over now."""
        self.job.progress.update(report)
