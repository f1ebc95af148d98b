"""The summary that people read as an email: plain text, what happened where on its first line."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from session_reaper.durations import format_duration
from session_reaper.preflight import Check
from session_reaper.report import (
    Fate,
    Outcome,
    Report,
    TargetReport,
    clean,
    headline,
    urgency,
)

MAX_SUBJECT = 99  # characters: SNS takes less than 100
MAX_MESSAGE = 240_000  # bytes of the JSON message: SNS takes 262,144 with everything around it
_LONGEST_REMEDY = 1200  # characters: what to do about a full server takes two sentences and SQL
_NOT_DONE = (Outcome.SPARED, Outcome.ESCAPED)
_MOST_GROUPS = 12  # of one target's victims


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is published."""

    subject: str
    body: str


def summarize(report: Report) -> Summary:
    """The report as people read it."""
    critical = "CRITICAL: " if report.is_critical else ""
    subject = clean(critical + report.summary, MAX_SUBJECT)
    lines = [clean(report.summary), ""]
    footer = f"Run {report.run_id}, mode {report.mode}."
    size = _bytes([*lines, footer])
    targets = sorted(report.targets, key=urgency)
    for index, target in enumerate(targets):
        block = list(_block(target, alone=len(targets) == 1))
        size += _bytes(block)
        if size > MAX_MESSAGE:
            lines += [f"… and {len(targets) - index} more targets, cut: the log has them.", ""]
            break
        lines += block
    return Summary(subject=subject, body="\n".join([*lines, footer, ""]))


def _bytes(lines: Iterable[str]) -> int:
    return sum(len(json.dumps(line, ensure_ascii=False).encode()) for line in lines)


def _block(target: TargetReport, *, alone: bool) -> Iterator[str]:
    if not alone:  # else the summary's first line is the headline
        yield clean(headline(target))
    if target.error:
        if target.slots is not None:
            yield f"  error   {clean(target.error.message)}"
        yield f"  remedy  {clean(target.error.hint, _LONGEST_REMEDY)}"
    if target.checked is not None:
        yield f"  found   {clean(_found(target.checked))}"
    for sentence in target.pressure:
        yield f"  {clean(sentence)}"
    yield from _victims(target.fates)
    for advice in target.advice:
        yield f"  advice  {clean(advice.message)}"
        if advice.sql:
            yield f"          {clean(advice.sql)}"
    yield ""


def _found(check: Check) -> str:
    """What a check says of connection and role, on one line."""
    server, look = check.server, check.look
    tls = "no TLS"
    if server.tls is not None:
        verified = "verified" if server.tls.verified else "not verified"
        until = server.tls.certificate_until or "an unknown day"
        tls = f"{server.tls.version}, certificate {verified}, until {until}"
    rights = {"sees": look.can_see, "signals": look.can_signal}
    rights |= {"has a reserved slot": server.has_reserved_slot}
    said = ", ".join(f"{right}: {'yes' if held else 'no'}" for right, held in rights.items())
    return f"{tls}; role {server.role} {said}"


def _victims(fates: Iterable[Fate]) -> Iterator[str]:
    groups: dict[tuple[str, str, str, str], list[Fate]] = defaultdict(list)
    for fate in fates:
        session = fate.decision.session
        rule = fate.decision.rule.name if fate.decision.rule else ""
        key = (rule, fate.outcome, session.application, session.role)
        groups[key].append(fate)
    # What was done comes before what was not; what is cut is cut from the end.
    largest_first = sorted(groups.items(), key=lambda g: (_NOT_DONE.count(g[0][1]), -len(g[1])))
    for (rule, outcome, application, role), members in largest_first[:_MOST_GROUPS]:
        who = f"{clean(application, 63) or '(no application name)'} as {clean(role, 63)}"
        yield f"  {len(members):>4} {outcome.replace('_', ' ')}: {who}, rule {clean(rule, 63)}"
        yield f"       {_ages(members)}"
        blockers = [member.decision for member in members if member.decision.session.waiters]
        if blockers:  # the report has all of them
            yield f"       {clean(blockers[0].reason)}"
    cut = largest_first[_MOST_GROUPS:]
    if cut:
        sessions = sum(len(members) for _, members in cut)
        yield f"  … and {len(cut)} more groups with {sessions} sessions, cut: the log has them."


def _ages(members: Iterable[Fate]) -> str:
    sessions = [fate.decision.session for fate in members]
    idle = _range(session.idle_seconds for session in sessions)
    connected = _range(session.connected_seconds for session in sessions)
    states = ", ".join(sorted({session.state for session in sessions}))
    return f"{states} for {idle}, connected for {connected}"


def _range(seconds: Iterable[float]) -> str:
    ages = sorted(seconds)
    least, most = format_duration(ages[0]), format_duration(ages[-1])
    return least if least == most else f"{least} to {most}"
