"""The answers of a server to each statement, and values that are invalid at most of their places."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from session_reaper.postgres.rows import SESSION_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Place = tuple[str | int, ...]
"""The keys and indexes that lead to a value in an answer."""

_MOMENT: Final = "2026-01-15T08:00:00.000001+00:00"

IDLE_ROW: Final = [
    *(1, _MOMENT, None, _MOMENT, _MOMENT, "idle"),
    *("app", "db", "api", None, "x", None, None),
    *(1, None, 1, None),
    *(False, None, None, None),
    *(False, False, False, True),
    *(None, None, None),
]
"""An idle session, in the order of the snapshot's columns."""

_BLOCKER_ROW: Final = [
    *(17113, _MOMENT, _MOMENT, _MOMENT, _MOMENT, "idle in transaction"),
    *("app", "postgres", "", "127.0.0.1", "SELECT pg_advisory_xact_lock(7)", None, None),
    *(0.285663, 0.286429, 0.301472, None),
    *(False, None, None, None),
    *(False, False, False, True),
    *("Client", "ClientRead", "eA=="),
]

SNAPSHOT: Final[Mapping[str, Any]] = {
    "role": "session_reaper",
    "pid": 1,
    "started": 1796024812562918,
    "checkpointer": 2,
    "checkpointer_started": 1796024812578688,
    "taken_at": 1796024813020920,
    "server_version": 180004,
    "inherits": True,
    "reader": False,
    "max": 100,
    "reserved": 3,
    "used": 5,
    "transient": 0,
    "can_see": True,
    "hidden": 0,
    "can_signal": True,
    "untracked": 0,
    "states": ["idle", "idle in transaction", "active"],
    "oldest_idle_in_transaction": 0.285663,
    "sessions": [_BLOCKER_ROW],
    "lock_waiters": [17118],
    "waits": [[17118, True, "app", "", 0.270048, [17113]]],
}
"""A session that another one waits for; `pid` is that of our own connection."""

EMPTY_SNAPSHOT: Final = {
    **SNAPSHOT,
    "sessions": [],
    "states": None,
    "lock_waiters": None,
    "waits": None,
}
"""No session that a rule could match, and none that waits."""

HOLDERS: Final[Mapping[str, Any]] = {
    "holders": [["api", "app", "10.0.0.0/24", "idle", 3, 7200.5, False, False, False]],
}
"""One group of sessions."""

VERIFICATION: Final[Mapping[str, Any]] = {
    "started": 1796024812562918,
    "checkpointer": 2,
    "checkpointer_started": 1796024812578688,
    "remaining": [],
    "can_see": True,
    "used": 2,
}
"""All signalled sessions are gone."""

FACTS: Final[Mapping[str, Any]] = {
    "version": "18.4",
    "major": 18,
    "provider": "vanilla",
    "role": "session_reaper",
    "superuser": False,
    "inherits": True,
    "connection_limit": 5,
    "granted_reserved": True,
    "reserved_slots": 0,
    "soon": "2026-12-30T07:46:53Z",
    "databases": ["postgres"],
    "timeouts": [["app", "postgres", "statement_timeout", "10s"]],
    "idle": [["checkout", "web", 20]],
    "prepared": [["shop", 12.5]],
    "replication_slots": [["orphan", False, 10_000]],
}
"""The server's facts, with one row in each of its lists."""

# Each JSON type, and what a wrong reader may let pass; as they stand in an answer's text.
BAD_VALUES: Final[Mapping[str, str]] = {
    "null": "null",
    "true": "true",
    "text": '"x"',
    "age as text": '"12.5"',
    "empty text": '""',
    "negative": "-1",
    "fraction": "0.5",
    "400 digits": "1" + "0" * 400,
    "5,000 digits": "9" * 5000,
    "infinite": "1e999",
    "NaN": "NaN",
    "object": "{}",
    "list": "[]",
    "list of lists": "[[[]]]",
    "nested 100,000 times": "[" * 100_000 + "]" * 100_000,
    "lone surrogate": r'"\ud800"',
    "NUL": r'"\u0000"',
    "a megabyte": '"' + "x" * 1_000_000 + '"',
}

# Where PostgreSQL itself may answer one of these, as regular expressions.
_NAMES: Final = r"role|sessions/0/(6|7|8|10|25|26)|waits/0/(2|3)"
_TEXTS: Final = (
    r"role|soon|databases/0|timeouts/0/(0|1|2)|idle/0/(0|1)|prepared/0/0"  # of no set form
)
_ALLOWED: Final[Mapping[str, Mapping[str, str]]] = {
    "snapshot": {
        "null": r"checkpointer|checkpointer_started|sessions|states|states/\d+|lock_waiters|waits|waits/0/(2|3)"
        r"|sessions/0/(2|3|4|6|7|8|9|10|11|12|14|16|17|18|19|20|21|22|23|24|25|26|27)",
        "true": r"can_see|can_signal|reader|inherits|sessions/0/(17|21|22|23|24)|waits/0/1",
        "text": rf"{_NAMES}|states/\d+",
        "age as text": _NAMES,
        "empty text": rf"{_NAMES}|sessions/0/(11|27)",
        "negative": r"sessions/0/(18|19)",
        "fraction": r"oldest_idle_in_transaction|sessions/0/(13|14|15|16)|waits/0/4",
        "list": r"sessions|states|lock_waiters|waits|waits/0/5",
    },
    "holders": {
        "null": r"holders|holders/0/(0|1|2|6|7|8)",
        "true": r"holders/0/(6|7|8)",
        "text": r"holders/0/(0|1|3)",
        "age as text": r"holders/0/(0|1)",
        "empty text": r"holders/0/(0|1)",
        "fraction": r"holders/0/5",
        "list": r"holders",
    },
    "verification": {
        "null": r"checkpointer|checkpointer_started|remaining",
        "true": r"can_see",
        "list": r"remaining",
    },
    "facts": {
        "null": r"connection_limit|databases|timeouts|timeouts/0/(0|1|3)|idle|idle/0/0|prepared"
        r"|replication_slots",
        "true": r"superuser|inherits|granted_reserved|replication_slots/0/1",
        "text": rf"{_TEXTS}|replication_slots/0/0",
        "age as text": rf"{_TEXTS}|version|timeouts/0/3",
        "empty text": _TEXTS,
        "negative": r"replication_slots/0/2",
        "fraction": r"prepared/0/1",
        "list": r"databases|timeouts|idle|prepared|replication_slots",
    },
}


def is_allowed(kind: str, place: Place, name: str) -> bool:
    """Return whether that bad value is a possible one at that place of an answer."""
    return re.fullmatch(_ALLOWED[kind].get(name, "(?!)"), path_of(place)) is not None


def path_of(place: Place) -> str:
    """Write a place with slashes."""
    return "/".join(map(str, place))


def list_places(value: object, path: Place = ()) -> Iterator[Place]:
    """List every place in an answer, inner ones too; of a list of rows the first row's."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from list_places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from list_places(value[0], (*path, 0))
        if path and isinstance(path[-1], int):  # a row: each of its columns
            for index, item in enumerate(value[1:], 1):
                yield from list_places(item, (*path, index))


def replace_at(answer: Mapping[str, Any], place: Place, text: str) -> bytes:
    """Write an answer as JSON with that text at one place."""
    document: Any = deepcopy(dict(answer))
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = "REPLACED"
    return json.dumps(document).replace('"REPLACED"', text).encode()


_IDLE: Final = dict(zip(SESSION_COLUMNS, IDLE_ROW, strict=True))


def session_row(**changes: object) -> list[object]:
    """Return the row of an idle session with some columns changed."""
    values = {**_IDLE, **changes}
    return [values[column] for column in SESSION_COLUMNS]
