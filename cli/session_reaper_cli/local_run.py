"""Runs an operation of the engine on one server, and ends it truthfully at Ctrl-C or SIGTERM.

The operation runs in a thread. At the first signal that is counted its time is cut short: no
further session is signalled, and the signalled ones are verified once more. The report is what the
thread has recorded by then, as at the end of a Lambda's time. A signal that is not counted raises.
"""

import logging
import threading
import time
from dataclasses import dataclass
from functools import partial
from signal import Signals
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError, TargetError
from session_reaper.observability import SERVICE, OutcomeLog
from session_reaper.policy.enums import Mode
from session_reaper.postgres.server import Server
from session_reaper.report.model import TargetReport, record_error
from session_reaper.runs.operations import Operation
from session_reaper.runs.parallel import Progress
from session_reaper.runs.quota import Quota, allow_all
from session_reaper.runs.target_report import create_report, get_report
from session_reaper.runs.target_session import TargetJob, TargetSession
from session_reaper.targets.target import Target

from session_reaper_cli.connections.login import Invocation, connect
from session_reaper_cli.remedies import reword_failure
from session_reaper_cli.results import ExitStatus, choose_status
from session_reaper_cli.stopping import Interrupts
from session_reaper_cli.terminal import show_traceback

RUN_SECONDS: Final = 60.0
_LAST_SECONDS: Final = 3.0  # after the signal
_POLL_SECONDS: Final = 0.1
_GRACE: Final = 0.5  # seconds after the deadline in which the thread may still record its result


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """The report of an operation, and the signal that ended it, None if none did."""

    report: TargetReport
    stopped_by: Signals | None

    @property
    def status(self) -> ExitStatus:
        """The exit status of the command."""
        if self.stopped_by is not None:
            return ExitStatus(128 + self.stopped_by)
        return choose_status(self.report)


class HurryingClock:
    """A monotonic clock that can be moved forward, so that every deadline comes sooner."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def __call__(self) -> float:
        """Return the seconds on the clock."""
        return time.monotonic() + self._skipped

    def skip(self, seconds: float) -> None:
        """Move the clock forward."""
        self._skipped += max(0.0, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTarget:
    """A connected server. `may_be_partial`: the sessions of our own role are enough."""

    server: Server
    call: Invocation
    mode: Mode = Mode.OBSERVE
    quota: Quota = allow_all
    may_be_partial: bool = False


# An operation that changes nothing ends by an exception at a signal.
_NO_INTERRUPTS: Final = Interrupts()


def run_operation(
    operation: Operation, opened: OpenTarget, interrupts: Interrupts = _NO_INTERRUPTS
) -> LocalRun:
    """Run an operation on a connected server; an error becomes part of the report."""
    target = opened.call.target
    clock = HurryingClock()
    deadline = Deadline(RUN_SECONDS, clock)
    progress, log = Progress(create_report(target)), OutcomeLog()
    job = TargetJob(
        target=target,
        policy=opened.call.policy,
        mode=opened.mode,
        quota=opened.quota,
        progress=progress,
        outcomes=log,
        deadline=deadline,
    )
    session = TargetSession(
        job=job,
        server=opened.server,
        connect=partial(connect, target),
        connect_by_fallback=partial(_connect_by_fallback, deadline),
        report=create_report(target),
        admit=lambda _: target,
        may_be_partial=opened.may_be_partial,
    )
    thread = threading.Thread(target=_work, args=(operation, session, progress), daemon=True)
    logging.getLogger(SERVICE).setLevel(logging.CRITICAL + 1)  # the engine's log is for CloudWatch
    thread.start()
    end = deadline.extended_by(_GRACE)
    while thread.is_alive() and end.remaining() and not interrupts.is_impatient:
        progress.wait(_POLL_SECONDS)
        if interrupts.first is None or session.stop.is_set():
            continue
        session.stop.set()
        opened.call.say(
            "Stopping: no further session is signalled. Ctrl-C again does not wait for the outcomes."
        )
        clock.skip(deadline.remaining() - _LAST_SECONDS)
    session.stop.set()  # before the result is read: a thread that goes on signals nothing
    report = reword_failure(log.complete(get_report(progress.result), Deadline(0)), target)
    return LocalRun(report=report, stopped_by=interrupts.first)


def _work(operation: Operation, session: TargetSession, progress: Progress[TargetReport]) -> None:
    try:
        progress.complete(operation(session))
    except TargetError as error:
        progress.complete(record_error(progress.result.latest, error))
    except Exception as bug:  # noqa: BLE001 -- a bug is shown, and the sessions signalled before it are still reported
        progress.fail(bug)
        show_traceback(bug)
    finally:
        progress.end()


def _connect_by_fallback(deadline: Deadline, target: Target) -> Server:
    from session_reaper_cli.connections.secret import find_fallback_target  # noqa: PLC0415 -- boto3 takes 150 ms

    try:
        return connect(find_fallback_target(target, deadline))
    except ConfigurationError as error:  # the operation reports it as the target's
        raise TargetError("fallback", error.problem, "Check the secret's name.") from None
