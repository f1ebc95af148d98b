"""The report of one target at the beginning and at the end of its job."""

from session_reaper.report.advice import advise_on_connection
from session_reaper.report.model import TargetReport, record_unfinished
from session_reaper.runs.parallel import JobResult
from session_reaper.targets.target import Target


def create_report(target: Target) -> TargetReport:
    """Build the report of a target before anything is known about it."""
    return TargetReport(
        name=target.name,
        secret=target.secret_name,
        key=target.key,
        reader=target.is_reader,
        advice=tuple(advise_on_connection(target)),
    )


def get_report(result: JobResult[TargetReport]) -> TargetReport:
    """Return the report of a job, which a bug or the end of the time may have cut off."""
    return result.latest if result.is_complete else record_unfinished(result.latest, result.bug)
