"""One-line descriptions of a target and of a run."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Mode
from session_reaper.report.model import (
    IssueKey,
    IssueKind,
    Outcome,
    Recovery,
    Report,
    RoleSetting,
    TargetReport,
    TargetStatus,
)
from session_reaper.report.text import printable
from session_reaper.sessions.session import Slots

_MOST_HEADLINES: Final = 3
OUTCOME_PHRASES: Final = {
    Outcome.TERMINATED: "terminated",
    Outcome.CANCELLED: "cancelled",
    Outcome.WOULD_TERMINATE: "would be terminated",
    Outcome.LINGERING: "lingering",
    Outcome.DENIED: "denied",
    Outcome.ESCAPED: "escaped",
    Outcome.SPARED: "spared",
}
_ISSUES: Final = {
    IssueKind.FAILED: "error {}",
    IssueKind.FULL: "server full",
    IssueKind.BREAKER: "breaker tripped",
    IssueKind.CONFIGURATION: "invalid configuration",
    IssueKind.SECRET: "secret {}",
    IssueKind.FALLBACK: "only the fallback secret worked",
    IssueKind.EXHAUSTED: "every slot in use",
    IssueKind.LINGERING: "session {} lingering",
    IssueKind.BLOCKER: "blocker out of reach ({})",
    IssueKind.PROTECTED: "sessions protected from a rule ({})",
}


def write_headline(target: TargetReport) -> str:
    """Write what happened on one target."""
    name = f"{target.name} (reader)" if target.reader else target.name
    if target.status is TargetStatus.PAUSED:
        return printable(f"{name}: paused, not woken")
    if target.slots is None and (target.error or not target.results):
        problem = target.error.cause if target.error else "no further information"
        if target.recovered:
            problem = f"recovered ({write_recoveries(target.recovered)})"
        return printable(f"{name}: {target.status}, {problem}")
    parts = list(_write_results(target))
    if target.applied is not None:
        parts.insert(0, write_settings(target.applied))
    if target.recovered:
        parts.append(f"recovered ({write_recoveries(target.recovered)})")
    if target.status is not TargetStatus.OK:
        parts.insert(0, str(target.status))
    parts += [f"secret {each.name} failed" for each in target.failed_secrets[:1]]
    parts += [_write_issue(key) for key in target.reported_issues]
    if target.fallback_secret is not None:
        parts.append("connected with the fallback secret")
    if target.slots is not None:  # at a hub it may be unknown
        parts.append(_write_slots(target.slots, target.used_after))
    return printable(f"{name}: {', '.join(parts)}")


def _write_results(target: TargetReport) -> Iterator[str]:
    counts = [(target.counts[outcome], phrase) for outcome, phrase in OUTCOME_PHRASES.items()]
    found = [(number, phrase) for number, phrase in counts if number]
    if found:
        number, phrase = found[0]
        yield f"{count_of(number, 'session')} {phrase}"
        yield from (f"{number} {phrase}" for number, phrase in found[1:])
    elif target.recorded is not None:
        yield "recorded"
    elif target.explained is not None:
        yield f"{count_of(len(target.explained), 'session')} explained"
    elif target.blockers or target.protected_to_report:
        pass
    elif target.checked is not None:
        server = target.checked.server
        issues = count_of(len(target.advice), "issue")
        yield f"checked {server.provider} PostgreSQL {server.version}, {issues}"
    elif target.status is TargetStatus.OK and not target.recovered and target.applied is None:
        yield f"{'every slot in use, ' if target.is_exhausted else ''}nothing to terminate"
    yield from _write_out_of_reach(target)


def _write_out_of_reach(target: TargetReport) -> Iterator[str]:
    """Count the sessions that a run could not help or end, whatever else it did."""
    if target.explained is not None:
        return
    if target.blockers:
        waiting = {waiter.pid for blocker in target.blockers for waiter in blocker.waiters}
        yield f"{len(waiting)} waiting for a blocker out of reach"
    elif target.protected_to_report:
        number = sum(group.count for group in target.protected_to_report)
        yield f"{count_of(number, 'session')} matched but protected"


def write_recoveries(recoveries: Iterable[Recovery]) -> str:
    """Write which issues have ended, and how long they lasted."""
    return ", ".join(
        f"{_write_issue(r.issue)} for {format_duration(r.seconds)}" for r in recoveries
    )


def _write_issue(key: IssueKey) -> str:
    return _ISSUES.get(key.kind, key.kind.value).format(", ".join(key.detail))


def write_settings(settings: Iterable[RoleSetting]) -> str:
    """Count settings by what happened to them."""
    counts = Counter(setting.result for setting in settings)
    parts = [f"{count_of(number, 'setting')} {result}" for result, number in counts.items()]
    return ", ".join(parts) or "nothing to apply"


def _write_slots(slots: Slots, used_after: int | None) -> str:
    """Write the used slots of those for ordinary roles, before and, if that changed, after."""
    has_changed = used_after not in (None, slots.used)
    return f"{slots} → {used_after}/{slots.usable}" if has_changed else str(slots)


def write_summary_line(report: Report) -> str:
    """Write what happened where: issues first, then by the number of sessions."""
    if report.configuration_error:
        return printable(
            f"nothing is terminated, the configuration is invalid: {report.configuration_error}"
        )
    if report.mode is Mode.OFF:
        return "mode is off: no target was examined"
    if not report.targets:
        return "no targets"
    shown, known = report.new_and_known
    if not any(target.issues or target.should_notify for target in shown):
        shown = shown[:1]
    headlines = [write_headline(target) for target in shown if target.slots is not None]
    unreached = [target for target in shown if target.slots is None]
    if len(unreached) == 1:
        headlines.insert(0, write_headline(unreached[0]))
    elif unreached:  # usually for one reason
        names = ", ".join(printable(target.name, 80) for target in unreached[:_MOST_HEADLINES])
        more = ", …" if len(unreached) > _MOST_HEADLINES else ""
        number = f"{len(unreached)} of {report.number_of_targets} targets not reached"
        if any(target.stack_problem is not None for target in unreached):
            number = f"{len(unreached)} stacks or targets with issues"
        headlines.insert(0, f"{number} ({names}{more})")
    listed = {id(target) for target in (*shown, *known)}
    others = [target for target in report.targets if id(target) not in listed]
    paused = sum(target.status is TargetStatus.PAUSED for target in others)
    counts = (
        (len(headlines[_MOST_HEADLINES:]), "more to report"),
        (len(known), "with known issues"),
        (len(report.undelivered) + report.undelivered_before, "undelivered from earlier runs"),
        (paused, "paused"),
        (len(others) - paused, "quiet"),
    )
    numbers = [f"{number} {what}" for number, what in counts if number]
    return "; ".join([*headlines[:_MOST_HEADLINES], *numbers])


def count_of(number: int, noun: str) -> str:
    """Write a number with its noun.

    >>> count_of(1, "session"), count_of(2, "session"), count_of(0, "issue")
    ('1 session', '2 sessions', 'no issues')
    """
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
