"""One line on a target or a run."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Mode
from session_reaper.report.model import Outcome, Report, RoleSetting, TargetReport, TargetStatus
from session_reaper.report.text import printable
from session_reaper.sessions.server_facts import Check
from session_reaper.sessions.session import Slots

_MOST_HEADLINES = 3
_PHRASES = {
    Outcome.TERMINATED: "terminated",
    Outcome.CANCELLED: "cancelled",
    Outcome.WOULD_TERMINATE: "would be terminated",
    Outcome.LINGERING: "lingering",
    Outcome.DENIED: "denied",
    Outcome.ESCAPED: "escaped",
    Outcome.SPARED: "spared",
}


_WHERE = re.compile(
    r"^(connecting|securing the connection|logging in) to \S+: "
)  # a subject is short, the body has it


def write_headline(target: TargetReport) -> str:
    """What happened on one target, on one line."""
    name = f"{target.name} (reader)" if target.reader else target.name
    if target.slots is None:
        what = _WHERE.sub("", target.error.message) if target.error else "nothing is known"
        return printable(f"{name}: {target.status}, {what}")
    counts = [(target.count(outcome), phrase) for outcome, phrase in _PHRASES.items()]
    said = [f"{number} {phrase}" for number, phrase in counts if number]
    if said:
        number, phrase = said[0].split(" ", 1)
        said[0] = f"{number} session{'' if number == '1' else 's'} {phrase}"
    elif target.recorded is not None:
        said = ["recorded"]
    elif target.checked is not None:
        said = [_format_check(target.checked, len(target.advice))]
    elif target.status is TargetStatus.OK and not target.recovered and target.applied is None:
        said = ["nothing to terminate"]
    if target.applied is not None:
        said.insert(0, _format_settings(target.applied))
    if target.recovered:
        ended = (f"{e.kind} for {format_duration(e.seconds)}" for e in target.recovered)
        said.append(f"recovered ({', '.join(ended)})")
    if target.status is not TargetStatus.OK:
        said.insert(0, str(target.status))
    if target.fallback_secret is not None:
        said.append("signed in by the fallback secret")
    said.append(_format_slots(target.slots, target.used_after))
    return printable(f"{name}: {', '.join(said)}")


def _format_settings(settings: Iterable[RoleSetting]) -> str:
    counts = Counter(setting.result for setting in settings)
    said = [f"{n} setting{'' if n == 1 else 's'} {result}" for result, n in counts.items()]
    return ", ".join(said) or "nothing to apply"


def _format_check(check: Check, shortcomings: int) -> str:
    what = f"{check.server.provider} PostgreSQL {check.server.version}"
    return f"checked {what}, {shortcomings or 'nothing'} to mend"


def _format_slots(slots: Slots, used_after: int | None) -> str:
    """Slots used of those that ordinary roles can use, before and, where it changed, after."""
    before = str(slots)
    if used_after is None or used_after == slots.used:
        return before
    return f"{before} → {used_after}/{slots.usable}"


def write_summary_line(report: Report) -> str:
    """What happened where, on one line: trouble first, then by sessions concerned."""
    if report.mode is Mode.OFF:
        return "mode is off: no target was looked at"
    if not report.targets:
        return "no targets"
    shown, known = report.split_new_and_known()
    if not any(target.issues or target.should_notify for target in shown):
        shown = shown[:1]
    headlines = [write_headline(target) for target in shown if target.slots is not None]
    unreached = [target for target in shown if target.slots is None]
    if len(unreached) == 1:
        headlines.insert(0, write_headline(unreached[0]))
    elif unreached:  # one cause, mostly
        names = ", ".join(printable(target.name, 80) for target in unreached[:_MOST_HEADLINES])
        more = ", …" if len(unreached) > _MOST_HEADLINES else ""
        lost = f"{len(unreached)} of {len(report.targets)} targets not reached ({names}{more})"
        headlines.insert(0, lost)
    quiet = len(report.targets) - len(shown) - len(known)
    said = [
        *headlines[:_MOST_HEADLINES],
        *_format_count(len(headlines[_MOST_HEADLINES:]), "more with news"),
        *_format_count(len(known), "told before"),
        *_format_count(len(report.undelivered), "not delivered before"),
        *_format_count(quiet, "quiet"),
    ]
    return "; ".join(said)


def _format_count(number: int, what: str) -> Iterator[str]:
    if number:
        yield f"{number} {what}"
