"""The event `explain`: every session, the decision on it, and how far it is from being condemned."""

from __future__ import annotations

import json
import re

import pytest
from session_reaper_cli.main import run as run_command

from tests.integration.stage import ACTIVE, IDLE, LEAK, Stage, Victim, policy, rule, until

pytestmark = pytest.mark.every_major


def explain(stage: Stage, victim: Victim, **event: object) -> tuple[str, str | None, str]:
    run = stage.run({"explain": True, **event})
    session = run.session(victim)
    return session["outcome"], session["rule"], session["reason"]


def test_every_session_is_explained_and_none_is_touched(stage: Stage) -> None:
    stage.role("copier", "REPLICATION")
    leak = stage.session(LEAK, application_name="api")
    others = [
        stage.session(LEAK, "batch"),
        stage.session(IDLE),
        stage.session(ACTIVE),
        stage.session(IDLE, "copier"),
        stage.session(LEAK, application_name="pg_dump"),
        stage.session(LEAK, "deploy"),
    ]
    stage.use_policy(
        policy(
            rule("keep", action="keep", role=["batch"]),
            rule("leak", role=["app", "copier", "deploy"]),
            protect={"roles": ["deploy"]},
        )
    )
    run = stage.run({"explain": True})
    victims = [leak, *others]
    outcomes = run.outcomes()
    assert [outcomes[victim.pid] for victim in victims] == [
        *("condemned", "kept", "left", "left", "protected", "protected", "protected")
    ]
    assert len(outcomes) == len(victims) + 1  # the test's superuser
    assert run.document["verdict"].startswith("EXPLAINED: 8 sessions: 1 condemned, 1 kept,")
    assert run.document["totals"]["terminated"] == 0
    assert run.document["totals"]["protected"] == 2
    assert run.emails == []
    assert stage.survivors(victims) == victims
    assert "replication role" in run.session(others[3])["reason"]
    assert "built in: pg_dump" in run.session(others[4])["reason"]
    assert "protect.roles" in run.session(others[5])["reason"]
    assert run.session(others[5])["rule"] == "leak"


def test_a_session_that_is_left_shows_its_nearest_miss(stage: Stage) -> None:
    young, idle = stage.session(LEAK), stage.session(IDLE)
    rules = policy(
        rule("other", role=["nobody"], idle_for="1ms"),
        rule("leak", idle_for="10m"),
        rule("patient", idle_for="1h"),
    )
    outcome, decided_by, reason = explain(stage, young, policy=rules)
    assert (outcome, decided_by) == ("left", None)
    assert re.search(r"leak: idle in transaction for [\d.]+(ms|s) of 10m$", reason)
    assert "is idle, not idle in transaction" in explain(stage, idle, policy=rules)[2]


def test_a_rule_that_is_not_in_force_is_shown(stage: Stage) -> None:
    leak = stage.session(LEAK)
    rules = policy({**rule("under-pressure"), "when": {"slots_used": "99%"}})
    reason = explain(stage, leak, policy=rules)[2]
    assert re.search(
        r"under-pressure: not in force at slots \d+/\d+ \(when slots_used: 99%\)", reason
    )


def test_a_session_that_only_an_observe_only_rule_matches_is_left(stage: Stage) -> None:
    leak = stage.session(LEAK)
    rules = policy({**rule("warn"), "mode": "observe"}, rule("leak", idle_for="10m"))
    outcome, decided_by, reason = explain(stage, leak, policy=rules)
    assert (outcome, decided_by) == ("left", "warn")
    assert "only observed" in reason
    assert "nearest: leak: idle in transaction for " in reason


def test_what_a_limit_or_the_breaker_holds_back_is_spared(stage: Stage) -> None:
    leaks = stage.sessions(3, LEAK)
    run = stage.run({"explain": True, "policy": policy(limits={"max_terminations": 1})})
    outcomes = run.outcomes()
    assert sorted(outcomes[leak.pid] for leak in leaks) == ["condemned", "spared", "spared"]
    assert run.document["totals"]["spared"] == 2
    assert run.document["status"] == "ok"
    run = stage.run({"explain": True, "policy": policy(limits={"max_per_run": 1})})
    assert [run.outcomes()[leak.pid] for leak in leaks].count("spared") == 2
    reason = explain(stage, leaks[0], policy=policy(limits={"max_condemned": 1}))[2]
    assert "max_condemned" in reason


def test_a_session_that_waits_for_a_lock_shows_that(stage: Stage) -> None:
    stage.session(LEAK, query="SELECT pg_advisory_xact_lock(7)")
    waiter = stage.session(ACTIVE, query="SELECT pg_advisory_xact_lock(7)")
    until(lambda: waiter.read_column("wait_event_type") == "Lock", "it waits")
    reason = explain(stage, waiter, policy=policy(rule(state=[ACTIVE], query_for="1ms")))[2]
    assert "waits for a lock" in reason


def test_queries_are_redacted(stage: Stage) -> None:
    stage.session(IDLE, query="SELECT 'CANARY'")
    document = json.dumps(stage.run({"explain": True, "policy": policy()}).document)
    assert "CANARY" not in document
    assert "SELECT ?" in document


def test_an_answer_that_is_too_long_leaves_out_sessions_that_are_left_alone(stage: Stage) -> None:
    leaks, idle = stage.sessions(2, LEAK), stage.sessions(12, IDLE)
    stage.target()
    document = {"explain": True, "policy": policy()}
    run = stage.run(document, max_answer_bytes=4_500)
    assert len(json.dumps(run.document)) <= 4_500
    outcomes = run.outcomes()
    assert [outcomes[leak.pid] for leak in leaks] == ["condemned"] * 2
    left_out = run.target()["sessions_left_out"]
    assert left_out + len(outcomes) == len(leaks) + len(idle) + 1


def test_a_nearly_full_server_is_explained_without_a_mail(stage: Stage) -> None:
    last = stage.fill()[-1]
    last.connection.close()
    until(lambda: not last.is_there, "one slot is free")
    run = stage.run({"explain": True, "policy": policy(rule(idle_for="1h"))})
    assert run.document["verdict"].startswith("EXPLAINED")
    assert run.target()["holders"]
    assert run.emails == []


def test_a_replay_explains_as_the_event_does(stage: Stage, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 -- pytest's
    leak = stage.session(LEAK)
    idle = stage.session(IDLE)
    stage.session(LEAK, application_name="pg_dump")
    document = policy(rule(idle_for="1ms"))
    (tmp_path / "policy.json").write_text(json.dumps(document))
    recorded = stage.run({"record": True}).document
    (tmp_path / "run.json").write_text(json.dumps(recorded))
    reason = explain(stage, idle, policy=document)[2]
    capsys.readouterr()
    arguments = [str(tmp_path / "run.json"), "--policy", str(tmp_path / "policy.json")]
    assert run_command(["replay", *arguments]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines[str(idle.pid)].endswith(f"left alone: {reason}")
    assert "condemned by leak" in lines[str(leak.pid)]
    assert any("protected (built in: pg_dump)" in line for line in lines.values())
