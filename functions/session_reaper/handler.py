"""The Lambda entry point of the reaper: runs what an event asks for and returns the report."""

# ruff: noqa: E402 -- the statements before the other imports must run first
import gc

from session_reaper.log_levels import silence_libraries

gc.disable()  # saves a tenth of a cold start (docs/decisions.md)
silence_libraries()  # Powertools logs while it is imported

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from session_reaper.errors import ConfigurationError
from session_reaper.observability import emit_run_metrics, start_log
from session_reaper.report.document import to_recordings, truncate_document
from session_reaper.report.model import Report
from session_reaper.runs.broken_configuration import (
    forget_configuration_error,
    report_configuration_error,
)
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.notify import notify
from session_reaper.runs.plan import make_plan
from session_reaper.runs.request import is_scheduled
from session_reaper.runs.run import run
from session_reaper.runs.run_time import share_time

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
    # Outside of Lambda there may be no ARN; the topic's has the same account and region.
    function_arn = getattr(context, "invoked_function_arn", None)
    try:
        plan = make_plan(event, run_time.policy)
        # A manual run often follows a change of a secret.
        discovery = TargetDiscovery(plan.settings, bypass_cache=not plan.is_scheduled)
        targets, logs = run(plan, discovery, run_time)
    except ConfigurationError as error:
        # The caller of a manual run gets the error.
        if is_scheduled(event):
            report_configuration_error(error, run_id, run_time.end, function_arn)
        raise
    forget_configuration_error()
    report, document = notify(
        Report(run_id=run_id, mode=plan.mode, targets=targets),
        logs,
        plan,
        function_arn=function_arn or plan.settings.topic_arn,
        end=run_time.end,
    )
    emit_run_metrics(report, monotonic() - began)
    if plan.request.record:
        return {**document, "snapshots": to_recordings(report)}
    return truncate_document(document, max_answer_bytes)
