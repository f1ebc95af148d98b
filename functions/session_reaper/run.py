"""All targets, at the same time; no one's trouble is another's."""

from collections.abc import Callable, Iterator, Sequence

from session_reaper.concurrency import latest_of_all
from session_reaper.deadline import Deadline
from session_reaper.directory import Directory
from session_reaper.report import TargetReport, crashed
from session_reaper.targets import Target

Work = Callable[[Target, Deadline], Iterator[TargetReport]]
"""What is done to one target; each report replaces the one before."""


def run(
    directory: Directory, names: Sequence[str], work: Work, deadline: Deadline
) -> tuple[TargetReport, ...]:
    """Do the work on the targets of these names, or on all. Raises ConfigurationError."""
    found = directory.find(names, deadline)
    targets = [target for target in found if isinstance(target, Target)]
    works = [(target.name, work(target, deadline)) for target in targets]
    unread = [report for report in found if isinstance(report, TargetReport)]
    return (*unread, *latest_of_all(works, crashed, deadline))
