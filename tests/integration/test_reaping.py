"""The main path: leaks are found, terminated, verified as gone and reported; healthy sessions are not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from threading import Event, Thread
from typing import TYPE_CHECKING

import pg8000.native
import pytest

from tests.integration.cli import uri
from tests.integration.fork_client import environment
from tests.integration.stage import ABORTED, ACTIVE, IDLE, LEAK, policy, rule, until
from tests.integration.wire import Proxy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.stage import Stage

pytestmark = pytest.mark.every_major


def test_observe_reports_leaks_and_touches_nothing(stage: Stage) -> None:
    leaks = [stage.session(LEAK), stage.session(ABORTED)]
    run = stage.run({"mode": "observe", "policy": policy()})
    assert run.outcomes() == {leak.pid: "would_terminate" for leak in leaks}
    assert stage.survivors(leaks) == leaks
    assert run.document["mode"] == "observe"
    assert run.document["totals"]["would_terminate"] == 2
    assert "2 sessions would be terminated" in run.email.subject


def test_enforce_terminates_leaks_only(stage: Stage) -> None:
    leaks = [stage.session(LEAK, application_name="api"), stage.session(ABORTED)]
    healthy = [stage.session(IDLE), stage.session(ACTIVE)]
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert stage.survivors([*leaks, *healthy]) == healthy
    target = run.target()
    assert (run.document["status"], target["status"]) == ("ok", "ok")
    assert target["slots"] == {
        "max": 80,
        "reserved": 3,
        "usable": 77,
        "used_before": 5,  # with the superuser's
        "used_after": 3,
    }
    assert "RESOLVED: 2 sessions were terminated and verified gone." in run.said


def test_each_session_is_reported_with_its_properties_and_reason(stage: Stage) -> None:
    leak = stage.session(application_name="api", tcp=True, query="SELECT 'x', 42")
    reported = stage.reap(rule("leaks", idle_for="1ms")).session(leak)
    ages = {key: reported.pop(key) for key in tuple(reported) if key.endswith("_seconds")}
    assert all(0 <= age < 30 for age in ages.values())
    assert ages["idle_seconds"] <= ages["transaction_seconds"] <= ages["connected_seconds"]
    reason = reported.pop("reason")
    assert reason.startswith("idle in transaction for ")
    assert reason.endswith("(idle_for: 1ms)")
    assert reported == {
        "pid": leak.pid,
        "role": "app",
        "database": "postgres",
        "application": "api",
        "client": "127.0.0.1",
        "state": LEAK,
        "rule": "leaks",
        "query": "SELECT ?, ?",
        "outcome": "terminated",
    }


def test_a_session_outside_a_transaction_has_no_transaction_age(stage: Stage) -> None:
    idle = stage.session(IDLE)
    run = stage.reap(rule(state=[IDLE], role=["app"]))
    assert run.session(idle)["transaction_seconds"] is None


def test_transaction_for_does_not_match_a_session_without_a_transaction(stage: Stage) -> None:
    idle = stage.session(IDLE)
    run = stage.reap(rule(state=[IDLE], role=["app"], transaction_for="0s"))
    assert run.outcomes() == {}
    assert idle.is_there


def test_connected_for_measures_the_age_of_the_connection(stage: Stage) -> None:
    idle, leak = stage.session(IDLE), stage.session(LEAK)
    leak.connection.run("SELECT 1")  # its time in the state begins anew, its connection does not
    until(lambda: stage.reap(rule(connected_for="200ms")).outcomes(), "the leak is old enough")
    assert stage.survivors([idle, leak]) == [idle]


def test_idle_for_and_transaction_for_use_different_clocks(stage: Stage) -> None:
    leak = stage.session(LEAK)
    until(lambda: _age(stage, leak.pid, "xact_start") > 0.4, "the transaction is old")
    leak.connection.run("SELECT 1")
    run = stage.run({"mode": "observe", "policy": policy(rule(idle_for="400ms"))})
    assert run.outcomes() == {}
    run = stage.run({"mode": "observe", "policy": policy(rule(transaction_for="400ms"))})
    assert run.outcomes() == {leak.pid: "would_terminate"}


_SHIFTED = """
import sys, time
from runpy import run_module
shift, now = float(sys.argv.pop(1)), time.time
time.time = lambda: now() + shift
run_module("session_reaper_cli", run_name="__main__", alter_sys=True)
"""
"""The command with a clock that is wrong before any module of ours is imported."""


def test_a_wrong_clock_of_the_reaper_changes_no_decision(stage: Stage, tmp_path: Path) -> None:
    """Ages come from the server's clock."""
    leak, old = stage.session(LEAK), stage.session(LEAK, role="old")
    until(lambda: _age(stage, old.pid, "state_change") > 2, "one is old")
    rules = tmp_path / "policy.json"
    rules.write_text(json.dumps(policy(rule(idle_for="1900ms", role=["app", "old"]))))
    for shift in ("-1e6", "1e6"):
        leak.connection.run("SELECT 1")
        options = ("reap", uri(stage), "--policy", rules, "--json")
        done = subprocess.run(  # noqa: S603 -- our own command
            [sys.executable, "-c", _SHIFTED, shift, *options],
            env=environment(tmp_path, {}),
            stdout=subprocess.PIPE,
            check=False,
        )
        (target,) = json.loads(done.stdout)["targets"]
        assert [session["pid"] for session in target["sessions"]] == [old.pid]


def test_query_for_counts_the_running_query_only(stage: Stage) -> None:
    running, leak = stage.session(ACTIVE), stage.session(LEAK)
    until(lambda: _age(stage, leak.pid, "query_start") > 0.3, "both queries are old enough")
    run = stage.reap(rule(state=[ACTIVE, LEAK], query_for="200ms"))
    assert run.outcomes() == {running.pid: "terminated"}
    assert leak.is_there


def _age(stage: Stage, pid: int, since: str) -> float:
    ((age,),) = stage.root.run(
        f"SELECT extract(epoch FROM clock_timestamp() - {since})::float8"  # noqa: S608
        " FROM pg_stat_activity WHERE pid = :pid",
        pid=pid,
    )
    return float(age)


def test_a_pool_at_work_loses_no_transaction(stage: Stage) -> None:
    stage.role("app")
    stop = Event()
    broken: list[BaseException] = []
    done = [0] * 8

    def work(index: int) -> None:
        try:
            with stage.connect("app", application_name="pool") as connection:
                while not stop.is_set():
                    connection.run("BEGIN")
                    connection.run("SELECT 1")
                    time.sleep(0.01)  # idle in transaction, as a healthy client is for a moment
                    connection.run("COMMIT")
                    done[index] += 1
        except pg8000.native.Error as error:
            broken.append(error)

    workers = [Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()

    def everybody_works() -> None:
        before = list(done)
        until(lambda: all(now > then for now, then in zip(done, before, strict=True)), "all work")

    leaks = stage.sessions(5, LEAK, application_name="leak")
    try:
        until(lambda: _age(stage, leaks[-1].pid, "state_change") > 1, "the leaks are old")
        for leak in leaks:
            everybody_works()
            run = stage.reap(rule(idle_for="1s"), limits={"max_terminations": 1})
            outcomes = run.outcomes()
            assert outcomes.pop(leak.pid) == "terminated"
            assert set(outcomes.values()) <= {"spared"}
        everybody_works()
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert broken == []
    assert stage.survivors(leaks) == []


def test_a_quiet_run_publishes_nothing_and_opens_one_connection(stage: Stage) -> None:
    healthy = stage.sessions(3, IDLE)
    with Proxy(stage.server.port) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert proxy.connections == 1
    assert run.emails == []
    assert run.outcomes() == {}
    assert run.target()["slots"]["used_before"] == 4 == run.target()["slots"]["used_after"]
    until(lambda: stage.clients == 4, "the reaper has disconnected")
    assert stage.survivors(healthy) == healthy


def test_a_server_without_other_sessions_is_ok(stage: Stage) -> None:
    run = stage.reap(limits={"max_share": "1%"})
    assert run.document["status"] == "ok"
    assert run.target()["slots"]["used_before"] == 1


def test_a_return_value_too_long_for_lambda_counts_the_sessions_it_leaves_out(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.target()
    leaks = [stage.session() for _ in range(8)]
    run = stage.run({"policy": policy()}, max_answer_bytes=2_800)
    target = run.target()
    assert 0 < len(target["sessions"]) < 8
    assert len(target["sessions"]) + target["sessions_left_out"] == 8
    assert len(json.dumps(run.document)) <= 2_800
    assert run.document["totals"]["terminated"] == 8
    logged = [vars(record) for record in caplog.records if record.message == "outcome"]
    assert {line["session"]["pid"] for line in logged} == {leak.pid for leak in leaks}
