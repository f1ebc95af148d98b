"""Many victims, the limits that hold a policy back, victims that do not end."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

from tests.integration.stage import IDLE, LEAK, PATIENCE, rule
from tests.integration.wire import Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Stage


def test_max_terminations_terminates_the_longest_idle_and_reports_the_rest(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": "150"})
    leaks = stage.sessions(120, application_name="leaky")
    healthy = stage.sessions(3, IDLE)

    run = stage.reap(limits={"max_terminations": 10})
    assert run.outcomes() == {
        leak.pid: "terminated" if index < 10 else "spared" for index, leak in enumerate(leaks)
    }
    assert stage.survivors(leaks) == leaks[10:]
    spared = run.session(leaks[10])
    assert "limits.max_terminations of 10" in spared["reason"]
    assert (run.target()["slots"]["used_before"], run.target()["slots"]["used_after"]) == (124, 114)
    assert "10 sessions terminated, 110 spared" in run.email.subject

    run = stage.reap()  # the default
    assert Counter(run.outcomes().values()) == {"terminated": 100, "spared": 10}
    assert stage.survivors(leaks) == leaks[110:]

    run = stage.reap(limits={"max_terminations": 500})
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks[110:]}
    assert stage.survivors(leaks) == []
    assert stage.survivors(healthy) == healthy


def test_a_policy_that_exceeds_max_share_terminates_no_session(stage: Stage) -> None:
    leaks = stage.sessions(4)
    stage.sessions(2, IDLE)
    run = stage.reap(limits={"max_share": "50%"})  # 4 of 7
    assert run.target()["status"] == "breaker"
    assert run.error()["code"] == "breaker"
    assert "4 of 7" in run.error()["message"]
    assert run.outcomes() == {leak.pid: "spared" for leak in leaks}
    assert stage.survivors(leaks) == leaks
    assert run.document["status"] == "partial"
    assert "orders: breaker, 4 sessions spared" in run.email.subject


def test_a_policy_within_max_share_terminates_sessions(stage: Stage) -> None:
    leaks = stage.sessions(3)
    stage.sessions(2, IDLE)
    run = stage.reap(limits={"max_share": "50%"})  # 3 of 6
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}


def test_without_max_share_a_policy_may_condemn_every_session(stage: Stage) -> None:
    sessions = [*stage.sessions(3), *stage.sessions(3, IDLE)]
    run = stage.reap(rule(state=[LEAK, IDLE]))
    assert set(run.outcomes()) == {session.pid for session in sessions}
    assert stage.survivors(sessions) == []


def test_the_first_rule_that_matches_decides(stage: Stage) -> None:
    leak = stage.session(LEAK)
    first, second = rule("second", role=["nobody"]), rule("first")
    assert stage.reap(first, second, rule("third")).session(leak)["rule"] == "first"


def test_long_queries_do_not_delay_the_termination(own_server: Callable[..., Stage]) -> None:
    """track_activity_query_size goes to 1 MB, and people set it high."""
    stage = own_server(
        {
            "max_connections": "60",
            "rds.rds_reserved_connections": "",
            "track_activity_query_size": "262144",
        }
    )
    query = "SELECT " + ", ".join(f"'x{n}' AS c{n}" for n in range(1600)) + " /*" + "y" * 200_000
    leaks = stage.sessions(20, query=query + "*/")
    heard: list[int] = []

    def count(data: bytes) -> bytes:
        heard.append(len(data))
        return data

    with Proxy(stage.server.port, says=count) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert sum(heard) < 200_000  # of 4 MB
    assert run.target()["slots"]["reserved"] == 3  # an empty setting is none


def test_a_session_that_does_not_end_is_lingering_not_terminated(stage: Stage) -> None:
    leaks = stage.sessions(2)
    os.kill(leaks[0].pid, signal.SIGSTOP)  # it gets the signal when it runs again
    stage.cleanup(os.kill, leaks[0].pid, signal.SIGCONT)
    run = stage.reap()
    assert run.outcomes() == {leaks[0].pid: "lingering", leaks[1].pid: "terminated"}
    assert run.document["totals"]["lingering"] == 1
    assert run.target()["slots"]["used_after"] == 2
    assert "1 lingering" in run.email.subject
    assert 1.8 < run.seconds < 1.8 + PATIENCE


def test_a_lingering_session_does_not_hide_terminated_ones(stage: Stage) -> None:
    """The time is over before it would have been given up."""
    leaks = stage.sessions(3)
    os.kill(leaks[0].pid, signal.SIGSTOP)
    stage.cleanup(os.kill, leaks[0].pid, signal.SIGCONT)
    run = stage.reap(seconds=3)
    assert run.outcomes() == {
        leaks[0].pid: "lingering",
        leaks[1].pid: "terminated",
        leaks[2].pid: "terminated",
    }


def test_a_session_that_becomes_hidden_does_not_count_as_terminated(stage: Stage) -> None:
    leak = stage.session(LEAK)
    os.kill(leak.pid, signal.SIGSTOP)
    stage.cleanup(os.kill, leak.pid, signal.SIGCONT)
    stage.role("reaper", "IN ROLE pg_read_all_stats, pg_signal_backend")

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_VERIFY:
            stage.root.run("REVOKE pg_read_all_stats FROM reaper")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port, username="reaper")
        run = stage.reap(seconds=10)
    assert run.outcomes() == {leak.pid: "lingering"}
