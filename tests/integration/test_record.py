"""The event {"record": true} returns a snapshot of every session and signals none."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from session_reaper.errors import ConfigurationError
from session_reaper_cli.main import run as run_command
from session_reaper_cli.replay import read_recording

from tests.integration.stage import ABORTED, ACTIVE, IDLE, LEAK, policy, rule
from tests.integration.wire import Proxy, RewriteRows, as_another_server
from tests.recordings.scene import CANARY, send_unfinished

if TYPE_CHECKING:
    from pathlib import Path

    from session_reaper.sessions.snapshot import Snapshot

    from tests.integration.conftest import Output
    from tests.integration.stage import Run, Stage

EVERYBODY = policy(rule("everybody", state=[LEAK, ABORTED, ACTIVE, IDLE], connected_for="1ms"))


def snapshots_of(run: Run, folder: Path) -> dict[str, Snapshot]:
    """Read the recording as a replay does."""
    path = folder / "run.json"
    path.write_text(json.dumps(run.document))
    return read_recording(path)


@pytest.mark.every_major
def test_every_session_is_recorded_and_none_is_touched(stage: Stage, tmp_path: Path) -> None:
    victims = [stage.session(state) for state in (LEAK, ABORTED, IDLE, ACTIVE)]
    victims.append(stage.session(LEAK, application_name="pg_dump"))
    run = stage.run({"record": True, "policy": EVERYBODY})
    snapshot = snapshots_of(run, tmp_path)["orders"]
    seen = {session.identity.pid: session.state for session in snapshot.sessions}
    assert {victim.pid: victim.state for victim in victims}.items() <= seen.items()
    assert len(seen) == len(victims) + 1 == snapshot.slots.used  # the superuser's own is there, too
    assert stage.survivors(victims) == victims
    assert victims[3].state == ACTIVE
    assert run.document["mode"] == "enforce"
    assert run.document["status"] == "ok"
    assert not any(run.document["totals"][key] for key in ("terminated", "would_terminate"))
    assert run.outcomes() == {}
    assert run.emails == []


def test_a_recording_has_what_no_rule_of_the_policy_asks_for(stage: Stage, tmp_path: Path) -> None:
    stage.root.run("CREATE TABLE goods AS SELECT 1 AS id; GRANT ALL ON goods TO public")
    stage.cleanup(stage.root.run, "DROP TABLE goods")
    root = stage.session(LEAK, query="UPDATE goods SET id = 2")
    waiter = stage.session(ACTIVE, query="UPDATE goods SET id = 3")
    wedged = stage.session(IDLE)
    send_unfinished(wedged.connection, "SELECT 1")
    run = stage.run({"record": True})
    by_pid = {s.identity.pid: s for s in snapshots_of(run, tmp_path)["orders"].sessions}
    assert [waiting.pid for waiting in by_pid[root.pid].waiters] == [waiter.pid]
    xid_age = by_pid[root.pid].xid_age
    assert xid_age is not None
    assert xid_age >= 2  # its own and the waiter's, besides any of the server itself
    assert by_pid[root.pid].locks == 1
    assert by_pid[wedged.pid].waiting_for_client
    assert not by_pid[waiter.pid].waiting_for_client


def test_what_is_recorded_stays_out_of_the_log(stage: Stage, output: Output) -> None:
    stage.session(LEAK, application_name="r3c0rded", query=f"SELECT 1, '{CANARY}'")
    document = stage.run({"record": True}).document
    logged = output.readouterr()
    assert '"message":"run"' in logged.out
    assert "r3c0rded" in json.dumps(document["snapshots"])
    for kept in ("snapshots", "r3c0rded", CANARY):
        assert kept not in logged.out + logged.err
    assert CANARY not in json.dumps(document)


def test_only_the_targets_that_the_event_names_are_recorded(stage: Stage) -> None:
    with ExitStack() as stack:
        for number, name in enumerate(("orders", "billing", "shop")):
            says = RewriteRows(as_another_server(number))
            proxy = stack.enter_context(Proxy(stage.server.port, says=says))
            stage.target(name, port=proxy.port)
        run = stage.run({"record": True, "targets": ["shop", "orders"]})
        assert set(run.document["snapshots"]) == {"orders", "shop"}
        every = stage.run({"record": True}).document["snapshots"]
    assert set(every) == {"orders", "billing", "shop"}


def test_a_blind_target_has_its_error_and_no_snapshot(stage: Stage) -> None:
    stage.target("orders")
    with Proxy(stage.server.port) as elsewhere:
        stage.target("blind", username=stage.role("blind"), port=elsewhere.port)
        run = stage.run({"record": True})
    assert set(run.document["snapshots"]) == {"orders"}
    assert run.target("blind")["status"] == "blind"
    assert run.document["status"] == "partial"


def test_a_run_that_does_not_record_returns_no_snapshots(stage: Stage) -> None:
    assert "snapshots" not in stage.run().document
    assert "snapshots" not in stage.run({"record": False}).document


@pytest.mark.parametrize("wrong", ["yes", 1, None, []])
def test_an_unknown_value_of_record_is_an_error_that_names_it(stage: Stage, wrong: object) -> None:
    leak = stage.session(LEAK)
    with pytest.raises(ConfigurationError, match=r"^event\.record: "):
        stage.run({"record": wrong, "policy": EVERYBODY})
    assert leak.is_there


def test_a_run_does_to_each_session_what_its_replay_said(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaks = [*stage.sessions(3), stage.session(ABORTED)]
    stage.session(IDLE)
    stage.session(LEAK, application_name="pg_dump")
    limited = policy(limits={"max_terminations": 2})
    recording, rules = tmp_path / "run.json", tmp_path / "policy.json"
    recording.write_text(json.dumps(stage.run({"record": True}).document))
    rules.write_text(json.dumps(limited))
    capsys.readouterr()

    assert run_command(["replay", str(recording), "--policy", str(rules)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    said = {int(line.split()[0]): line for line in lines}
    outcomes = stage.run({"policy": limited}).outcomes()
    assert outcomes == {leak.pid: outcomes[leak.pid] for leak in leaks}
    for pid, line in said.items():
        phrases = {"terminated": "condemned by", "spared": "spared, "}
        untouched = ("left alone: ", "protected (")
        outcome = outcomes.get(pid)
        assert any(each in line for each in ([phrases[outcome]] if outcome else untouched))
    assert "2 condemned, 2 spared, 1 left alone, 2 protected" in head
