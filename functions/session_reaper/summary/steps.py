"""The steps that a summary recommends to its reader."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from session_reaper.policy.enums import Action, Mode
from session_reaper.report.model import Outcome, Report, TargetStatus
from session_reaper.sessions.session import State
from session_reaper.summary.groups import Group, TargetDigest, group_failures, join_names
from session_reaper.summary.prose import Name, Prose, Statement


def list_steps(shown: Sequence[TargetDigest], report: Report) -> Iterator[Prose]:
    """List what the reader should do, most urgent first."""
    if report.configuration_error:
        yield ("Fix ", Name(report.configuration_error))
        yield (_TRY_AGAIN,)
    unexplained = [t.report for t in shown if t.report.is_exhausted and not t.report.results]
    if unexplained:
        yield (join_names(unexplained), ": ", *_FREE_SLOTS)
    for failure in group_failures(target.report for target in shown):
        yield (join_names(failure.targets), ": ", *_begin_with_words(failure.hint))
    for target in shown:
        for step in _list_target_steps(target, report):
            yield (join_names([target.report]), ": ", *step)


_TRY_AGAIN: Final = (
    'Invoke the function with {"check": true}: it shows the next error, or that the configuration is'
    " valid. The next scheduled run then works again."
)
_FREE_SLOTS: Final[Prose] = (
    "Applications cannot connect. List who holds the slots: ",
    Statement(
        "SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3;"
    ),
    " Then limit the pools of these applications, or add a rule for such sessions to the policy.",
)


def _begin_with_words(hint: Prose) -> Prose:
    if hint and isinstance(hint[0], Statement):
        return ("As a superuser or the master user, run: ", *hint)
    return hint


def _list_target_steps(target: TargetDigest, report: Report) -> Iterator[Prose]:
    if target.report.applied is not None:  # its sessions are only the evidence for the settings
        return
    if target.report.fallback_secret is not None:
        yield (
            "The reaper's own role finds no free slot. Follow the recommendation reserve-slots.",
        )
    groups: dict[Outcome, list[Group]] = defaultdict(list)
    for group in target.groups:
        groups[group.outcome].append(group)
    if groups[Outcome.LINGERING]:
        yield _explain_lingering(groups[Outcome.LINGERING])
    if groups[Outcome.DENIED]:
        yield (_DENIED,)
    leaks = [each for outcome in _LEAKS for each in groups[outcome]] or groups[Outcome.SPARED]
    if leaks:
        yield _explain_leak(max(leaks, key=lambda group: group.count))
    if groups[Outcome.WOULD_TERMINATE]:
        yield (_WOULD_TERMINATE,)
    if target.report.is_exhausted and target.report.results:
        yield _FREE_SLOTS
    is_going_on = target.report.status is TargetStatus.OK and report.mode is Mode.ENFORCE
    if groups[Outcome.SPARED] and is_going_on:
        yield ("No action is needed for the spared sessions: the next run continues with them.",)


_DENIED: Final = (
    "The reaper's role may not terminate some of these sessions. The recommendations say what to"
    " grant."
)
_WOULD_TERMINATE: Final = (
    "If these sessions are leaks, set the mode to enforce. Otherwise protect them in the policy."
)
_CANCEL_WITHOUT_EFFECT: Final = (
    " still runs its query although it was cancelled. Add escalate_after to the rule, or terminate"
    " the session by hand with pg_terminate_backend."
)
_NOT_EXITED: Final = (
    " was signalled but has not exited. If it is still there in the next run, stop its client; if"
    " that does not help, restart the server."
)
_LEAKS: Final = (
    Outcome.TERMINATED,
    Outcome.CANCELLED,
    Outcome.WOULD_TERMINATE,
    Outcome.LINGERING,
    Outcome.DENIED,
)


def _explain_lingering(groups: Sequence[Group]) -> Prose:
    cancelled = next((group for group in groups if _is_cancel(group)), None)
    if cancelled:
        return (*_name_culprit(cancelled), _CANCEL_WITHOUT_EFFECT)
    return (*_name_culprit(groups[0]), _NOT_EXITED)


def _is_cancel(group: Group) -> bool:
    rule = group.oldest.rule
    return rule is not None and rule.action is Action.CANCEL and rule.escalate_after is None


def _explain_leak(group: Group) -> Prose:
    """Recommend to find out why an application leaks sessions."""
    match group.oldest.session.state:
        case State.ACTIVE:
            problem = " runs for so long."
        case State.IDLE:
            problem = " keeps idle sessions, and limit the size of its pool."
        case _:
            problem = " leaves transactions open."
    query = (" Last statement: ", Statement(group.query)) if group.query else ()
    return ("Find out why ", *_name_culprit(group), problem, *query)


def _name_culprit(group: Group) -> Prose:
    return (Name(group.application), " (role ", Name(group.role), ")")
