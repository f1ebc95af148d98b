"""A run ends in time and publishes its summary, however many sessions it has to report."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from session_reaper.postgres.rows import SESSION_COLUMNS

from tests.integration.stage import LEAK, REAPER, policy, rule
from tests.integration.wire import (
    Action,
    Detour,
    Fault,
    Impostor,
    Moment,
    Proxy,
    RewriteRows,
    as_another_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tests.integration.stage import Stage

SERVERS = 10
UNLIMITED = {"max_terminations": 100_000}
BREAKER = {"max_terminations": 100_000, "max_share": "50%"}
HANGS_AT_SIGNAL = Fault(action=Action.HANG, moment=Moment.TERMINATE)


@pytest.fixture(autouse=True)
def _unlimited_connections(stage: Stage) -> None:
    """All targets lead to one server, where the reaper's role may connect a few times only."""
    stage.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT -1")
    stage.cleanup(stage.root.run, f"ALTER ROLE {REAPER} CONNECTION LIMIT 5")


def snapshot_with(sessions: int, query: str) -> Callable[[bytes], bytes]:
    """Give every snapshot so many sessions: copies of its first one with other pids and queries."""
    made: list[bytes] = []

    def change(value: bytes) -> bytes:
        if not value.startswith(b'{"role"') and b'"sessions"' not in value:
            return value
        if not made:
            document = json.loads(value)
            first = document["sessions"][0]
            document["max"] = sessions + 100
            document["used"] = sessions
            document["sessions"] = [
                [1_000_000 + n, *first[1:10], f"{query} /* {n} */ LIMIT {n}", *first[11:]]
                for n in range(sessions)
            ]
            made.append(json.dumps(document).encode())
        return made[0]

    return change


def outcomes_of(records: Collection[object]) -> dict[str, dict[int, str]]:
    """Return the outcome of each session by target and pid: of its own line, or of one for many."""
    found: dict[str, dict[int, str]] = {}
    for line in map(vars, records):
        if line["message"] == "outcome":
            found.setdefault(line["target"], {})[line["session"]["pid"]] = line["outcome"]
        elif line["message"] == "outcomes":
            pids = dict.fromkeys(line["pids"], line["outcome"])
            assert not found.setdefault(line["target"], {}).keys() & pids.keys()
            found[line["target"]] |= pids
    return found


@pytest.mark.parametrize(
    ("sessions", "query", "limits", "mode", "seconds"),
    [
        (3000, "SELECT 1", {}, "enforce", 6),
        pytest.param(3000, "SELECT 1", UNLIMITED, "enforce", 6, marks=pytest.mark.thorough),
        (3000, "SELECT 1", BREAKER, "enforce", 6),
        (3000, "SELECT 1", UNLIMITED, "observe", 6),
        (500, "SELECT a FROM t WHERE b = 'c' " * 60, UNLIMITED, "enforce", 6),
        pytest.param(5000, "SELECT 1", UNLIMITED, "enforce", 10, marks=pytest.mark.thorough),
    ],
    ids=["limits", "no limits", "breaker", "observe", "long queries", "10 seconds"],
)
def test_thousands_of_condemned_sessions_on_servers_that_hang_keep_no_summary_back(  # noqa: PLR0913, PLR0917 -- pytest's parameters
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    sessions: int,
    query: str,
    limits: dict[str, object],
    mode: str,
    seconds: float,
    *,
    is_alone: bool,
) -> None:
    sessions = sessions if is_alone else sessions // 10
    stage.session(LEAK)
    change = snapshot_with(sessions, query)
    with ExitStack() as stack:
        for number in range(SERVERS):
            says = RewriteRows(as_another_server(number, change))
            proxy = Proxy(stage.server.port, HANGS_AT_SIGNAL, says=says)
            stage.target(f"many-{number}", port=stack.enter_context(proxy).port)
        event = {"policy": policy(rule(idle_for="0s"), limits=limits), "mode": mode}
        run = stage.run(event, seconds=seconds)
    assert run.seconds < seconds
    assert len(run.emails) == 1
    found = outcomes_of(caplog.records)
    assert len(found) == SERVERS
    assert {len(outcomes) for outcomes in found.values()} == {sessions}
    # Each signalled session has a line of its own; spared sessions may share one.
    together = [vars(line) for line in caplog.records if line.message == "outcomes"]
    assert {line["outcome"] for line in together} <= {"spared", "would_terminate"}
    assert all(line["count"] == len(line["pids"]) for line in together)


@pytest.mark.thorough
def test_servers_that_also_hang_when_the_reaper_reconnects_keep_no_summary_back(
    stage: Stage, caplog: pytest.LogCaptureFixture, *, is_alone: bool
) -> None:
    """Only sessions that were sent a signal are reported as lingering."""
    stage.session(LEAK)
    sessions = 3000 if is_alone else 300
    change = snapshot_with(sessions, "SELECT 1")
    with ExitStack() as stack:
        silent = Detour(port=stack.enter_context(Impostor()).port)
        for number in range(SERVERS):
            says = RewriteRows(as_another_server(number, change))
            proxy = Proxy(stage.server.port, HANGS_AT_SIGNAL, says=says, detour=silent)
            stage.target(f"many-{number}", port=stack.enter_context(proxy).port)
        run = stage.reap(rule(idle_for="0s"), seconds=6, limits=UNLIMITED)
    assert run.seconds < 6
    assert len(run.emails) == 1
    found = outcomes_of(caplog.records)
    assert len(found) == SERVERS
    assert {len(outcomes) for outcomes in found.values()} == {sessions}
    for target, outcomes in found.items():
        sent = {
            line["session"]["pid"]
            for line in map(vars, caplog.records)
            if line["message"] == "decision" and line["target"] == target
        }
        lingering = {pid for pid, outcome in outcomes.items() if outcome == "lingering"}
        assert lingering == sent
        assert set(outcomes.values()) == {"lingering", "spared"}


def test_query_globs_on_thousands_of_long_queries_keep_no_summary_back(
    stage: Stage, *, is_alone: bool
) -> None:
    """A server whose sessions take too long to decide on fails, and its sessions are not touched."""
    leak = stage.session(LEAK)
    stage.monkeypatch.setenv("NOTIFY", "always")
    sessions = 1500 if is_alone else 150
    change = snapshot_with(sessions, "SELECT a FROM t WHERE b = 'c' AND " * 54)
    rules = rule("q", idle_for="0s", query=["delete *"]), rule("old", idle_for="1h")
    with ExitStack() as stack:
        stage.target("healthy")
        for number in range(SERVERS):
            proxy = Proxy(stage.server.port, says=RewriteRows(change))
            stage.target(f"many-{number}", port=stack.enter_context(proxy).port)
        run = stage.reap(*rules, seconds=6)
    assert run.seconds < 6
    assert len(run.emails) == 1
    assert leak.is_there
    for target in run.document["targets"]:
        assert target["sessions"] == []
        assert target["status"] == "ok" or target["error"]["code"] == "deadline", target["error"]


def test_comment_tags_of_thousands_of_long_queries_keep_no_summary_back(
    stage: Stage, *, is_alone: bool
) -> None:
    stage.session(LEAK)
    sessions = 2000 if is_alone else 200
    base = snapshot_with(sessions, "SELECT a FROM t WHERE b = 'c' AND " * 50)

    def change(value: bytes) -> bytes:
        """Make many groups, each with a tag in every query."""
        document = json.loads(base(value)) if b'"sessions"' in value else {}
        if not document:
            return value
        application, query = (SESSION_COLUMNS.index(name) for name in ("application", "query"))
        for number, session in enumerate(document["sessions"]):
            session[application] = f"api-{number % 50}"
            session[query] += f" /*route='r{number}'*/"
        return json.dumps(document).encode()

    with ExitStack() as stack:
        for number in range(SERVERS):
            proxy = Proxy(stage.server.port, says=RewriteRows(change))
            stage.target(f"many-{number}", port=stack.enter_context(proxy).port)
        document = policy(rule(idle_for="0s"), limits=UNLIMITED, comment_tags=["route"])
        run = stage.run({"policy": document, "mode": "observe"}, seconds=6)
    assert run.seconds < 6
    assert len(run.emails) == 1
