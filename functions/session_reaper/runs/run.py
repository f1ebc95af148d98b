"""Runs one operation on all targets in parallel; an error of one does not affect others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from session_reaper.deadline import Deadline
from session_reaper.observability import OutcomeLog, logger
from session_reaper.policy.enums import Mode
from session_reaper.report.model import TargetReport, TargetStatus
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.merge import SecretResult, merge_results
from session_reaper.runs.operations import choose_operation
from session_reaper.runs.parallel import Chain, Job, JobResult, Progress, run_chains
from session_reaper.runs.pausing import split_paused
from session_reaper.runs.plan import RunPlan
from session_reaper.runs.run_time import RunTime
from session_reaper.runs.target_report import create_report, get_report
from session_reaper.runs.target_run import run_on_target
from session_reaper.runs.target_session import TargetJob
from session_reaper.runs.visits import Visits
from session_reaper.targets.servers import sort_by_trust
from session_reaper.targets.target import Target, TargetKey


def run(
    plan: RunPlan, discovery: TargetDiscovery, run_time: RunTime
) -> tuple[tuple[TargetReport, ...], Sequence[OutcomeLog]]:
    """Run the plan's operation on its targets.

    Returns the reports, and the logs whose remaining outcomes `log_remaining` writes. Raises
    ConfigurationError.
    """
    logger.append_keys(mode=str(plan.mode))
    if plan.mode is Mode.OFF:
        return (), ()
    deadline = run_time.targets
    found = discovery.find(plan.request.targets, deadline)
    unreadable = [each for each in found if isinstance(each, TargetReport)]
    awake, paused = split_paused(
        [t for t in found if isinstance(t, Target)], plan, discovery, deadline
    )
    logs = {target.key: OutcomeLog() for target in awake}
    visits = Visits(awake)

    def run_target(target: Target, progress: Progress[TargetReport]) -> TargetReport:
        job = TargetJob(
            target=target,
            policy=plan.policy,
            mode=plan.mode,
            quota=plan.quota,
            progress=progress,
            outcomes=logs[target.key],
            deadline=deadline,
        )
        return run_on_target(choose_operation(plan.request), discovery, job, visits)

    results = _run_by_server(run_target, visits, deadline)
    completed = [
        SecretResult(
            target=target,
            report=logs[target.key].complete(get_report(results[target.key]), run_time.outcomes),
            has_ended=results[target.key].is_complete,
        )
        for target in awake
    ]
    reports = (*unreadable, *_report_paused(paused), *merge_results(completed, visits))
    return reports, [*logs.values()]


def _run_by_server(
    run_target: Callable[[Target, Progress[TargetReport]], TargetReport],
    visits: Visits,
    deadline: Deadline,
) -> Mapping[TargetKey, JobResult[TargetReport]]:
    """Run all groups in parallel; within a group, the most trusted target first."""
    orders = [sort_by_trust(group) for group in visits.groups]
    chains = [
        Chain(
            jobs=[
                Job(name=each.name, initial=create_report(each), run=partial(run_target, each))
                for each in order
            ],
            may_split=partial(visits.has_any_of_group, order[0]),
        )
        for order in orders
    ]
    return {
        target.key: result
        for order, chain in zip(orders, run_chains(chains, deadline), strict=True)
        for target, result in zip(order, chain, strict=True)
    }


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
