"""Runs an operation on one target: connects, and turns an error into a part of the report."""

from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

from session_reaper.aws.rds import with_iam_token
from session_reaper.errors import FullError, TargetError
from session_reaper.postgres.server import Server
from session_reaper.report.advice import advise_on_fallback_used
from session_reaper.report.model import TargetReport, record_error
from session_reaper.runs.connect import connect_to_target
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.operations import Operation
from session_reaper.runs.target_report import create_report
from session_reaper.runs.target_session import TargetJob, TargetSession
from session_reaper.runs.visits import VisitedError, Visits
from session_reaper.targets.target import Target


def run_on_target(
    operation: Operation, discovery: TargetDiscovery, job: TargetJob, visits: Visits
) -> TargetReport:
    """Connect to one target and run the operation; an error becomes part of the report.

    The report in the job's progress is always true, so the run can end at any moment. Raises
    PostponeError.
    """
    try:
        with ExitStack() as connections:
            session = _open_session(job, discovery, visits, connections)
            session.record(session.report)
            return operation(session)
    except VisitedError as visited:
        report, later = create_report(job.target), visited.later
        if later is None:
            return report
        slots = later.slots
        return replace(report, slots=slots, used_after=slots.used, holders=later.holders)
    except TargetError as error:
        if isinstance(error, FullError) and error.limit is None:
            visits.record_full(job.target)
        return record_error(job.progress.result.latest, error)
    finally:
        visits.end(job.target)


def _open_session(
    job: TargetJob, discovery: TargetDiscovery, visits: Visits, connections: ExitStack
) -> TargetSession:
    """Connect to the target before its turn is over. `connections` will close every connection."""
    target, deadline = job.target, job.deadline
    server, connected = connect_to_target(
        target,
        discovery,
        visits.begin(target, deadline),
        job.policy,
        may_wait=not visits.is_full(target),
        when_full=partial(visits.end_turn, target),
        may_get_slot=partial(visits.may_get_slot, target),
    )
    connections.callback(server.close)
    visits.record_connected(target)

    def connect() -> Server:
        again, _ = connect_to_target(target, discovery, deadline, job.policy)
        return connections.enter_context(closing(again))

    def connect_by_fallback(other: Target) -> Server:
        fallback = with_iam_token(discovery.resolve_fallback(other, deadline))
        return connections.enter_context(closing(Server.connect(fallback, deadline)))

    report = create_report(target)
    if connected.instead_of is not None:
        advice = (*report.advice, advise_on_fallback_used(target, connected.role))
        report = replace(report, advice=advice, fallback_secret=target.fallback_secret)
    return TargetSession(
        job=job,
        server=server,
        connect=connect,
        connect_by_fallback=connect_by_fallback,
        list_others=partial(visits.list_others, target),
        report=report,
        admit=partial(visits.admit, target, connected, server, deadline=deadline),
    )
