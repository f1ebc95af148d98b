"""Runs one operation on all targets at the same time; no target's trouble affects another."""

from collections.abc import Callable, Iterator, Sequence

from session_reaper.deadline import Deadline
from session_reaper.observability import OutcomeLog
from session_reaper.report.model import TargetReport, record_unfinished
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.operations import create_report
from session_reaper.runs.parallel import Job, run_jobs
from session_reaper.runs.target_session import TargetJob
from session_reaper.targets.target import Target


def run(
    directory: TargetDiscovery,
    names: Sequence[str],
    do: Callable[[TargetJob], TargetReport],
    deadline: Deadline,
) -> tuple[TargetReport, ...]:
    """Run a job on the targets of these names, or on all; every outcome is logged on return.

    Raises ConfigurationError.
    """
    found = directory.find(names, deadline)
    unread = [each for each in found if isinstance(each, TargetReport)]
    targets = [each for each in found if isinstance(each, Target)]
    return (*unread, *_run_on(targets, do, deadline))


def _run_on(
    targets: Sequence[Target], do: Callable[[TargetJob], TargetReport], deadline: Deadline
) -> Iterator[TargetReport]:
    logs = [OutcomeLog() for _ in targets]

    def job(target: Target, log: OutcomeLog) -> Job[TargetReport]:
        return Job(
            name=target.name,
            initial=create_report(target),
            run=lambda progress: do(
                TargetJob(target=target, progress=progress, outcomes=log, deadline=deadline)
            ),
        )

    jobs = [job(target, log) for target, log in zip(targets, logs, strict=True)]
    results = run_jobs(jobs, deadline)
    for log, result in zip(logs, results, strict=True):
        report = (
            result.latest if result.is_complete else record_unfinished(result.latest, result.bug)
        )
        yield log.complete(report)
