"""A run over a thousand victims, whose backends take gigabytes: too much for `make test`."""

from __future__ import annotations

import json
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pg8000.native
from session_reaper.handler import lambda_handler

from infra.local.aws import aws
from infra.local.postgres import bundled_builds, server

if TYPE_CHECKING:
    import pytest

VICTIMS = 1000
ROLE_FILE = Path(__file__).parents[2] / "infra/database/reaper_role.sql"
POLICY = {
    "version": 1,
    "limits": {"max_terminations": VICTIMS},
    "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "1ms"}}],
}


class Context:
    aws_request_id = "a-thousand"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def test_a_thousand_victims_are_terminated_and_each_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"max_connections": str(VICTIMS + 50)}
    with (
        server(bundled_builds()[18], settings=settings) as database,
        closing(database.connect()) as admin,
        aws() as cloud,
    ):
        admin.run(ROLE_FILE.read_text())
        admin.run("ALTER ROLE session_reaper PASSWORD 'secret'; CREATE ROLE app LOGIN")
        cloud.put_secret(
            "orders",
            {
                "host": database.host,
                "port": database.port,
                "username": "session_reaper",
                "password": "secret",
                "sslmode": "disable",
            },
        )
        monkeypatch.setenv("TARGET_SECRETS", "orders")
        monkeypatch.setenv("TOPIC_ARN", cloud.topic_arn)
        monkeypatch.setenv("MODE", "enforce")
        victims = [
            database.connect(user="app", unix_sock=database.unix_sock) for _ in range(VICTIMS)
        ]
        for victim in victims:
            victim.run("BEGIN")
        rows = admin.run("SELECT pid FROM pg_stat_activity WHERE usename = 'app'")

        report = lambda_handler({"policy": POLICY}, Context())  # type: ignore[arg-type] # a stand-in

        (target,) = report["targets"]
        outcomes = {session["pid"]: session["outcome"] for session in target["sessions"]}
        assert outcomes == {pid: "terminated" for (pid,) in rows}
        assert len(target["sessions"]) == len(rows) == VICTIMS
        assert target["slots"]["used_after"] == 1  # the admin's
        (email,) = cloud.delivered()
        assert email.body.startswith(f"RESOLVED: {VICTIMS} sessions were terminated")
        assert len(json.dumps(report)) < 6 * 1024 * 1024  # Lambda's limit
        for victim in victims:
            with suppress(pg8000.native.Error, OSError):
                victim.close()
