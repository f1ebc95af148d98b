"""Reads what a run is to do: the event's request, within the stack's configuration."""

from typing import NamedTuple

from session_reaper.deadline import Deadline
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy
from session_reaper.runs.mode_source import load_mode
from session_reaper.runs.policy_source import load_policy
from session_reaper.runs.quota import Quota, allow_all, make_quota
from session_reaper.runs.request import (
    RunRequest,
    choose_lowest_mode,
    is_scheduled,
    merge_policy,
    read_request,
)
from session_reaper.settings import Settings, read_settings


class RunPlan(NamedTuple):
    """The task of a run, and how far it may go."""

    request: RunRequest
    settings: Settings
    policy: Policy
    mode: Mode
    quota: Quota = allow_all
    is_scheduled: bool = False


def make_plan(event: object, deadline: Deadline) -> RunPlan:
    """Read the settings, the event, the policy and the mode. Raises ConfigurationError."""
    settings = read_settings()
    request = read_request(event)
    policy = merge_policy(load_policy(settings.policy, deadline), request)
    mode = choose_lowest_mode(load_mode(settings.mode, deadline), policy.mode, request.mode)
    return RunPlan(
        request=request,
        settings=settings,
        policy=policy,
        mode=mode,
        quota=make_quota(policy),
        is_scheduled=is_scheduled(event),
    )
