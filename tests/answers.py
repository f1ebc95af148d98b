"""Valid answers to snapshot.sql, for tests to change."""

from typing import Any

from session_reaper.postgres.rows import SESSION_COLUMNS

SNAPSHOT: dict[str, Any] = {
    "role": "session_reaper",
    "pid": 1,
    "started": 1,
    "checkpointer": 2,
    "checkpointer_started": 1,
    "taken_at": 2,
    "server_version": 180000,
    "inherits": True,
    "reader": False,
    "max": 100,
    "reserved": 3,
    "used": 5,
    "can_see": True,
    "can_signal": True,
    "untracked": 0,
    "states": None,
    "oldest_idle_in_transaction": 0,
    "sessions": [],
    "waits": None,
}

_MOMENT = "2026-01-15T08:00:00.000001+00:00"
_SESSION: dict[str, Any] = dict.fromkeys(SESSION_COLUMNS) | {
    "pid": 1,
    "backend_start": _MOMENT,
    "state_change": _MOMENT,
    "query_start": _MOMENT,
    "state": "idle",
    "role": "app",
    "database": "db",
    "application": "api",
    "query": "x",
    "idle_seconds": 1,
    "connected_seconds": 1,
    "waiting_for_client": False,
    "superuser": False,
    "replication": False,
    "own_role": False,
    "signalable": True,
}


def session_row(**changes: object) -> list[object]:
    """Return the row of one session in the answer to snapshot.sql."""
    values = _SESSION | changes
    return [values[column] for column in SESSION_COLUMNS]
