"""Renders a summary for the terminal as an email and as a message in Slack."""

import html
import io
import json
import re

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

WIDTH = 80  # columns
_MARKUP = re.compile(
    r"`(?P<code>[^`\n]*)`|\*(?P<bold>[^*\n]+)\*|<(?P<url>[^|>]+)\|(?P<link>[^>]+)>"
)
_EMOJI = {":rotating_light:": "🚨", ":warning:": "⚠️", ":white_check_mark:": "✅"}


def as_email(subject: str, body: str) -> RenderableType:
    """Render an email in a plain-text reader, with long links cut."""
    lines = [line if len(line) < WIDTH else f"{line[: WIDTH - 8]}…" for line in body.split("\n")]
    text = Text("\n".join(lines).rstrip(), no_wrap=True)
    return Panel(
        Group(Text(subject, "bold"), Rule(style="dim"), text),
        title=Text("an email from session-reaper", "bold"),
        title_align="left",
        width=WIDTH,
    )


def as_slack(notification: str) -> RenderableType:
    """Render the message that Amazon Q Developer posts to a Slack channel."""
    document = json.loads(notification)
    content = document["content"]
    title = content["title"]
    for name, emoji in _EMOJI.items():
        title = title.replace(name, emoji)
    steps = [
        Text(f"{n}. ") + _to_styles(step) for n, step in enumerate(content.get("nextSteps", []), 1)
    ]
    return Panel(
        Group(
            Text("Amazon Q Developer  APP", style="dim"),
            _to_styles(title, "bold"),
            _to_styles(content["description"]),
            *([Text("Next steps", style="bold"), *steps] if steps else []),
            Text(f"thread: {document['metadata']['threadId']}", style="dim"),
        ),
        title=Text("# database-alerts", "bold"),
        title_align="left",
        width=WIDTH,
    )


def _to_styles(text: str, style: str = "") -> Text:
    """Replace Slack's markup by styles."""
    marked = Text(style=style)
    position = 0
    for match in _MARKUP.finditer(text):
        marked.append(html.unescape(text[position : match.start()]))
        if match["code"] is not None:
            marked.append(html.unescape(match["code"]), "magenta")
        elif match["bold"] is not None:
            marked.append(html.unescape(match["bold"]), "bold")
        else:
            marked.append(html.unescape(match["link"]), "underline cyan")
        position = match.end()
    marked.append(html.unescape(text[position:]))
    return marked


def as_svg(what: RenderableType, title: str) -> str:
    """Render it as an SVG picture."""
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(what)
    return console.export_svg(title=title, unique_id=title)
