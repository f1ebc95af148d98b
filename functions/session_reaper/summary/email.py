"""The summary as an email: plain text in 72 columns."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from textwrap import wrap
from typing import Final, NamedTuple

from session_reaper.report.model import Outcome, RoleSetting, TargetReport
from session_reaper.report.text import join_first, printable
from session_reaper.sessions.server_facts import Check
from session_reaper.summary.digest import Digest
from session_reaper.summary.groups import FailureGroup, Group, TargetDigest
from session_reaper.summary.holders import describe_holder, find_remaining_holders
from session_reaper.summary.out_of_reach import describe_protected
from session_reaper.summary.prose import Prose, Statement, name_role, to_plain, to_statement
from session_reaper.summary.wording import Wording

WIDTH: Final = 72  # columns; SQL, a link or a long name may be wider
_MOST_GROUPS: Final = 12  # of one target
_MOST_HOLDERS: Final = 5  # of one target
_MOST_PROTECTED: Final = 5  # groups of one target
_MOST_FAILED: Final = 500  # names of targets with the same failure; a fleet may have thousands
_MOST_ADVICE: Final = 4  # of one target, unless it was checked
_CLIENTS_SAW: Final = (
    "Clients of terminated sessions got error 57P01 (admin_shutdown). Their transactions were rolled"
    " back, so they may connect and try again."
)
_LONGEST_LINE: Final = 990  # bytes of a line of SQL: RFC 5322 allows 998 characters
_LONGEST: Final = 1400  # characters of one paragraph; what to do about a full server takes most
_CUT: Final = "… and {} more, cut. The log has them."
_REST_CUT: Final = "… the rest is cut. The log has it."


def render_email(digest: Digest, most: int, width: int = WIDTH) -> str:
    """Render the whole body in at most `most` bytes of JSON; the least urgent parts are cut."""
    beginning = list(_lay_out(_render_beginning(digest), width))
    ending = list(_lay_out(_render_ending(digest), width))
    left = most - _count_bytes([*beginning, *ending])
    happened = _fit_parts(_list_parts(digest), left, width)
    advised = [_render_advice(t.report, digest.wording) for t in digest.shown if t.report.advice]
    advice = _fit_parts(advised, left - _count_bytes(happened), width)
    return "\n".join(_fit_lines([*beginning, *happened, *advice, *ending], most))


class _Paragraph(NamedTuple):
    """A text to be wrapped, with the indent of its first line and of the later ones."""

    text: str
    first: str
    later: str


_Content = Iterator[str | _Paragraph]
"""Paragraphs, and lines that are not wrapped; generated only while there is room."""


def _lay_out(content: _Content, width: int) -> Iterator[str]:
    for each in content:
        if isinstance(each, str):
            yield each
        else:
            yield from wrap(
                each.text,
                width,
                initial_indent=each.first,
                subsequent_indent=each.later,
                break_long_words=False,
                break_on_hyphens=False,
            )


def _fit_parts(parts: Sequence[_Content], most: int, width: int) -> Sequence[str]:
    """Return as many whole parts as fit."""
    lines: list[str] = []
    left = most - _count_bytes([_CUT.format(len(parts)), ""])
    for index, part in enumerate(parts):
        added = [*_lay_out(part, width), ""]
        left -= _count_bytes(added)
        if left < 0:
            return [*lines, _CUT.format(len(parts) - index), ""]
        lines += added
    return lines


def _fit_lines(lines: Sequence[str], most: int) -> Sequence[str]:
    """Return the lines, or as many whole ones as fit if the beginning and the end are too long."""
    if _count_bytes(lines) <= most:
        return lines
    sizes = accumulate((_count_bytes([line]) for line in lines), initial=_count_bytes([_REST_CUT]))
    fitting = sum(size <= most for size in sizes) - 1
    return [*lines[: max(fitting, 0)], _REST_CUT]


def _count_bytes(lines: Iterable[str]) -> int:
    return sum(len(json.dumps(f"{line}\n", ensure_ascii=False).encode()) for line in lines) + 4


def _render_beginning(digest: Digest) -> _Content:
    yield _to_paragraph(str(digest.verdict))
    yield ""
    if digest.steps:
        yield "What to do"
        for number, step in enumerate(digest.steps, start=1):
            yield from _render_prose(step, f"{number}. ", "   ")
        yield ""
    for note in digest.notes:
        yield _to_paragraph(to_plain(note))
        yield ""


def _list_parts(digest: Digest) -> Sequence[_Content]:
    """List what happened, targets with the same failure together."""
    parts = [_render_failure(failure) for failure in digest.failures]
    parts += [_render_target(target, digest.wording) for target in digest.examined]
    if digest.known:
        known = f"Reported before and not resolved yet: {digest.known.text}"
        parts.append(iter([_to_paragraph(known, "", "  ")]))
    return parts


def _render_failure(failure: FailureGroup) -> _Content:
    names = join_first([printable(target.name, 80) for target in failure.targets], _MOST_FAILED)
    title = f"{failure.status} ({failure.code}): {names}"
    yield _to_paragraph(title, "", "  ", len(names) + _LONGEST)
    yield _to_paragraph(failure.message, "  ")


def _render_target(target: TargetDigest, wording: Wording) -> _Content:
    report = target.report
    yield _to_paragraph(target.headline)
    if report.also:
        names = ", ".join(printable(name, 80) for name in report.also)
        yield _to_paragraph(f"Secret {report.secret}; also the server of {names}", "  ", "    ")
    if report.error:
        yield _to_paragraph(f"Error: {report.error.message}", "  ", "    ")
    if report.checked is not None:
        yield _to_paragraph(_describe_check(report.checked), "  ", "    ")
    for setting in report.applied or ():
        yield from _render_setting(setting)
    for unchanged in report.unchanged:
        subject = "Nothing to set" + (f" for role {unchanged.role}" if unchanged.role else "")
        yield _to_paragraph(f"{subject}: {printable(unchanged.reason)}.", "  ", "    ")
    yield from _render_holders(report)
    for sentence in report.pressure:
        yield _to_paragraph(sentence, "  ", "    ")
    for protected in report.protected_to_report[:_MOST_PROTECTED]:
        yield _to_paragraph(to_plain(describe_protected(protected)), "  ", "    ")
    for group in target.groups[:_MOST_GROUPS]:
        yield from _render_group(group)
    rest = target.groups[_MOST_GROUPS:]
    if rest:
        sessions = sum(group.count for group in rest)
        more = f"… and {len(rest)} more groups with {sessions} sessions. {wording.details}"
        yield _to_paragraph(more, "  ", "    ")


def _render_holders(report: TargetReport) -> _Content:
    holders = find_remaining_holders(report)
    if holders:
        used = (
            report.slots.used if report.used_after is None and report.slots else report.used_after
        )
        yield f"  Largest groups of the {used} sessions that hold slots:"
    for holder in holders[:_MOST_HOLDERS]:
        yield _to_paragraph(to_plain(describe_holder(holder)), "    ", "      ")


def _render_group(group: Group) -> _Content:
    role = to_plain(name_role(group.oldest.session.role))
    head = f"{group.headline}: {group.application} ({role}), oldest {group.age}"
    yield _to_paragraph(head, "  ", "    ")
    yield _to_paragraph(f"{group.rule}: {group.reason}", "    ", "      ")
    if group.tags:
        yield _to_paragraph(f"Tags: {group.tags}", "    ", "      ")
    if group.query:
        yield "    Last statement:"
        yield f"      {group.query}"


def _render_setting(setting: RoleSetting) -> _Content:
    yield from _render_prose((to_statement(setting.sql),), "  ", "  ")
    old = printable(setting.old) if setting.old else "not set"
    yield f"    {setting.result.capitalize()}. Before: {old}"


def _describe_check(check: Check) -> str:
    server, snapshot = check.server, check.snapshot
    tls = "The connection is in plaintext"
    if server.tls is not None:
        verified = "verified" if server.tls.verified else "not verified"
        until = server.tls.certificate_until or "an unknown date"
        tls = f"{server.tls.version} with a certificate that is {verified} and valid until {until}"
    privileges = {
        "see other sessions": snapshot.can_see,
        "terminate them": snapshot.can_signal,
        "use a reserved slot": server.has_reserved_slot,
    }
    can = ", ".join(f"{'can' if held else 'cannot'} {what}" for what, held in privileges.items())
    return f"{tls}. Role {server.role} {can}."


def _render_advice(target: TargetReport, wording: Wording) -> _Content:
    most = len(target.advice) if target.checked else _MOST_ADVICE
    yield _to_paragraph(f"Recommendations for {printable(target.name, 80)}")
    for advice in target.advice[:most]:
        yield _to_paragraph(f"{advice.code}: {advice.message}", "- ", "  ")
        for statement in (advice.sql or "").splitlines():
            yield from _render_prose((to_statement(statement),), "  ", "  ")
    more = len(target.advice) - most
    if more > 0:
        yield f"- and {more} more. {wording.details}"


def _render_ending(digest: Digest) -> _Content:
    report = digest.report
    if digest.links:
        yield "Where to look"
        yield from (f"{name:<10} {url}" for name, url in digest.links.items())
        yield ""
    quiet = f" {digest.quiet} other targets are quiet." if digest.quiet else ""
    if digest.quiet == 1:
        quiet = " 1 other target is quiet."
    problem = f" {report.state_problem}" if report.state_problem else ""
    if report.counts[Outcome.TERMINATED]:
        yield _to_paragraph(_CLIENTS_SAW)
        yield ""
    yield _to_paragraph(
        f"Run {report.run_id}, {digest.wording.mode} {report.mode_label}.{quiet}{problem}"
    )
    for summary in digest.undelivered:
        yield _to_paragraph(f"Not delivered by an earlier run: {summary}", "", "  ")
    if digest.more_undelivered:
        yield f"… and {digest.more_undelivered} more. The log has them."
    yield ""


def _render_prose(prose: Prose, first: str, later: str) -> _Content:
    """Wrap sentences, and give each statement lines of its own, usually one, to be copied."""
    indent = first
    for is_sql, parts in groupby(prose, key=lambda part: isinstance(part, Statement)):
        if is_sql:
            for statement in parts:
                yield from _break_statement(to_plain((statement,)), f"{later}  ")
        else:
            yield _to_paragraph(to_plain(tuple(parts)).strip(), indent, later)
        indent = later


# Blanks outside of quotes do not matter to SQL.
_WORD_OF_SQL: Final = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")


def _break_statement(sql: str, indent: str) -> Iterator[str]:
    """Yield a statement as one line, or as several where mail servers would cut the line."""
    line = indent + sql
    if len(line.encode()) <= _LONGEST_LINE:
        yield line
        return
    line = indent
    for word in _WORD_OF_SQL.findall(sql):
        longer = line + word if line == indent else f"{line} {word}"
        if len(longer.encode()) > _LONGEST_LINE and line != indent:
            yield line
            longer = indent + word
        line = longer
    yield line


def _to_paragraph(
    text: str, first: str = "", later: str | None = None, most: int = _LONGEST
) -> _Paragraph:
    return _Paragraph(printable(text, most), first, first if later is None else later)
