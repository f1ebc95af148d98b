"""The summaries of typical situations in each form, kept as files so that changes can be reviewed.

`python -m tests.summaries` (`make summaries`) regenerates them and the pictures of the README.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from session_reaper.summary.digest import digest_report
from session_reaper.summary.message import summarize

from infra.local.showing import as_email, as_slack, as_svg
from tests.summaries.fleet import FLEET_SITUATIONS
from tests.summaries.situations import NOW, PLACE, SITUATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_PICTURES = _HERE.parents[1] / "docs" / "pictures"
_PICTURED = "a-storm-of-300"


def files() -> Iterator[tuple[Path, str]]:
    """Yield each generated file with its content."""
    digests = {name: digest_report(make(), PLACE) for name, make in SITUATIONS.items()}
    digests |= {name: make() for name, make in FLEET_SITUATIONS.items()}
    for name, digest in digests.items():
        summary = summarize(digest, NOW)
        yield _HERE / f"{name}.email.txt", f"Subject: {summary.subject}\n\n{summary.email}"
        yield _HERE / f"{name}.slack.json", _indent(summary.notification)
        yield _HERE / f"{name}.webhook.json", _indent(summary.webhook)
        if name == _PICTURED:
            email = as_email(summary.subject, summary.email)
            yield _PICTURES / "email.svg", as_svg(email, "email")
            yield _PICTURES / "slack.svg", as_svg(as_slack(summary.notification), "slack")


def _indent(text: str) -> str:
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
