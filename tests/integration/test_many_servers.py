"""The servers of `make sizes` answer what a real one does."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.postgres.server import Server
from session_reaper.runs.policy_source import load_policy
from session_reaper.targets.secret_document import parse_secret, resolve_targets
from session_reaper.targets.target import RdsListing, Secret

from infra.local.certificates import make_tls
from tests.benchmarks.many_servers import record, run_servers
from tests.integration.stage import PASSWORD, REAPER

if TYPE_CHECKING:
    from pathlib import Path

    from session_reaper.sessions.snapshot import Snapshot

    from infra.local.postgres import Server as PostgresServer


def take_snapshot(secret: dict[str, object]) -> Snapshot:
    parsed = parse_secret(Secret(name="", arn="", text=json.dumps(secret)), whole_clusters=False)
    (target,) = resolve_targets(parsed, RdsListing())
    with closing(Server.connect(target, Deadline(60))) as server:
        return server.take_snapshot(load_policy("", Deadline(60)).scope(), Deadline(60))


def test_each_replayed_server_is_a_server_of_its_own_and_answers_as_the_recorded_one(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    tls = make_tls(tmp_path)
    secret: dict[str, object] = {
        "host": postgres.host,
        "port": postgres.port,
        "username": REAPER,
        "password": PASSWORD,
        "sslmode": "disable",
    }
    real = take_snapshot(secret)
    with run_servers(record(postgres, secret), tls, PASSWORD, count=3) as many:
        replayed = {
            "sslmode": "verify-full",
            "host": "localhost",
            "sslrootcert": tls.authority.read_text(),
        }
        found = [
            take_snapshot(
                {**secret, **replayed, "port": many.find_port(n), "dbname": f"target-{n}"}
            )
            for n in range(3)
        ]
        taken, _ = many.take_measurements()
        with pytest.raises(TargetError, match="SCRAM authentication failed"):
            take_snapshot(
                {
                    **secret,
                    **replayed,
                    "password": "other",
                    "port": many.find_port(0),
                    "dbname": "target-0",
                }
            )

    assert taken == 3
    assert real.server is not None
    starts = [real.server.started + n for n in range(3)]
    assert [each.server and each.server.started for each in found] == starts
    for each in found:
        assert each.role == real.role
        assert each.can_see
        assert each.can_signal
        assert not each.behind_pooler
        assert replace(real.server, started=0) == replace(each.server or real.server, started=0)
