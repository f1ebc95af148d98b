"""Compares the times to receive and decode 5,000 sessions as one JSON value and as driver rows."""

import json
import time
from collections.abc import Callable

import pg8000.native

ROWS = 5_000
# Similar to snapshot.sql: a pid, three moments, texts, ages, flags.
COLUMNS = """
    g, now() - g * interval '1 s', now(), now() - interval '1 ms', 'idle in transaction',
    'app_' || g % 20, 'orders', 'api-' || g % 50, host('10.0.0.7'::inet),
    repeat('SELECT * FROM orders WHERE id = 4711 ', 5), extract(epoch FROM g * interval '1 s'),
    extract(epoch FROM g * interval '1 s'), extract(epoch FROM g * interval '2 s'), NULL::float8,
    false, false, false, true
"""


def read_as_rows(connection: pg8000.native.Connection) -> int:
    """Read the sessions as driver rows; return their number."""
    return len(connection.run(f"SELECT {COLUMNS} FROM generate_series(1, {ROWS}) AS g"))  # noqa: S608 -- our own text


def read_as_json(connection: pg8000.native.Connection) -> int:
    """Read the sessions as snapshot.sql sends them; return their number."""
    rows = connection.run(
        f"SELECT textsend(json_agg(json_build_array({COLUMNS}))::text)"  # noqa: S608 -- our own text
        f" FROM generate_series(1, {ROWS}) AS g"
    )
    return len(json.loads(rows[0][0].decode()))


def measure_seconds(
    read: Callable[[pg8000.native.Connection], int], connection: pg8000.native.Connection
) -> float:
    """Measure one call."""
    started = time.perf_counter()
    assert read(connection) == ROWS
    return time.perf_counter() - started
