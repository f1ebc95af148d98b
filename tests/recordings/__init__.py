"""Recorded snapshots of real servers, and the verdicts of some policies on them.

`postgresql-<major>.json` is a snapshot of the scene in `scene.py`, as the event {"record": true}
returns it; `postgresql-<major>.txt` has the verdicts of POLICIES on it, as `replay` prints them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from session_reaper.policy.model import read_policy
from session_reaper_cli.replay import describe_verdicts, read_recording

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent
RECORDINGS = sorted(FOLDER.glob("postgresql-*.json"))

LEAK = ["idle in transaction", "idle in transaction (aborted)"]


_IDLE = {"name": "idle-in-transaction", "match": {"state": LEAK, "idle_for": "1ms"}}
_WEDGED = {
    "name": "wedged",
    "match": {"state": "active", "waiting_for_client": True, "query_for": "1ms"},
}
_PRESSURE = {
    "name": "under-pressure",
    "when": {"slots_used": "45%"},
    "until": {"slots_used": "40%"},
    "match": {"state": LEAK, "idle_for": "1ms"},
}


def _leaks_that(name: str, **match: object) -> dict[str, Any]:
    return {"name": name, "match": {"state": LEAK, "idle_for": "1ms", **match}}


POLICIES: dict[str, dict[str, Any]] = {
    # The bundled policy with thresholds that every session reaches.
    "default": {"rules": [_IDLE, _PRESSURE, _WEDGED]},
    "pressure": {"rules": [_PRESSURE]},
    "wedged": {"rules": [_WEDGED]},
    "blockers": {"rules": [_leaks_that("blockers", blocks=1, blocks_for="1ms")]},
    "writers": {"rules": [_leaks_that("writers", holds="xid")]},
    "pins": {"rules": [_leaks_that("pins", pins_vacuum_by=3)]},
    "lockers": {
        "rules": [_leaks_that("lockers", holds="locks")],
        "limits": {"max_terminations": 2, "order": "most_harmful"},
    },
    "breaker": {
        "rules": [
            {
                "name": "runaway",
                "match": {"state": "active", "query_for": "1ms"},
                "action": "cancel",
            },
            {"name": "all", "match": {"state": [*LEAK, "idle"], "connected_for": "1ms"}},
        ],
        "protect": {"applications": ["pool-*"]},
        "limits": {"max_share": "50%"},
    },
}
"""Policies by name, without their `version`."""


def write_verdicts(recording: Path) -> str:
    """Write the verdict of every policy on every session of a recording."""
    return "\n".join(_write_lines(recording))


def _write_lines(recording: Path) -> Iterator[str]:
    for title, document in POLICIES.items():
        yield f"policy {title}"
        policy = read_policy({"version": 1, **document})
        for name, snapshot in read_recording(recording).items():
            yield from describe_verdicts(name, snapshot, policy)
        yield ""
