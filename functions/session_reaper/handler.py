"""The Lambda entry point of the reaper: runs what an event asks for and returns the report."""

# ruff: noqa: E402 -- the statements before the other imports must run first
import gc

from session_reaper.log_levels import silence_libraries

gc.disable()  # saves a tenth of a cold start (docs/decisions.md)
silence_libraries()  # Powertools logs while it is imported

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from session_reaper.errors import ConfigurationError
from session_reaper.observability import OutcomeLog, emit_run_metrics, logger, start_log
from session_reaper.policy.enums import Mode
from session_reaper.report.document import to_recordings, truncate_document
from session_reaper.report.model import Report
from session_reaper.runs.broken_configuration import (
    forget_configuration_error,
    report_configuration_error,
)
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.mode_source import load_mode
from session_reaper.runs.notify import notify
from session_reaper.runs.operations import choose_operation
from session_reaper.runs.policy_source import load_policy
from session_reaper.runs.request import (
    RunRequest,
    is_scheduled,
    lowest_mode,
    merge_policy,
    read_request,
)
from session_reaper.runs.run import run
from session_reaper.runs.run_time import RunTime, share_time
from session_reaper.settings import Settings, read_settings

gc.freeze()
gc.enable()

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

# Lambda fails a run that returns more than 6,291,556 bytes.
MAX_ANSWER_BYTES: Final = 6_000_000


def lambda_handler(
    event: object, context: "LambdaContext", *, max_answer_bytes: int = MAX_ANSWER_BYTES
) -> dict[str, Any]:
    """Run what the event asks for; return the document of the report.

    Raises ConfigurationError before any target is touched, and PublishError if the summary was not
    published. An error of a target is part of the report.
    """
    began = monotonic()
    run_id = context.aws_request_id
    start_log(run_id, event)
    run_time = share_time(context.get_remaining_time_in_millis() / 1000)
    try:
        report, logs, request, settings = _run(event, run_id, run_time)
    except ConfigurationError as error:
        # The caller of a manual run gets the error.
        if is_scheduled(event):
            own_arn = getattr(context, "invoked_function_arn", None)
            report_configuration_error(error, run_id, run_time.end, own_arn)
        raise
    # Outside of Lambda there may be no ARN; the topic's has the same account and region.
    function_arn = getattr(context, "invoked_function_arn", settings.topic_arn)
    report, document = notify(
        report, logs, request, settings, function_arn=function_arn, end=run_time.end
    )
    emit_run_metrics(report, monotonic() - began)
    if request.record:
        return {**document, "snapshots": to_recordings(report)}
    return truncate_document(document, max_answer_bytes)


def _run(
    event: object, run_id: str, run_time: RunTime
) -> tuple[Report, Sequence[OutcomeLog], RunRequest, Settings]:
    """Read the configuration and run. Raises ConfigurationError."""
    settings = read_settings()
    request = read_request(event)
    policy = merge_policy(load_policy(settings.policy, run_time.policy), request)
    mode = lowest_mode(load_mode(settings.mode, run_time.policy), policy.mode, request.mode)
    logger.append_keys(mode=str(mode))
    operation = choose_operation(request, policy, mode)
    # A manual run often follows a change of a secret.
    is_manual = not is_scheduled(event)
    discovery = TargetDiscovery(settings, bypass_cache=is_manual)
    clock = policy.shortest_clock if settings.skip_paused and not is_manual else None
    targets, logs = (
        ((), ())
        if mode is Mode.OFF
        else run(operation, discovery, request.targets, run_time, policy, shortest_clock=clock)
    )
    forget_configuration_error()
    return Report(run_id=run_id, mode=mode, targets=targets), logs, request, settings
