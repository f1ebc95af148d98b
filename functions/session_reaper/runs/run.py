"""Runs one operation on all targets in parallel; an error of one target does not affect the others."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from session_reaper.observability import OutcomeLog
from session_reaper.policy.model import Policy
from session_reaper.report.model import TargetReport, TargetStatus, record_unfinished
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.merge import SecretResult, merge_results
from session_reaper.runs.operations import Operation, create_report, run_on_target
from session_reaper.runs.parallel import Chain, Job, JobResult, Progress, run_chains
from session_reaper.runs.pausing import split_paused
from session_reaper.runs.run_time import RunTime
from session_reaper.runs.target_session import TargetJob
from session_reaper.runs.visits import Visits
from session_reaper.targets.servers import sort_by_trust
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
    logs = {target.key: OutcomeLog() for target in targets}
    visits = Visits(targets)

    def make_job(target: Target) -> Job[TargetReport]:
        def run_job(progress: Progress[TargetReport]) -> TargetReport:
            log = logs[target.key]
            job = TargetJob(
                target=target, policy=policy, progress=progress, outcomes=log, deadline=deadline
            )
            return run_on_target(operation, discovery, job, visits)

        return Job(name=target.name, initial=create_report(target), run=run_job)

    orders = [sort_by_trust(group) for group in visits.groups]
    chains = [
        Chain(jobs=[*map(make_job, order)], may_split=partial(visits.has_any_of, order))
        for order in orders
    ]
    results = {
        target.key: result
        for order, chain in zip(orders, run_chains(chains, deadline), strict=True)
        for target, result in zip(order, chain, strict=True)
    }
    completed = [
        SecretResult(
            target=target,
            report=logs[target.key].complete(_report_of(results[target.key]), run_time.outcomes),
            has_ended=results[target.key].is_complete,
        )
        for target in targets
    ]
    reports = (*unreadable, *_report_paused(paused), *merge_results(completed, visits))
    return reports, [*logs.values()]


def _report_of(result: JobResult[TargetReport]) -> TargetReport:
    return result.latest if result.is_complete else record_unfinished(result.latest, result.bug)


def _report_paused(targets: Sequence[Target]) -> list[TargetReport]:
    """Report each server that was not woken once, whatever number of secrets lead to it."""
    skipped = [
        SecretResult(
            target=target,
            report=replace(create_report(target), status=TargetStatus.PAUSED),
            has_ended=True,
        )
        for target in targets
    ]
    return merge_results(skipped, Visits(targets))
