"""The summary in Slack: a notification for Amazon Q Developer, and a payload for an incoming webhook.

Whatever comes from outside stands in code spans, where Slack makes no link, mention or emphasis of it.
A header, a thread's name and the text of a push notification are plain text, without code spans: there
the characters that begin a link, a mention or an emoji are replaced by ones that look the same.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from session_reaper.policy.durations import format_duration
from session_reaper.report.headline import write_headline
from session_reaper.report.model import Report, TargetReport
from session_reaper.report.text import printable
from session_reaper.settings import FunctionLocation
from session_reaper.summary.console_links import link_to_console
from session_reaper.summary.digest import (
    Group,
    group_failures,
    group_sessions,
    join_names,
    list_steps,
    to_code_span,
    write_verdict,
)

# Amazon Q's limits on a custom notification, and Slack's on a block: in characters.
_TITLE, _DESCRIPTION, _STEP = 250, 8_000, 350
_HEADER, _SECTION = 150, 3_000
_MOST_GROUPS = 6
_CUT = "… the rest is in the log."
_MARKS = {"critical": ":rotating_light:", "warning": ":warning:", "info": ":white_check_mark:"}


def render_notification(
    report: Report, subject: str, place: FunctionLocation | None, day: str
) -> str:
    """The JSON of Amazon Q Developer in chat applications: its custom notification, version 1.0.

    `day` goes into the thread's name: a day's news on one target is one thread.
    """
    shown, _ = report.split_new_and_known()
    thread = shown[0].name if len(shown) == 1 else "session-reaper"
    title = f"{_MARKS[report.severity]} {_code_span(subject, _TITLE - 30)}"
    to_do = [_escape(step) for step in list_steps(report)]
    short = [step for step in to_do if len(step) <= _STEP]
    # What is too long for a step is never cut: half a statement ends other sessions than the whole.
    long = [f"*To do*: {step}" for step in to_do if len(step) > _STEP]
    return json.dumps(
        {
            "version": "1.0",
            "source": "custom",
            "id": report.run_id,
            "content": {
                "textType": "client-markdown",
                "title": title,
                "description": _fit_lines(_render_lines(report, place, long), _DESCRIPTION),
                **({"nextSteps": short} if short else {}),
                "keywords": [report.severity, report.status.value],
            },
            "metadata": {
                "threadId": f"{_replace_markup(printable(thread, 200))} {day}",
                "summary": _code_span(subject, _TITLE),
                "additionalContext": {"run_id": report.run_id, "mode": str(report.mode)},
                "enableCustomActions": False,
            },
        },
        ensure_ascii=False,
    )


def render_webhook_payload(report: Report, subject: str, place: FunctionLocation | None) -> str:
    """The JSON that an incoming webhook of Slack takes."""
    to_do = [f"{n}. {_escape(step)}" for n, step in enumerate(list_steps(report), start=1)]
    header = _truncate(f"{_MARKS[report.severity]} {_replace_markup(subject)}", _HEADER)
    texts = [
        _fit_lines(_render_lines(report, place, ()), _SECTION),
        *([_fit_lines(["*What to do*", *to_do], _SECTION)] * bool(to_do)),
    ]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": header, "emoji": True}},
        *({"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in texts),
    ]
    return json.dumps(
        {"text": _truncate(_replace_markup(subject), _TITLE), "blocks": blocks}, ensure_ascii=False
    )


def _render_lines(
    report: Report, place: FunctionLocation | None, to_do: Iterable[str]
) -> Iterator[str]:
    shown, known = report.split_new_and_known()
    word, colon, rest = write_verdict(report).partition(":")
    yield f"*{word}*{colon}{_escape(rest)}"
    yield from to_do
    for trouble in group_failures(target for target in shown if target.slots is None):
        yield f"{_escape(join_names(trouble.targets))} {_code_span(trouble.what)}: {_code_span(trouble.message)}"
    for target in shown:
        if target.slots is not None or not target.error:
            yield from _render_target(target, alone=len(shown) == 1)
    if known:
        yield f"Told before, and still so: {_escape(join_names(known))}"
    for summary in report.undelivered:
        yield f"Not delivered before: {_code_span(summary)}"
    looking = [f"<{link.url}|{link.name}>" for link in link_to_console(place, report.run_id)]
    yield " · ".join([*looking, f"mode {report.mode}"])


def _render_target(target: TargetReport, *, alone: bool) -> Iterator[str]:
    if not alone:  # else the title has it
        yield _code_span(write_headline(target))
    if target.error:
        yield _code_span(printable(target.error.message))
    found = group_sessions(target.results)
    for group in found[:_MOST_GROUPS]:
        yield _render_group(group)
    if found:
        yield f"Why: {_code_span(printable(found[0].oldest.reason))}"
    rest = found[_MOST_GROUPS:]
    if rest:
        yield f"… and {len(rest)} more groups with {sum(g.count for g in rest)} sessions"
    for advice in target.advice[:1]:
        more = f" ({len(target.advice) - 1} more in the email)" if len(target.advice) > 1 else ""
        yield f"Advice: {_code_span(printable(advice.message))}{more}"


def _render_group(group: Group) -> str:
    what = group.outcome.replace("_", " ")
    oldest = format_duration(group.seconds)
    return (
        f"• *{group.count} {what}*: {_code_span(group.who)} as {_code_span(group.role)},"
        f" oldest {oldest}, rule {_code_span(group.rule)}"
    )


def _fit_lines(lines: Iterable[str], most: int) -> str:
    """As many whole lines as fit."""
    text: list[str] = []
    size = len(_CUT)
    for line in lines:
        size += len(line) + 1
        if size > most:
            return "\n".join([*(text or [_truncate(line, most - len(_CUT) - 1)]), _CUT])
        text.append(line)
    return "\n".join(text)


def _code_span(text: str, most: int = _SECTION) -> str:
    """In a code span; `most` characters with it."""
    span = _escape(to_code_span(text))
    while len(span) > most:
        text = text[: len(text) - max(1, (len(span) - most) // 5)]
        span = _escape(to_code_span(f"{text}…"))
    return span


# Of Slack's own characters, those that look the same to people.
_LOOKALIKES = {"<": "\u2039", ">": "\u203a", "&": "\uff06", ":": "\u2236", "@": "\uff20"}
_MARKUP = re.compile(r"[<>&]|:(?=//|[\w+'-]+:)|@(?=channel|here|everyone)")  # URLs, emoji, mentions


def _replace_markup(text: str) -> str:
    """As plain text, where a code span is not one: without a link, a mention or an emoji."""
    return _MARKUP.sub(lambda found: _LOOKALIKES[found[0]], text)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _truncate(text: str, most: int) -> str:
    """The first characters, never ending within an escape."""
    return text if len(text) <= most else re.sub(r"&[a-z]*$", "", text[: most - 1]) + "…"
