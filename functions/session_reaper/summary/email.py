"""The summary as an email: plain text in 72 columns."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from textwrap import wrap

from session_reaper.policy.durations import format_duration
from session_reaper.report.headline import write_headline
from session_reaper.report.model import Outcome, Report, TargetReport
from session_reaper.report.text import printable
from session_reaper.sessions.server_facts import Check
from session_reaper.settings import FunctionLocation
from session_reaper.summary.console_links import link_to_console
from session_reaper.summary.digest import (
    FailureGroup,
    Group,
    group_failures,
    group_sessions,
    join_names,
    list_steps,
    write_verdict,
)

WIDTH = 72  # columns; a link or a long name may be wider
_MOST_GROUPS = 12  # of one target's
_MOST_ADVICE = 4  # of one target's, unless it is a check's
_LEAST = 8  # columns of a name
_LONGEST = 1400  # characters of one paragraph: what to do about a full server takes so many
_CUT = "… and {} more, cut: the log has them."


def render_email(report: Report, place: FunctionLocation | None, most: int) -> str:
    """The whole body, in `most` bytes of JSON: of too much the less urgent is cut."""
    shown, known = report.split_new_and_known()
    quiet = len(report.targets) - len(shown) - len(known)
    beginning = [*_wrap(write_verdict(report)), ""]
    to_do = list(_render_steps(report))
    ending = list(_render_ending(report, place, quiet))
    left = most - _count_bytes([*beginning, *to_do, *ending])
    found = _fit_parts(_render_targets(shown, known), left)
    advice = _fit_parts(
        [partial(_render_advice, t) for t in shown if t.advice], left - _count_bytes(found)
    )
    return "\n".join([*beginning, *found, *to_do, *advice, *ending])


_Part = Callable[[], Iterable[str]]
"""Lines of the email, made when it is known that there is room."""


def _fit_parts(parts: Sequence[_Part], most: int) -> Sequence[str]:
    """As many whole parts as fit."""
    lines: list[str] = []
    left = most - _count_bytes([_CUT.format(len(parts)), ""])
    for index, part in enumerate(parts):
        added = [*part(), ""]
        left -= _count_bytes(added)
        if left < 0:
            return [*lines, _CUT.format(len(parts) - index), ""]
        lines += added
    return lines


def _count_bytes(lines: Iterable[str]) -> int:
    return sum(len(json.dumps(f"{line}\n", ensure_ascii=False).encode()) for line in lines) + 4


def _render_targets(
    shown: Sequence[TargetReport], known: Sequence[TargetReport]
) -> Sequence[_Part]:
    """What happened on each, those alike together."""
    unreached = [target for target in shown if target.slots is None and target.error]
    parts: list[_Part] = [
        partial(_render_failure, trouble) for trouble in group_failures(unreached)
    ]
    parts += [partial(_render_target, t) for t in shown if t.slots is not None or not t.error]
    if known:
        told = f"Told before, and still so: {join_names(known)}"
        parts.append(partial(_wrap, told, "", "  "))
    return parts


def _render_failure(trouble: FailureGroup) -> Iterator[str]:
    told = ", ".join(printable(target.name, 80) for target in trouble.targets)
    yield from _wrap(f"{trouble.what}: {told}", "", "  ", len(told) + _LONGEST)
    yield from _wrap(trouble.message, "  ")


def _render_steps(report: Report) -> Iterator[str]:
    found = list_steps(report)
    if found:
        yield "WHAT TO DO"
        for number, step in enumerate(found, start=1):
            yield from _wrap(step, f"{number}. ", "   ")
        yield ""


def _render_ending(report: Report, place: FunctionLocation | None, quiet: int) -> Iterator[str]:
    found = link_to_console(place, report.run_id)
    if found:
        yield "WHERE TO LOOK"
        yield from (f"{link.name:<10} {link.url}" for link in found)
        yield ""
    others = "1 other target is quiet." if quiet == 1 else f"{quiet} other targets are quiet."
    footer = f"Run {report.run_id}, mode {report.mode}. {others if quiet else ''}"
    yield from _wrap(f"{footer} {report.memory_problem}")
    for summary in report.undelivered:
        yield from _wrap(f"Not delivered before: {summary}", "", "  ")
    yield ""


def _render_target(target: TargetReport) -> Iterator[str]:
    yield from _wrap(write_headline(target))
    if target.error:
        yield from _wrap(target.error.message, "  error  ", "         ")
    if target.checked is not None:
        yield from _wrap(_describe_check(target.checked), "  found  ", "         ")
    for setting in target.applied or ():
        yield f"  {printable(setting.sql, _LONGEST)}"
        done = "done" if setting.done else "not done"
        yield f"    {done}; before: {printable(setting.old or 'not set')}"
    for sentence in target.pressure:
        yield from _wrap(sentence, "  ")
    found = group_sessions(target.results)
    shown = found[:_MOST_GROUPS]
    yield from _render_table(shown)
    rest = found[_MOST_GROUPS:]
    if rest:
        sessions = sum(group.count for group in rest)
        yield f"  … and {len(rest)} more groups with {sessions} sessions: the log has them."
    firsts = {group.outcome: group for group in reversed(shown)}  # one of each outcome
    for outcome in reversed(firsts):
        yield from _wrap(
            f"{_outcome_words(outcome)}: {firsts[outcome].oldest.reason}", "  ", "    "
        )
    if shown:
        yield from _wrap(f"last statement: {shown[0].query}", "  ", "    ")


def _render_table(found: Sequence[Group]) -> Iterator[str]:
    tables = [
        [_table_head(outcome), *map(_table_cells, members)]
        for outcome, members in groupby(found, key=lambda group: group.outcome)
    ]
    widths = _fit_columns([row for rows in tables for row in rows])
    for rows in tables:
        for row in rows:
            yield _render_row(row, widths)


def _outcome_words(outcome: Outcome) -> str:
    return outcome.replace("_", " ")


def _table_head(outcome: Outcome) -> Sequence[str]:
    return (_outcome_words(outcome), "application@network", "role", "count", "oldest")


def _table_cells(group: Group) -> Sequence[str]:
    return (group.rule, group.who, group.role, str(group.count), format_duration(group.seconds))


def _fit_columns(rows: Sequence[Sequence[str]]) -> Sequence[int]:
    """Of each column, such that all fit: the widest gives way."""
    if not rows:
        return ()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + 2 * len(widths) > WIDTH:
        widest = widths.index(max(widths[:3]))
        if widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
    return widths


def _render_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    cut = [c if len(c) <= w else f"{c[: w - 1]}…" for c, w in zip(cells, widths, strict=True)]
    left = [f"{cell:<{width}}" for cell, width in zip(cut[:3], widths[:3], strict=True)]
    right = [f"{cell:>{width}}" for cell, width in zip(cut[3:], widths[3:], strict=True)]
    return "  " + "  ".join([*left, *right])


def _render_advice(target: TargetReport) -> Iterator[str]:
    most = len(target.advice) if target.checked else _MOST_ADVICE
    yield from _wrap(f"ADVICE on {printable(target.name, 80)} (no haste)")
    for advice in target.advice[:most]:
        yield from _wrap(advice.message, "- ", "  ")
        # Each statement in one piece, to be copied: a name in it may hold spaces.
        for statement in (advice.sql or "").splitlines():
            whole = printable(statement, _LONGEST) == statement
            yield f"    {statement if whole else '(SQL that is whole in the report only)'}"
    more = len(target.advice) - most
    if more > 0:
        yield f"- and {more} more: the run's report has them."


def _describe_check(check: Check) -> str:
    """What a check says of connection and role."""
    server, look = check.server, check.snapshot
    tls = "no TLS"
    if server.tls is not None:
        verified = "verified" if server.tls.verified else "not verified"
        until = server.tls.certificate_until or "an unknown day"
        tls = f"{server.tls.version}, certificate {verified}, until {until}"
    rights = {"sees": look.can_see, "signals": look.can_signal}
    rights |= {"has a reserved slot": server.has_reserved_slot}
    said = ", ".join(f"{right}: {'yes' if held else 'no'}" for right, held in rights.items())
    return f"{tls}; role {server.role} {said}"


def _wrap(
    text: str, first: str = "", later: str | None = None, most: int = _LONGEST
) -> Iterator[str]:
    indent = first if later is None else later
    yield from wrap(
        printable(text, most).replace("`", ""),  # a mark for chats
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
