"""Publishes a run's compact report to a fleet's hub, on which the run itself does not depend."""

from time import time
from typing import Final

from session_reaper.aws.sns import publish_document
from session_reaper.deadline import Deadline
from session_reaper.errors import PublishError
from session_reaper.observability import emit_count, log_bug, logger
from session_reaper.report.fleet_document import RunOrigin, write_fleet_document
from session_reaper.report.model import Report
from session_reaper.settings import ErrorSettings, Settings

_SECONDS: Final = 7.0
"""The longest time for the report: 3 s to connect, 3 s to answer, and writing it."""


def publish_to_hub(  # noqa: PLR0913 -- the report, and everything that identifies its run
    report: Report,
    settings: Settings | ErrorSettings,
    end: Deadline,
    *,
    verdict: str,
    is_usual: bool,
    function_arn: str,
) -> None:
    """Publish the report if the stack has a hub; a failure is a warning and a metric."""
    topic_arn = settings.fleet_topic_arn
    if topic_arn is None:
        return
    now = time()
    try:
        _, _, _, region, account, *_ = function_arn.split(":")
        origin = RunOrigin(
            account=account,
            region=region,
            stack=settings.location.function if settings.location else "session-reaper",
            sent_at=now,
            next_by=now + settings.run_interval,
            is_usual=is_usual,
        )
        document = write_fleet_document(report, origin, verdict)
        publish_document(document, topic_arn, end.capped_at(_SECONDS))
    except PublishError as error:
        logger.warning("cannot reach the fleet's hub", extra={"error": str(error)})
        emit_count("FleetReportErrors")
    except Exception as error:  # noqa: BLE001 -- a bug must not fail a run that is complete
        log_bug("a bug in the fleet's report", error)
        emit_count("FleetReportErrors")
