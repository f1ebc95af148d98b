"""Runs one operation on all targets in parallel; an error of one target does not affect the others."""

from collections.abc import Sequence
from dataclasses import replace

from session_reaper.deadline import Deadline
from session_reaper.observability import OutcomeLog
from session_reaper.policy.model import Policy
from session_reaper.report.model import TargetReport, TargetStatus, record_unfinished
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.operations import Operation, create_report, run_on_target
from session_reaper.runs.parallel import Job, JobResult, run_jobs
from session_reaper.runs.pausing import split_paused
from session_reaper.runs.run_time import RunTime
from session_reaper.runs.target_session import TargetJob
from session_reaper.targets.target import Target


def run(  # noqa: PLR0913 -- everything that the run takes
    operation: Operation,
    discovery: TargetDiscovery,
    names: Sequence[str],
    run_time: RunTime,
    policy: Policy,
    *,
    shortest_clock: float | None = None,
) -> tuple[tuple[TargetReport, ...], Sequence[OutcomeLog]]:
    """Run an operation on the targets with these names, or on all of them if there are no names.

    `policy` says what a person who helps a full server by hand should spare. With `shortest_clock`,
    in seconds, the run does not wake clusters without a session of that age.

    Returns the reports, and the logs whose remaining outcomes `log_remaining` writes. Raises
    ConfigurationError.
    """
    deadline = run_time.targets
    found = discovery.find(names, deadline)
    unreadable = [each for each in found if isinstance(each, TargetReport)]
    targets = [each for each in found if isinstance(each, Target)]
    paused: tuple[Target, ...] = ()
    if shortest_clock is not None:
        check = split_paused(targets, discovery, shortest_clock, deadline)
        targets, paused = [*check.awake], check.paused
    logs = [OutcomeLog() for _ in targets]
    jobs = [
        _make_job(operation, discovery, target, log, deadline, policy)
        for target, log in zip(targets, logs, strict=True)
    ]
    results = run_jobs(jobs, deadline)
    reports = [
        log.complete(_report_of(result), run_time.outcomes)
        for log, result in zip(logs, results, strict=True)
    ]
    skipped = [replace(create_report(each), status=TargetStatus.PAUSED) for each in paused]
    return (*unreadable, *skipped, *reports), logs


def _make_job(  # noqa: PLR0913, PLR0917 -- everything that the work on one target takes
    operation: Operation,
    discovery: TargetDiscovery,
    target: Target,
    log: OutcomeLog,
    deadline: Deadline,
    policy: Policy,
) -> Job[TargetReport]:
    return Job(
        name=target.name,
        initial=create_report(target),
        run=lambda progress: run_on_target(
            operation,
            discovery,
            TargetJob(
                target=target, policy=policy, progress=progress, outcomes=log, deadline=deadline
            ),
        ),
    )


def _report_of(result: JobResult[TargetReport]) -> TargetReport:
    return result.latest if result.is_complete else record_unfinished(result.latest, result.bug)
