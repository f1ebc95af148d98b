"""The summary as an email: plain text in 72 columns."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from textwrap import wrap

from session_reaper.digest import (
    Group,
    Trouble,
    groups,
    links,
    names,
    steps,
    troubles,
    verdict,
)
from session_reaper.durations import format_duration
from session_reaper.preflight import Check
from session_reaper.report import Outcome, Report, TargetReport, clean, headline
from session_reaper.settings import Place

WIDTH = 72  # columns; a link or a long name may be wider
_MOST_GROUPS = 12  # of one target's
_MOST_ADVICE = 4  # of one target's, unless it is a check's
_LEAST = 8  # columns of a name
_LONGEST = 1400  # characters of one paragraph: what to do about a full server takes so many
_CUT = "… and {} more, cut: the log has them."


def email(report: Report, place: Place | None, most: int) -> str:
    """The whole body, in `most` bytes of JSON: of too much the less urgent is cut."""
    shown, known = report.told_apart()
    quiet = len(report.targets) - len(shown) - len(known)
    beginning = [*_wrapped(verdict(report)), ""]
    to_do = list(_to_do(report))
    ending = list(_ending(report, place, quiet))
    left = most - _bytes([*beginning, *to_do, *ending])
    found = _fitting(_targets(shown, known), left)
    advice = _fitting([partial(_advice, t) for t in shown if t.advice], left - _bytes(found))
    return "\n".join([*beginning, *found, *to_do, *advice, *ending])


_Part = Callable[[], Iterable[str]]
"""Lines of the email, made when it is known that there is room."""


def _fitting(parts: Sequence[_Part], most: int) -> Sequence[str]:
    """As many whole parts as fit."""
    lines: list[str] = []
    left = most - _bytes([_CUT.format(len(parts)), ""])
    for index, part in enumerate(parts):
        added = [*part(), ""]
        left -= _bytes(added)
        if left < 0:
            return [*lines, _CUT.format(len(parts) - index), ""]
        lines += added
    return lines


def _bytes(lines: Iterable[str]) -> int:
    return sum(len(json.dumps(f"{line}\n", ensure_ascii=False).encode()) for line in lines) + 4


def _targets(shown: Sequence[TargetReport], known: Sequence[TargetReport]) -> Sequence[_Part]:
    """What happened on each, those alike together."""
    unreached = [target for target in shown if target.slots is None and target.error]
    parts: list[_Part] = [partial(_trouble, trouble) for trouble in troubles(unreached)]
    parts += [partial(_target, t) for t in shown if t.slots is not None or not t.error]
    if known:
        told = f"Told before, and still so: {names(known)}"
        parts.append(partial(_wrapped, told, "", "  "))
    return parts


def _trouble(trouble: Trouble) -> Iterator[str]:
    told = ", ".join(clean(target.name, 80) for target in trouble.targets)
    yield from _wrapped(f"{trouble.what}: {told}", "", "  ", len(told) + _LONGEST)
    yield from _wrapped(trouble.message, "  ")


def _to_do(report: Report) -> Iterator[str]:
    found = steps(report)
    if found:
        yield "WHAT TO DO"
        for number, step in enumerate(found, start=1):
            yield from _wrapped(step, f"{number}. ", "   ")
        yield ""


def _ending(report: Report, place: Place | None, quiet: int) -> Iterator[str]:
    found = links(place, report.run_id)
    if found:
        yield "WHERE TO LOOK"
        yield from (f"{link.name:<10} {link.url}" for link in found)
        yield ""
    others = "1 other target is quiet." if quiet == 1 else f"{quiet} other targets are quiet."
    footer = f"Run {report.run_id}, mode {report.mode}. {others if quiet else ''}"
    yield from _wrapped(f"{footer} {report.memory_problem}")
    for summary in report.untold:
        yield from _wrapped(f"Not delivered before: {summary}", "", "  ")
    yield ""


def _target(target: TargetReport) -> Iterator[str]:
    yield from _wrapped(headline(target))
    if target.error:
        yield from _wrapped(target.error.message, "  error  ", "         ")
    if target.checked is not None:
        yield from _wrapped(_checked(target.checked), "  found  ", "         ")
    for setting in target.applied or ():
        yield f"  {clean(setting.sql, _LONGEST)}"
        done = "done" if setting.done else "not done"
        yield f"    {done}; before: {clean(setting.old or 'not set')}"
    for sentence in target.pressure:
        yield from _wrapped(sentence, "  ")
    found = groups(target.fates)
    shown = found[:_MOST_GROUPS]
    yield from _table(shown)
    rest = found[_MOST_GROUPS:]
    if rest:
        sessions = sum(group.count for group in rest)
        yield f"  … and {len(rest)} more groups with {sessions} sessions: the log has them."
    firsts = {group.outcome: group for group in reversed(shown)}  # one of each outcome
    for outcome in reversed(firsts):
        yield from _wrapped(f"{_words(outcome)}: {firsts[outcome].oldest.reason}", "  ", "    ")
    if shown:
        yield from _wrapped(f"last statement: {shown[0].query}", "  ", "    ")


def _table(found: Sequence[Group]) -> Iterator[str]:
    tables = [
        [_head(outcome), *map(_cells, members)]
        for outcome, members in groupby(found, key=lambda group: group.outcome)
    ]
    widths = _widths([row for rows in tables for row in rows])
    for rows in tables:
        for row in rows:
            yield _row(row, widths)


def _words(outcome: Outcome) -> str:
    return outcome.replace("_", " ")


def _head(outcome: Outcome) -> Sequence[str]:
    return (_words(outcome), "application@network", "role", "count", "oldest")


def _cells(group: Group) -> Sequence[str]:
    return (group.rule, group.who, group.role, str(group.count), format_duration(group.seconds))


def _widths(rows: Sequence[Sequence[str]]) -> Sequence[int]:
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


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    cut = [c if len(c) <= w else f"{c[: w - 1]}…" for c, w in zip(cells, widths, strict=True)]
    left = [f"{cell:<{width}}" for cell, width in zip(cut[:3], widths[:3], strict=True)]
    right = [f"{cell:>{width}}" for cell, width in zip(cut[3:], widths[3:], strict=True)]
    return "  " + "  ".join([*left, *right])


def _advice(target: TargetReport) -> Iterator[str]:
    most = len(target.advice) if target.checked else _MOST_ADVICE
    yield from _wrapped(f"ADVICE on {clean(target.name, 80)} (no haste)")
    for advice in target.advice[:most]:
        yield from _wrapped(advice.message, "- ", "  ")
        # Each statement in one piece, to be copied: a name in it may hold spaces.
        for statement in (advice.sql or "").splitlines():
            whole = clean(statement, _LONGEST) == statement
            yield f"    {statement if whole else '(SQL that is whole in the report only)'}"
    more = len(target.advice) - most
    if more > 0:
        yield f"- and {more} more: the run's report has them."


def _checked(check: Check) -> str:
    """What a check says of connection and role."""
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


def _wrapped(
    text: str, first: str = "", later: str | None = None, most: int = _LONGEST
) -> Iterator[str]:
    indent = first if later is None else later
    yield from wrap(
        clean(text, most).replace("`", ""),  # a mark for chats
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
