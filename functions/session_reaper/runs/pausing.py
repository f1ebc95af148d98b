"""Skips the targets of Aurora Serverless that a scheduled run need not wake."""

from collections.abc import Iterable, Sequence
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


class PauseCheck(NamedTuple):
    """The targets to connect to, and those to leave asleep."""

    awake: tuple[Target, ...]
    paused: tuple[Target, ...] = ()


def split_paused(
    targets: Sequence[Target], plan: RunPlan, discovery: TargetDiscovery, deadline: Deadline
) -> PauseCheck:
    """Find the targets that the run skips: none of their sessions can be old enough for a rule.

    Where that is unknown, the target is awake, and its `pause_unknown` says why.
    """
    may_skip_any = plan.is_scheduled and plan.settings.skip_paused
    at_rds = [each for each in targets if may_skip_any and find_rds_region(each.host)]
    if not at_rds:
        return PauseCheck(awake=tuple(targets))
    limit = deadline.capped_at_share(_SHARE, _SECONDS)
    window = min(plan.policy.shortest_clock, _LONGEST_WINDOW)
    unread = PauseCheck(awake=_mark(targets, at_rds, "the check did not end"))
    job = Job(
        name="paused clusters",
        initial=unread,
        run=lambda _: _split(targets, at_rds, discovery, window, limit),
    )
    (result,) = run_jobs([job], limit)  # a bug must not stop the run
    for problem in {each.pause_unknown for each in result.latest.awake if each.pause_unknown}:
        logger.warning("paused clusters are unknown", extra={"problem": problem})
    return result.latest


def _split(
    targets: Sequence[Target],
    at_rds: Sequence[Target],
    discovery: TargetDiscovery,
    window: float,
    deadline: Deadline,
) -> PauseCheck:
    listing = discovery.list_instances(deadline)
    if listing.problem:
        return PauseCheck(awake=_mark(targets, at_rds, listing.problem))
    groups = {id(each): find_pause_group(each, listing) for each in at_rds}
    instances = frozenset().union(*groups.values())
    if not instances:
        return PauseCheck(awake=tuple(targets))
    now = time()
    idle = read_idle_moments(instances, now, window, deadline)
    if idle.problem:
        may_pause = [each for each in at_rds if groups[id(each)]]
        return PauseCheck(awake=_mark(targets, may_pause, idle.problem))
    paused = [each for each in at_rds if may_skip(groups[id(each)], idle, now, window)]
    asleep = {id(each) for each in paused}
    awake = [each for each in targets if id(each) not in asleep]
    return PauseCheck(awake=tuple(awake), paused=tuple(paused))


def _mark(targets: Iterable[Target], unknown: Iterable[Target], problem: str) -> tuple[Target, ...]:
    marked = {id(each) for each in unknown}
    return tuple(
        replace(each, pause_unknown=problem) if id(each) in marked else each for each in targets
    )
