"""The summaries of typical situations in each form, kept as files so that changes can be reviewed.

`python -m tests.summaries` (`make summaries`) regenerates them and the pictures of the README.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from session_reaper.summary.digest import digest_report
from session_reaper.summary.message import summarize

from infra.local.showing import as_email, as_slack, as_svg
from tests.summaries.fleet import FLEET_SITUATIONS
from tests.summaries.situations import NOW, PLACE, SITUATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_reaper.summary.digest import Digest

_HERE = Path(__file__).parent
_PICTURES = _HERE.parents[1] / "docs" / "pictures"
_PICTURED = "a-storm-of-300"

NAMES = (*SITUATIONS, *FLEET_SITUATIONS)
"""Of all situations."""


@cache
def digest_situation(name: str) -> Digest:
    """Return the digest of a situation; that of a fleet takes a tenth of a second."""
    if name in FLEET_SITUATIONS:
        return FLEET_SITUATIONS[name]()
    return digest_report(SITUATIONS[name](), PLACE)


def files(name: str) -> Iterator[tuple[Path, str]]:
    """Yield each generated file of a situation with its content."""
    summary = summarize(digest_situation(name), NOW)
    yield _HERE / f"{name}.email.txt", f"Subject: {summary.subject}\n\n{summary.email}"
    yield _HERE / f"{name}.slack.json", _indent(summary.notification)
    yield _HERE / f"{name}.webhook.json", _indent(summary.webhook)
    if name == _PICTURED:
        email = as_email(summary.subject, summary.email)
        yield _PICTURES / "email.svg", as_svg(email, "email")
        yield _PICTURES / "slack.svg", as_svg(as_slack(summary.notification), "slack")


def _indent(text: str) -> str:
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
