"""The summary in Slack: Amazon Q Developer's notification, an incoming webhook's payload.

Text from outside stands in code spans, where Slack makes no link, mention or emphasis of it. A
header, a thread's name and the text of a push notification are plain text without code spans: there
the characters that begin a link, a mention or an emoji are replaced by similar ones.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final

from session_reaper.report.model import Severity
from session_reaper.report.text import printable, truncate
from session_reaper.summary.digest import Digest
from session_reaper.summary.groups import Group, TargetDigest
from session_reaper.summary.holders import describe_holder, find_remaining_holders
from session_reaper.summary.out_of_reach import describe_protected
from session_reaper.summary.prose import Prose, Statement, name_role

# Limits of Amazon Q on a custom notification, and of Slack on a block, in characters.
_TITLE, _DESCRIPTION, _STEP = 250, 8_000, 350
_HEADER, _SECTION = 150, 3_000
_MOST_FAILED: Final = 5  # names of targets with the same failure
_MOST_GROUPS: Final = 6
_MOST_HOLDERS: Final = 3
_REASON_LENGTH: Final = 200
_CUT: Final = "… the rest is in the log."
_MARKS: Final = {
    Severity.CRITICAL: ":rotating_light:",
    Severity.WARNING: ":warning:",
    Severity.INFO: ":white_check_mark:",
}


def render_notification(digest: Digest, subject: str, day: str) -> str:
    """Render a custom notification of Amazon Q Developer in chat applications, version 1.0.

    `day` is part of the thread's name: the messages of one day about one target are one thread.
    """
    report = digest.report
    thread = digest.shown[0].report.name if len(digest.shown) == 1 else "session-reaper"
    steps = list(map(_render_step, digest.steps))
    short = [step for step in steps if len(step) <= _STEP]
    # A step that is too long is never cut: half a statement would end other sessions.
    long = [f"*What to do*: {step}" for step in steps if len(step) > _STEP]
    return json.dumps(
        {
            "version": "1.0",
            "source": "custom",
            "id": report.run_id,
            "content": {
                "textType": "client-markdown",
                "title": f"{_MARKS[report.severity]} {_quote_code(subject, _TITLE - 30)}",
                "description": _fit_lines(_render_lines(digest, long), _DESCRIPTION),
                **({"nextSteps": short} if short else {}),
                "keywords": [report.severity.value, report.status.value],
            },
            "metadata": {
                "threadId": f"{_replace_markup(printable(thread, 200))} {day}",
                "summary": _quote_code(subject, _TITLE),
                "additionalContext": {"run_id": report.run_id, "mode": report.mode_label},
                "enableCustomActions": False,
            },
        },
        ensure_ascii=False,
    )


def render_webhook_payload(digest: Digest, subject: str) -> str:
    """Render the JSON for an incoming webhook of Slack."""
    steps = [f"{n}. {_render_step(step)}" for n, step in enumerate(digest.steps, start=1)]
    header = truncate(f"{_MARKS[digest.report.severity]} {_replace_markup(subject)}", _HEADER)
    sections = [_fit_lines(_render_lines(digest, ()), _SECTION)]
    if steps:
        sections.append(_fit_lines(["*What to do*", *steps], _SECTION))
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": header, "emoji": True}},
        *({"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in sections),
    ]
    push = truncate(_replace_markup(subject), _TITLE)
    return json.dumps({"text": push, "blocks": blocks}, ensure_ascii=False)


def _render_lines(digest: Digest, steps: Iterable[str]) -> Iterator[str]:
    verdict = digest.verdict
    whole = f"*{verdict.word}*: {_render_prose(verdict.detail)}"
    yield whole if len(whole) < _SECTION / 2 else f"*{verdict.word}*"
    yield from steps
    yield from map(_render_prose, digest.notes)
    for failure in digest.failures:
        names = ", ".join(printable(each.name, 60) for each in failure.targets[:_MOST_FAILED])
        rest = len(failure.targets) - _MOST_FAILED
        more = f" and {rest} more" if rest > 0 else ""
        error = f"{failure.status} ({_quote_code(failure.code)})"
        yield f"{_quote_code(names)}{more}: {error}: {_quote_code(failure.message)}"
    for target in digest.examined:
        yield from _render_target(target, is_alone=len(digest.shown) == 1)
    if digest.known:
        yield f"Reported before and not resolved yet: {_quote_code(digest.known.text)}"
    for summary in digest.undelivered:
        yield f"Not delivered by an earlier run: {_quote_code(summary)}"
    if digest.more_undelivered:
        yield f"… and {digest.more_undelivered} more"
    links = [f"<{url}|{name}>" for name, url in digest.links.items()]
    yield " · ".join([*links, f"{digest.wording.mode} {digest.report.mode_label}"])


def _render_target(target: TargetDigest, *, is_alone: bool) -> Iterator[str]:
    report = target.report
    if not is_alone:  # otherwise the title says it
        yield _quote_code(target.headline)
    if report.error:
        yield f"Error: {_quote_code(printable(report.error.message))}"
    for holder in find_remaining_holders(report)[:_MOST_HOLDERS]:
        yield f"• Holds slots: {_render_prose(describe_holder(holder))}"
    for protected in report.protected_to_report[:_MOST_HOLDERS]:
        yield f"• {_render_prose(describe_protected(protected))}"
    yield from map(_render_group, target.groups[:_MOST_GROUPS])
    rest = target.groups[_MOST_GROUPS:]
    if rest:
        yield f"… and {len(rest)} more groups with {sum(g.count for g in rest)} sessions"
    for advice in report.advice[:1]:
        more = f" ({len(report.advice) - 1} more in the email)" if report.advice[1:] else ""
        yield f"Recommendation: {_quote_code(printable(advice.message))}{more}"


def _render_group(group: Group) -> str:
    reason = _quote_code(truncate(group.reason, _REASON_LENGTH))
    tags = f". Tags: {_quote_code(group.tags)}" if group.tags else ""
    role = _render_prose(name_role(group.oldest.session.role))
    query = f". Last statement: {_quote_code(group.query)}" if group.query else ""
    return (
        f"• *{group.headline}*: {_quote_code(group.application)} ({role}),"
        f" oldest {group.age}. Rule {_quote_code(group.rule)}: {reason}{tags}{query}"
    )


def _fit_lines(lines: Iterable[str], most: int) -> str:
    """Join as many whole lines as fit."""
    text: list[str] = []
    size = len(_CUT)
    for line in lines:
        size += len(line) + 1
        if size > most:
            return "\n".join([*text, _CUT])
        text.append(line)
    return "\n".join(text)


def _render_prose(prose: Prose) -> str:
    """Put names and statements into code spans, and make no markup of the rest."""
    return "".join(
        _replace_markup(part) if isinstance(part, str) else _quote_code(part.text) for part in prose
    )


def _render_step(step: Prose) -> str:
    """Render a step; in a long one each statement has a line of its own, to be copied."""
    rendered = _render_prose(step)
    if len(rendered) <= _STEP:
        return rendered
    parts = groupby(step, key=lambda part: part if isinstance(part, Statement) else None)
    return "\n".join(_render_prose(tuple(part)).strip() for _, part in parts)


def _quote_code(text: str, most: int = _SECTION) -> str:
    """Quote a text in a code span of at most `most` characters."""
    while len(span := _to_code_span(text)) > most:
        text = truncate(text, len(text) - max(1, (len(span) - most) // 5))
    return span


def _to_code_span(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"`{escaped.replace('`', _APOSTROPHE)}`"


_APOSTROPHE: Final = "\u2019"  # instead of a backtick, which would end a code span
# Similar characters instead of those that are markup in Slack.
_SIMILAR: Final = {"<": "\u2039", ">": "\u203a", "&": "\uff06", ":": "\u2236", "@": "\uff20"}
_MARKUP: Final = re.compile(r"[<>&]|:(?=//|[\w+'-]+:)|@(?=channel|here|everyone)")


def _replace_markup(text: str) -> str:
    """Replace what would be a link, a mention or an emoji in text without code spans."""
    return _MARKUP.sub(lambda found: _SIMILAR[found[0]], text)
