"""A query above the size limit is cut by bytes on the server, in any encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from session_reaper.deadline import Deadline
from session_reaper.postgres.rows import QUERY_BYTES
from session_reaper.postgres.server import Server
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.sessions.snapshot import ALL_SESSIONS
from session_reaper.settings import read_settings
from session_reaper.targets.target import Target

from tests.integration.stage import LEAK, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.every_major

_TEXTS = {
    "UTF8": "SELECT 'x' AS \"" + "\u65e5" * 15 + '" /* ' + "\u65e5" * 3000 + " */",
    "EUC_JP": "SELECT 1 /* " + "\u65e5" * 3000 + " */",
    "LATIN1": "SELECT 1 /* " + "\u00e9\\" * 3000 + " */",
    "SQL_ASCII": "SELECT 1 /* " + "\\" * 3000 + " */",
}


def _queries(stage: Stage, secret: str) -> dict[int, str]:
    stage.monkeypatch.setenv("TARGET_SECRETS", secret)
    (target,) = TargetDiscovery(read_settings(), bypass_cache=True).find([], Deadline(10))
    assert isinstance(target, Target)
    server = Server.connect(target, Deadline(10))
    try:
        snapshot = server.take_snapshot(ALL_SESSIONS, Deadline(10))
        return {s.identity.pid: s.query for s in snapshot.sessions}
    finally:
        server.close()


def test_a_long_query_is_cut_and_its_session_ended(own_server: Callable[..., Stage]) -> None:
    stage = own_server({"track_activity_query_size": "64kB"})
    for encoding, text in _TEXTS.items():
        options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        own = stage.database(f"d_{encoding.lower()}", options)
        for dbname in ("postgres", own):  # where the reaper connects
            leak = stage.session(LEAK, database=own, query=text)
            secret = stage.target(f"{encoding}-{dbname}", dbname=dbname)
            query = _queries(stage, secret)[leak.pid]
            assert query.startswith("SELECT "), secret
            assert query.endswith("…"), secret
            assert len(query) <= QUERY_BYTES + 1, secret
            if encoding == "UTF8":  # cut within a character, which shows as one sign for its rest
                assert set(query.removesuffix("…").rstrip("\ufffd")[-100:]) == {"\u65e5"}, secret
            assert stage.reap().outcomes(secret) == {leak.pid: "terminated"}, secret


def test_a_query_within_the_limit_is_not_cut(stage: Stage) -> None:
    ((size,),) = stage.root.run("SHOW track_activity_query_size")
    assert size == "1kB"  # below the limit, so every query that the server keeps is
    leak = stage.session(LEAK, query="SELECT 1 AS " + "x" * 60)
    query = _queries(stage, stage.target())[leak.pid]
    assert query == "SELECT 1 AS " + "x" * 60
