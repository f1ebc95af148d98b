"""The steps that a summary recommends to its reader."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from session_reaper.policy.enums import Action, Mode
from session_reaper.policy.protections import Protection
from session_reaper.report.emergency import (
    EMERGENCY_AGE,
    EMERGENCY_AGE_IN_WORDS,
    LIST_HOLDERS,
    find_holder_protection,
    write_holder_sql,
)
from session_reaper.report.model import Outcome, Report, TargetReport, TargetStatus
from session_reaper.report.text import printable
from session_reaper.sessions.session import State
from session_reaper.sessions.snapshot import Holder
from session_reaper.summary.groups import Group, TargetDigest, join_names
from session_reaper.summary.holders import (
    describe_holder,
    find_protection_of_all,
    find_remaining_holders,
)
from session_reaper.summary.out_of_reach import (
    advise_on_protection,
    list_blocker_steps,
    list_protected_steps,
)
from session_reaper.summary.prose import Name, Prose, Statement, join_prose, name_role, split_hint
from session_reaper.summary.wording import Wording


def list_steps(shown: Sequence[TargetDigest], report: Report, wording: Wording) -> Iterator[Prose]:
    """List what the reader should do, most urgent first."""
    if report.configuration_error:
        yield ("Fix ", Name(report.configuration_error))
        yield (_TRY_AGAIN,)
    for target in shown:
        if target.report.is_exhausted:
            yield (join_names([target.report]), ": ", *_explain_holders(target.report, wording))
    targets_by_hint: dict[str, list[TargetReport]] = defaultdict(list)
    for target in shown:
        if target.report.error:
            targets_by_hint[target.report.error.hint].append(target.report)
    for hint, targets in targets_by_hint.items():
        yield (join_names(targets), ": ", *_begin_with_words(split_hint(hint)))
    targets_by_step: dict[tuple[int | None, Prose], list[TargetReport]] = defaultdict(list)
    for number, target in enumerate(shown):
        # In a fleet, the same step may be for targets of many accounts.
        separate = number if wording.sees_all else None
        for step in _list_target_steps(target, report, wording):
            targets_by_step[separate, step].append(target.report)
    yield from ((join_names(each), ": ", *step) for (_, step), each in targets_by_step.items())


def _explain_holders(report: TargetReport, wording: Wording) -> Prose:
    """Name the largest group that holds slots, and recommend how to free them now and for good."""
    problem = "Applications cannot connect. " if report.is_exhausted else ""
    holders = find_remaining_holders(report)
    if not holders and not wording.sees_all:
        return (f"{problem}The stack's own summary names the holders of the slots.",)
    if not holders:
        return (f"{problem}List the holders of the slots: ", Statement(LIST_HOLDERS))
    largest = holders[0]
    if largest.is_logging_in:
        return (
            f"{problem}The largest group of sessions is ",
            *describe_holder(largest),
            _LOGGING_IN,
        )
    may_enforce = wording.enforces_at_once and report.counts[Outcome.WOULD_TERMINATE]
    protection = find_holder_protection(largest, report.policy) if report.policy else None
    protection = protection or find_protection_of_all(largest, report)
    when = "Restart" if report.is_exhausted else "If slots run out, restart"
    return (
        f"{problem}The largest group of sessions is ",
        *describe_holder(largest),
        f". {when} that application or limit its pool.",
        *(() if protection or may_enforce else _explain_holder_sql(largest, report)),
        *(() if _has_result(largest, report) else _advise_on_holder(largest, protection, wording)),
    )


_LOGGING_IN: Final = (
    ". Find out why these logins hang: the server ends each one after authentication_timeout, and no"
    " rule can match them."
)


def _explain_holder_sql(holder: Holder, report: TargetReport) -> Prose:
    """Give the statement that ends a group's sessions, where there is one."""
    sql = report.policy and write_holder_sql(holder, report.policy, report.role)
    if not sql:
        return ()
    how = f"end those older than {EMERGENCY_AGE_IN_WORDS}"
    if holder.oldest_seconds is not None and holder.oldest_seconds < EMERGENCY_AGE:
        how = (
            f"shorten the interval in this statement, because none is {EMERGENCY_AGE_IN_WORDS} old"
        )
    return (f" To free slots now, {how}: ", Statement(sql.statement))


def _advise_on_holder(holder: Holder, protection: Protection | None, wording: Wording) -> Prose:
    """Say how the reaper can end the sessions of a group that no rule condemns."""
    if protection is None and holder.is_untracked:
        return (" No rule can match them, because track_activities is off. Turn it on.",)
    if protection is None:
        return (f" {wording.add_rule}",)
    by = Name(printable(protection.by, 90))
    if protection.can_be_lifted:
        return (" They are protected (", by, "). ", wording.name_role)
    return (" They are protected (", by, f"): {advise_on_protection(protection, wording)}.")


def _has_result(holder: Holder, report: TargetReport) -> bool:
    """Return whether a rule condemns sessions of this group already."""
    group = (holder.application, holder.role, holder.state)
    sessions = (result.decision.session for result in report.results)
    return any((s.application, s.role, s.state.value) == group for s in sessions)


_TRY_AGAIN: Final = (
    'Invoke the function with {"check": true}: it shows the next error, or that the configuration is'
    " valid. The next scheduled run then works again."
)


def _begin_with_words(hint: Prose) -> Prose:
    if hint and isinstance(hint[0], Statement):
        return ("As a superuser or the master user, run: ", *hint)
    return hint


def _list_target_steps(target: TargetDigest, report: Report, wording: Wording) -> Iterator[Prose]:
    yield from list_blocker_steps(target.report, wording)
    yield from list_protected_steps(target.report, wording)
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
        yield _explain_lingering(groups[Outcome.LINGERING], wording)
    if groups[Outcome.DENIED]:
        yield (_DENIED,)
    leaks = [each for outcome in _LEAKS for each in groups[outcome]] or groups[Outcome.SPARED]
    if groups[Outcome.WOULD_TERMINATE]:
        yield (_explain_would_terminate(report.mode, wording),)
    if leaks and wording.sees_all:  # a fleet's leaks are one step for all
        yield _explain_leaks(sorted(leaks, key=lambda group: -group.count))
    if target.report.is_crowded and not target.report.is_exhausted:
        yield _explain_holders(target.report, wording)
    is_going_on = target.report.status is TargetStatus.OK and report.mode is Mode.ENFORCE
    if groups[Outcome.SPARED] and is_going_on:
        yield (wording.continues,)


_DENIED: Final = (
    "The reaper's role may not terminate some of these sessions. The recommendations say what to"
    " grant."
)
_CANCEL_WITHOUT_EFFECT: Final = (
    " still runs its query although it was cancelled. Add escalate_after to the rule, or terminate"
    " the session by hand with pg_terminate_backend."
)
_LEAKS: Final = (
    Outcome.TERMINATED,
    Outcome.CANCELLED,
    Outcome.WOULD_TERMINATE,
    Outcome.LINGERING,
    Outcome.DENIED,
)


_MOST_CULPRITS: Final = 3


def _explain_would_terminate(mode: Mode, wording: Wording) -> str:
    enforce = wording.enforce if mode is Mode.OBSERVE else wording.enforce_all
    return (
        f"If the sessions that would be terminated are leaks, {enforce}. Otherwise protect them in the"
        " policy."
    )


def _explain_lingering(groups: Sequence[Group], wording: Wording) -> Prose:
    for group in groups:
        rule = group.oldest.rule
        if rule is not None and rule.action is Action.CANCEL and rule.escalate_after is None:
            return (*_name_culprit(group), _CANCEL_WITHOUT_EFFECT)
    not_exited = (
        f" was signalled but has not exited. If it is still there {wording.later}, stop its client; if"
        " that does not help, restart the server."
    )
    return (*_name_culprit(groups[0]), not_exited)


def _explain_leaks(groups: Sequence[Group]) -> Prose:
    """Recommend to find out why applications leak sessions; the largest group comes first."""
    culprits = {(group.application, group.role): group for group in reversed(groups)}
    first, *others = reversed(culprits.values())
    if others:
        names = join_prose(map(_name_culprit, [first, *others][:_MOST_CULPRITS]), ", ")
        more = len(culprits) - _MOST_CULPRITS
        rest = f" and {more} more groups" if more > 0 else ""
        return ("Find out why these leak sessions: ", *names, f"{rest}.")
    match first.oldest.session.state:
        case State.ACTIVE:
            problem = " runs for so long."
        case State.IDLE:
            problem = " keeps idle sessions, and limit the size of its pool."
        case _:
            problem = " leaves transactions open."
    query = (" Last statement: ", Statement(first.query)) if first.query else ()
    return ("Find out why ", *_name_culprit(first), problem, *query)


def _name_culprit(group: Group) -> Prose:
    tags = (", ", Name(group.tags)) if group.tags else ()
    return (Name(group.application), " (", *name_role(group.oldest.session.role), *tags, ")")
