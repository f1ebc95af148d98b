"""The state of each stack in a fleet's hub, and how messages change it.

SQS may deliver a message twice, late, and after a later one. The latest run of a stack decides
which issues it has. Of any other run only the ended sessions count, once.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, NamedTuple

from session_reaper.fleet.message import (
    SILENCE_KEY,
    STACK_KEY,
    Spoke,
    SpokeReport,
    make_stack_report,
)
from session_reaper.policy.enums import Mode
from session_reaper.report.known_issues import KnownIssue, StateUpdate, compare_with_known
from session_reaper.report.model import DONE, Report, StackProblem, TargetReport
from session_reaper.targets.target import TargetKey

SILENT_AFTER: Final = 600.0
"""Seconds after the announced moment of a stack's next message."""

_MOST_AHEAD: Final = 3600.0  # seconds that a stack's clock orders its runs ahead of the arrival
_RUNS: Final = 100  # of one stack, and all of the last digest, to recognize what arrives twice


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokeState:
    """The state of a stack. Moments are seconds since 1970.

    `sent_at` is by the stack's clock, and an hour after `arrived_at` at most. `arrived_at` and
    `expected_by` are by the clock of SQS. `revision` counts the changes in the table.
    """

    spoke: Spoke
    sent_at: float = 0.0  # of the latest usual run
    arrived_at: float = 0.0  # of its message
    expected_by: float = 0.0
    runs: tuple[str, ...] = ()  # hashes of their ids, those of the last digest at the end
    targets: int = 0
    known: tuple[KnownIssue, ...] = ()
    revision: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether the silence of the stack was reported, and has not ended."""
        return any(issue.target == SILENCE_KEY for issue in self.known)


@dataclass(slots=True, kw_only=True)
class SpokeNews:
    """The news of one stack: its state, and what its messages add to it."""

    state: SpokeState
    runs: set[str] = field(default_factory=set)  # hashes of the ids of all messages
    latest: SpokeReport | None = None  # the newest usual run
    others: list[TargetReport] = field(default_factory=list)  # with ended sessions only
    handles: list[str] = field(default_factory=list)  # of the messages to delete
    mode: Mode = Mode.OFF  # the highest


def add_message(news: SpokeNews, report: SpokeReport, arrived_at: float, handle: str) -> None:
    """Add a message, which may be a copy of one that was added before."""
    news.handles.append(handle)
    state = news.state
    run = sha256(report.run.encode()).hexdigest()[:12]
    is_known = run in news.runs or run in state.runs
    news.runs.add(run)
    if is_known:
        return
    news.mode = max(news.mode, report.mode or Mode.OFF)
    if not report.is_usual or _is_older(report, arrived_at, state):
        news.others += _keep_ended(report.targets)
        if report.is_usual:  # a sign of life, even if the stack's clock was set back
            expected_by = max(state.expected_by, arrived_at + report.interval)
            news.state = replace(state, expected_by=expected_by)
        return
    if news.latest is not None:
        news.others += _keep_ended(news.latest.targets)
    news.latest = report._replace(targets=_drop_quiet(report.targets, state.known))
    news.state = replace(
        state,
        sent_at=_limit_clock(report, arrived_at),
        arrived_at=arrived_at,
        expected_by=arrived_at + report.interval,
        targets=state.targets if report.problem else report.number_of_targets,
    )


def _is_older(report: SpokeReport, arrived_at: float, state: SpokeState) -> bool:
    """Return whether the run is older than the latest one.

    A clock that is ahead still orders its own runs. Once it is set right, its earlier moments count
    as those of the arrivals, so that the stack's next runs are not taken for older ones.
    """
    if report.sent_at > arrived_at:
        return _limit_clock(report, arrived_at) <= state.sent_at
    return report.sent_at <= min(state.sent_at, state.arrived_at)


def _limit_clock(report: SpokeReport, arrived_at: float) -> float:
    return min(report.sent_at, arrived_at + _MOST_AHEAD)


def _drop_quiet(
    targets: Iterable[TargetReport], known: Iterable[KnownIssue]
) -> tuple[TargetReport, ...]:
    """Drop all quiet targets but one, which shows that not every target has failed.

    A fleet may have a hundred thousand, which would not fit into the function's memory. Those with
    known issues stay, because they may have recovered.
    """
    secrets = {issue.target.secret for issue in known}
    kept: list[TargetReport] = []
    quiet: list[TargetReport] = []
    for target in targets:
        is_quiet = target.is_fine and not target.results and not target.issues
        (quiet if is_quiet and target.key.secret not in secrets else kept).append(target)
    return (*kept, *quiet[:1])


def _keep_ended(targets: Iterable[TargetReport]) -> Sequence[TargetReport]:
    """Keep the ended sessions of a run, without its issues and slots."""
    return [
        TargetReport(name=t.name, key=t.key, results=ended)
        for t in targets
        if (ended := tuple(result for result in t.results if result.outcome in DONE))
    ]


class SpokeResult(NamedTuple):
    """The targets of a stack for the digest, and its state after the digest."""

    targets: tuple[TargetReport, ...]
    state: SpokeState


def conclude(news: SpokeNews, now: float, remind_after: float, *, is_complete: bool) -> SpokeResult:
    """Compare the news of a stack with what was reported.

    `is_complete`: no message is waiting, so a missing one means that the stack is silent.
    """
    state = news.state
    latest = news.latest
    targets = latest.targets if latest else ()
    is_awaited = state.expected_by > 0  # not after manual runs only
    is_silent = is_complete and is_awaited and now > state.expected_by + SILENT_AFTER
    if latest is not None:
        targets = (*targets, *_list_stack_reports(state, latest.problem, is_silent=is_silent))
    if is_silent:
        targets = (*targets, _make_silent(state))
    report = Report(run_id="", mode=Mode.ENFORCE, targets=targets)
    # A stack's silence is reported once, however long it lasts.
    known = [
        issue._replace(reported_at=now) if is_silent and issue.target == SILENCE_KEY else issue
        for issue in state.known
    ]
    covers_all = latest is not None and latest.is_whole
    report, update = compare_with_known(report, known, now, remind_after, covers_all=covers_all)
    if latest is not None:
        report, update = _keep_issues_of(latest.cut, report, update)
    state = replace(_apply(state, update, now), runs=_merge_runs(news))
    # Only now, because an ended session does not show that its target has no issue any more.
    return SpokeResult(targets=_merge_ended(report.targets, news.others), state=state)


def _keep_issues_of(
    cut: Collection[TargetKey], report: Report, update: StateUpdate
) -> tuple[Report, StateUpdate]:
    """End no issue of a target whose report was cut: it may be in the part that is left out."""
    targets = tuple(
        replace(target, recovered=()) if target.key in cut else target for target in report.targets
    )
    ended = tuple(issue for issue in update.ended if issue.target not in cut)
    return replace(report, targets=targets), update._replace(ended=ended)


def _list_stack_reports(
    state: SpokeState, problem: TargetReport | None, *, is_silent: bool
) -> Iterator[TargetReport]:
    """Yield the problem of a stack that has reported, and the end of its former ones."""
    if problem is not None:
        yield problem
    known = {issue.target for issue in state.known}
    is_over = {STACK_KEY: problem is None, SILENCE_KEY: not is_silent}
    ended = [key for key, over in is_over.items() if over and key in known]
    if ended:
        yield TargetReport(
            name=state.spoke.label,
            key=ended[0],
            also_keys=tuple(ended[1:]),
            stack_problem=StackProblem.ENDED,
        )


def conclude_refused(
    state: SpokeState, problem: TargetReport, now: float, remind_after: float
) -> SpokeResult:
    """Compare the report of refused messages with what was reported of the queue."""
    report = Report(run_id="", mode=Mode.ENFORCE, targets=(problem,))
    report, update = compare_with_known(report, state.known, now, remind_after, covers_all=False)
    return SpokeResult(targets=report.targets, state=_apply(state, update, now))


def _merge_runs(news: SpokeNews) -> tuple[str, ...]:
    """Put the runs of this digest last: if their messages cannot be deleted, they arrive again."""
    if not news.runs:
        return news.state.runs
    older = [run for run in news.state.runs if run not in news.runs]
    return tuple([*older, *sorted(news.runs)][-max(_RUNS, len(news.runs)) :])


def _make_silent(state: SpokeState) -> TargetReport:
    hint = (
        "Check that the stack's schedule is enabled, its function runs, FleetTopicArn is set, the"
        " topic and its key admit the account, and the hub is as new as the stack."
    )
    is_known = state.sent_at > 0
    cause = "the next report is more than 10m late" if is_known else "no report has ever arrived"
    return make_stack_report(state.spoke, StackProblem.SILENT, cause, hint)


def _merge_ended(
    targets: Sequence[TargetReport], others: Iterable[TargetReport]
) -> tuple[TargetReport, ...]:
    """Add what other runs ended to the targets of the latest one."""
    by_key = {target.key: target for target in targets}
    for other in others:
        target = by_key.get(other.key)
        results = (*target.results, *other.results) if target else other.results
        by_key[other.key] = replace(target or other, results=results)
    return tuple(by_key.values())


_EXPIRY_SECONDS: Final = 14 * 86400.0


def _apply(state: SpokeState, update: StateUpdate, now: float) -> SpokeState:
    changed = {(issue.target, issue.key) for issue in (*update.ended, *update.reported)}
    kept = [
        issue
        for issue in state.known
        if (issue.target, issue.key) not in changed and now - issue.reported_at < _EXPIRY_SECONDS
    ]
    reported = (
        issue._replace(since=min(issue.since, state.expected_by))
        if issue.target == SILENCE_KEY
        else issue
        for issue in update.reported
    )
    return replace(state, known=(*kept, *reported))
