"""The Lambda entry point: from an event to the report of a run."""

# ruff: noqa: E402 -- what is imported stays: who looks through it for garbage meanwhile loses 15 ms
import gc

gc.disable()

from session_reaper.log_levels import silence_libraries

silence_libraries()  # Powertools logs while it is imported

from functools import partial
from threading import Semaphore
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from session_reaper.observability import emit_run_metrics, logger
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy
from session_reaper.report.document import to_recordings, truncate_document
from session_reaper.report.model import Report, TargetReport
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.notify import notify, share_time
from session_reaper.runs.operations import Operation, apply, check, reap, record, run_on_target
from session_reaper.runs.policy_source import load_policy
from session_reaper.runs.request import (
    RunRequest,
    is_scheduled,
    lowest_mode,
    merge_policy,
    read_request,
)
from session_reaper.runs.run import OutcomeLogs, run
from session_reaper.settings import read_settings

gc.freeze()
gc.enable()

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

# Lambda takes an answer of 6,291,556 bytes: a longer one would make an error of a run that has done
# everything.
MAX_ANSWER_BYTES: Final = 6_000_000


def lambda_handler(
    event: object, context: "LambdaContext", *, max_answer_bytes: int = MAX_ANSWER_BYTES
) -> dict[str, Any]:
    """Deal with all that the event asks for; returns product.md's document.

    Raises ConfigurationError before anything is touched, PublishError if the summary did not go
    out. Trouble with a target is in the report.
    """
    began = monotonic()
    run_time = share_time(context.get_remaining_time_in_millis() / 1000)
    settings = read_settings()
    request = read_request(event)
    policy = merge_policy(load_policy(settings.policy, run_time.policy), request)
    mode = lowest_mode(settings.mode, policy.mode, request.mode)
    run_id = context.aws_request_id or str(uuid4())
    logger.append_keys(run_id=run_id, mode=str(mode))
    # A manual run often follows a change of a secret.
    directory = TargetDiscovery(settings, bypass_cache=not is_scheduled(event))
    work = partial(run_on_target, _operation(request, policy, mode), directory)
    logs = OutcomeLogs()
    targets: tuple[TargetReport, ...] = ()
    if mode is not Mode.OFF:
        targets = run(
            directory,
            request.targets,
            work,
            logs,
            deadline=run_time.targets,
            logging_deadline=run_time.outcomes,
        )
    report = Report(run_id=run_id, mode=mode, targets=targets)
    # A function that is invoked outside of Lambda may have no ARN; the topic's has the same parts.
    function_arn = getattr(context, "invoked_function_arn", settings.topic_arn)
    report, document = notify(
        report, logs, request, settings, function_arn=function_arn, end=run_time.end
    )
    emit_run_metrics(report, monotonic() - began)
    if request.record:  # for the one who asked; too long for the log
        return {**document, "snapshots": to_recordings(report)}
    return truncate_document(document, max_answer_bytes)


def _operation(request: RunRequest, policy: Policy, mode: Mode) -> Operation:
    if request.record or request.check:
        return record if request.record else check
    if request.apply:
        return partial(apply, policy, mode, request.apply)
    return _reaping(policy, mode)


def _reaping(policy: Policy, mode: Mode) -> Operation:
    most = policy.limits.max_per_run
    quota = None if most is None else Semaphore(most)
    return partial(reap, policy, mode, quota)
