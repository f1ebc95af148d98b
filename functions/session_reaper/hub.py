"""The Lambda entry point of a fleet's hub: publishes one digest of what the stacks report."""

from time import time
from typing import TYPE_CHECKING, Any

from session_reaper.deadline import Deadline
from session_reaper.log_levels import silence_libraries

silence_libraries()

from session_reaper.observability import start_log  # noqa: E402 -- Powertools logs while it is imported
from session_reaper.runs.hub_run import run_hub  # noqa: E402 -- as above
from session_reaper.settings import read_hub_settings  # noqa: E402 -- as above

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_MARGIN_SECONDS = 1.0


def lambda_handler(event: object, context: "LambdaContext") -> dict[str, Any]:
    """Drain the queue and publish a digest if there is news; return what was done.

    Raises ConfigurationError, QueueError or PublishError; the messages then stay in the queue.
    Raises InternalError if a bug kept the digest from being written in full.
    """
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - _MARGIN_SECONDS)
    start_log(context.aws_request_id, event)
    return run_hub(read_hub_settings(), context.aws_request_id, time(), deadline)
