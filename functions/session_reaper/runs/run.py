"""Runs one operation on all targets at the same time; no target's trouble affects another."""

from collections.abc import Callable, Sequence

from session_reaper.deadline import Deadline
from session_reaper.observability import OutcomeLog, log_remaining
from session_reaper.report.model import TargetReport, record_unfinished
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.operations import create_report
from session_reaper.runs.parallel import Job, JobResult, run_jobs
from session_reaper.runs.target_session import TargetJob
from session_reaper.targets.target import Target


class OutcomeLogs:
    """The outcome logs of all targets of a run."""

    def __init__(self) -> None:
        self._logs: list[OutcomeLog] = []

    def new(self) -> OutcomeLog:
        """Return the log of another target."""
        log = OutcomeLog()
        self._logs.append(log)
        return log

    def log_remaining(self, deadline: Deadline) -> None:
        """Log what has no line yet: one line each until the deadline, the rest together."""
        log_remaining(self._logs, deadline)


def run(  # noqa: PLR0913 -- where, what, and until when
    directory: TargetDiscovery,
    names: Sequence[str],
    do: Callable[[TargetJob], TargetReport],
    logs: OutcomeLogs,
    *,
    deadline: Deadline,
    logging_deadline: Deadline,
) -> tuple[TargetReport, ...]:
    """Run a job on the targets of these names, or on all, and log outcomes of signalled sessions.

    The jobs end by `deadline`; outcomes that have no line by `logging_deadline` are left to the
    logs' `log_remaining`. Raises ConfigurationError.
    """
    found = directory.find(names, deadline)
    unread = [each for each in found if isinstance(each, TargetReport)]
    targets = [each for each in found if isinstance(each, Target)]
    target_logs = [logs.new() for _ in targets]
    jobs = [
        _job(target, do, log, deadline) for target, log in zip(targets, target_logs, strict=True)
    ]
    results = run_jobs(jobs, deadline)
    reports = [
        log.complete(_report_of(result), logging_deadline)
        for log, result in zip(target_logs, results, strict=True)
    ]
    return (*unread, *reports)


def _job(
    target: Target, do: Callable[[TargetJob], TargetReport], log: OutcomeLog, deadline: Deadline
) -> Job[TargetReport]:
    return Job(
        name=target.name,
        initial=create_report(target),
        run=lambda progress: do(
            TargetJob(target=target, progress=progress, outcomes=log, deadline=deadline)
        ),
    )


def _report_of(result: JobResult[TargetReport]) -> TargetReport:
    return result.latest if result.is_complete else record_unfinished(result.latest, result.bug)
