"""Skips the targets of Aurora Serverless that a scheduled run need not wake."""

from collections.abc import Sequence
from dataclasses import replace
from time import time
from typing import Final, NamedTuple

from session_reaper.aws.cloudwatch import read_idle_moments
from session_reaper.deadline import Deadline
from session_reaper.observability import logger
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.parallel import Job, run_jobs
from session_reaper.runs.plan import RunPlan
from session_reaper.targets.pausing import find_pause_group, may_skip
from session_reaper.targets.providers import find_rds_region
from session_reaper.targets.target import Target

_SECONDS: Final = 6.0  # for RDS and CloudWatch
_SHARE: Final = 0.25  # of the time left, at most
_LONGEST_WINDOW: Final = 3600.0  # seconds; a longer one would only read more datapoints


class _PauseCheck(NamedTuple):
    """The targets to leave asleep.

    `unknown`: those that may or may not be paused; `problem` says why the check cannot tell.
    """

    paused: Sequence[Target] = ()
    unknown: Sequence[Target] = ()
    problem: str = ""


def split_paused(
    targets: Sequence[Target], plan: RunPlan, discovery: TargetDiscovery, deadline: Deadline
) -> tuple[Sequence[Target], Sequence[Target]]:
    """Return the targets to connect to, and those to skip.

    No session of a skipped target can be old enough for a rule. Where that is unknown, the target
    is not skipped, and its `pause_unknown` says why.
    """
    may_skip_any = plan.is_scheduled and plan.settings.skip_paused
    at_rds = [each for each in targets if may_skip_any and find_rds_region(each.host)]
    if not at_rds:
        return targets, ()
    limit = deadline.capped_at_share(_SHARE, _SECONDS)
    window = min(plan.policy.shortest_clock, _LONGEST_WINDOW)
    job = Job(
        name="paused clusters",
        initial=_PauseCheck(unknown=at_rds, problem="the check did not end"),
        run=lambda _: _check(at_rds, discovery, window, limit),
    )
    (result,) = run_jobs([job], limit)  # a bug must not stop the run
    paused, unknown, problem = result.latest
    if problem:
        logger.warning("paused clusters are unknown", extra={"problem": problem})
    asleep, marked = ({each.key for each in group} for group in (paused, unknown))
    awake = [
        replace(each, pause_unknown=problem) if each.key in marked else each
        for each in targets
        if each.key not in asleep
    ]
    return awake, paused


def _check(
    at_rds: Sequence[Target], discovery: TargetDiscovery, window: float, deadline: Deadline
) -> _PauseCheck:
    listing = discovery.list_instances(deadline)
    if listing.problem:
        return _PauseCheck(unknown=at_rds, problem=listing.problem)
    groups = {each.key: find_pause_group(each, listing) for each in at_rds}
    may_pause = [each for each in at_rds if groups[each.key]]
    if not may_pause:
        return _PauseCheck()
    now = time()
    idle = read_idle_moments(frozenset().union(*groups.values()), now, window, deadline)
    if idle.problem:
        return _PauseCheck(unknown=may_pause, problem=idle.problem)
    paused = [each for each in may_pause if may_skip(groups[each.key], idle, now, window)]
    return _PauseCheck(paused=paused)
