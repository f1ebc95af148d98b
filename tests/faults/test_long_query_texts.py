"""The memory of a run does not grow with the length of query texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.local.aws import aws
from infra.local.postgres import bundled_builds, server
from tests.faults.peak_memory import PeakMemory, measure_peak_memory
from tests.frontend import close_sessions, open_sessions
from tests.integration.stage import PASSWORD, REAPER, ROLE_FILE, policy

if TYPE_CHECKING:
    import pytest

    from infra.local.postgres import Server

SESSIONS = 100
LONG, SHORT = 1_048_576, 50  # bytes
MOST_MEBIBYTES = 40.0  # the most that long texts may take beyond short ones


def _measure_peak(database: Server, text_bytes: int) -> PeakMemory:
    """Measure a run over sessions with query texts of this length."""
    sql = f"BEGIN; SELECT length('{'x' * text_bytes}')"
    sessions = open_sessions(database.unix_sock, SESSIONS, sql)
    try:
        return measure_peak_memory({"policy": policy()})
    finally:
        close_sessions(sessions)


def test_texts_of_1_mb_take_no_more_memory_than_short_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"max_connections": str(SESSIONS + 20), "track_activity_query_size": "1MB"}
    with server(bundled_builds()[18], settings=settings) as database, aws() as cloud:
        with database.connect() as admin:
            admin.run(ROLE_FILE.read_text())
            admin.run(f"ALTER ROLE {REAPER} PASSWORD '{PASSWORD}'; CREATE ROLE app LOGIN")
        secret = f"memory-{database.port}"  # the stand-in keeps the secrets of other tests
        cloud.put_secret(
            secret,
            {
                "host": database.host,
                "port": database.port,
                "username": REAPER,
                "password": PASSWORD,
                "sslmode": "disable",
            },
        )
        monkeypatch.setenv("TARGET_SECRETS", secret)
        monkeypatch.setenv("TOPIC_ARN", cloud.topic_arn)
        monkeypatch.setenv("MODE", "enforce")

        short, long = _measure_peak(database, SHORT), _measure_peak(database, LONG)

    assert short.outcomes == long.outcomes == {"terminated": SESSIONS}
    assert long.mebibytes - short.mebibytes < MOST_MEBIBYTES, f"{short} {long}"
