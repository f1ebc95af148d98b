"""The connection of a job to its target, and where the job records its progress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import NamedTuple

from session_reaper.deadline import Deadline
from session_reaper.observability import OutcomeLog
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy
from session_reaper.postgres.server import Server
from session_reaper.report.model import TargetReport
from session_reaper.runs.parallel import Progress
from session_reaper.runs.quota import Quota
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.target import Target


class TargetJob(NamedTuple):
    """The work on one target: its limits, its deadline, and where it records its progress."""

    target: Target
    policy: Policy
    mode: Mode
    quota: Quota
    progress: Progress[TargetReport]
    outcomes: OutcomeLog
    deadline: Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSession:
    """An open connection to one target, and its report so far.

    `connect` replaces a lost connection. `connect_by_fallback` uses a target's fallback secret.
    `list_others` finds the targets that lead to the same server, as far as hosts and addresses
    tell. `admit` returns the target that names the server, or raises if the operation of another
    secret is to run on it. `may_be_partial`: the operation works without the sessions that are
    hidden from our role, such as one on our role's own sessions. Once `stop` is set, no further
    session is signalled.
    """

    job: TargetJob
    server: Server
    connect: Callable[[], Server]
    connect_by_fallback: Callable[[Target], Server]
    report: TargetReport
    admit: Callable[[Snapshot], Target]
    list_others: Callable[[], Sequence[Target]] = tuple
    may_be_partial: bool = False
    stop: Event = field(default_factory=Event)

    def record(self, report: TargetReport) -> None:
        """Record the report that holds if the run ends now."""
        self.job.progress.update(report)
