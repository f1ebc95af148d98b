"""The handler's contract: events, modes, environment, logs, metrics, mail."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.errors import ConfigurationError, PublishError

from tests.integration.stage import ABORTED, ACTIVE, IDLE, LEAK, Context, policy, rule

if TYPE_CHECKING:
    from tests.integration.conftest import Output
    from tests.integration.stage import Stage

ROOT = Path(__file__).parents[2]
EVENTS = sorted((ROOT / "events").glob("*.json"))

LEAKS = json.dumps(policy())


def read_log(output: Output) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.readouterr().out.splitlines()]
    return [line for line in lines if "_aws" not in line]


def metrics(output: Output) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.readouterr().out.splitlines()]
    return [line for line in lines if "_aws" in line]


def put_policy(stage: Stage, text: str = LEAKS) -> None:
    stage.aws.ssm.put_parameter(Name="/reaper/policy", Value=text, Type="String", Overwrite=True)
    stage.monkeypatch.setenv("POLICY", "ssm:/reaper/policy")


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_every_event_of_the_repository_is_valid(stage: Stage, path: Path) -> None:
    leak = stage.session(LEAK)
    put_policy(stage)
    run = stage.run(json.loads(path.read_text()))
    if path.stem == "manual_check":
        assert run.target()["check"]["version"]
        assert leak.is_there
    elif path.stem == "manual_explain":
        assert run.outcomes()[leak.pid] == "condemned"
        assert leak.is_there
    else:
        outcome = "would_terminate" if "observe" in path.stem else "terminated"
        assert run.outcomes() == {leak.pid: outcome}
    assert run.document["run_id"] == Context.aws_request_id


@pytest.mark.parametrize(
    "event", [{"mod": "observe"}, {"mode": "observe", "source": "x"}, {"detail-type": "x"}]
)
def test_an_unknown_key_of_an_event_is_an_error_that_names_it(
    stage: Stage, event: dict[str, object]
) -> None:
    key = next(key for key in event if key != "mode")
    with pytest.raises(ConfigurationError, match=rf"event\.{key}: unknown key"):
        stage.run(event)


@pytest.mark.parametrize("event", [[], "observe", 7])
def test_an_event_that_is_not_an_object_is_an_error(stage: Stage, event: object) -> None:
    stage.target()
    with pytest.raises(ConfigurationError, match="event"):
        stage.run(event)


_ORDER = ["off", "observe", "enforce"]


@pytest.mark.parametrize("of_stack", [None, *_ORDER])
def test_the_lowest_of_all_modes_applies(stage: Stage, of_stack: str | None) -> None:
    stage.monkeypatch.setenv("MODE", of_stack or "")
    stage.target(port=1)  # without sessions: only the mode matters
    for of_policy, of_event in product([None, *_ORDER], repeat=2):
        put_policy(stage, json.dumps(policy() | ({"mode": of_policy} if of_policy else {})))
        run = stage.run({"mode": of_event} if of_event else {})
        given = [of_stack or "observe", *filter(None, [of_policy, of_event])]
        expected = min(given, key=_ORDER.index)
        assert run.document["mode"] == expected, given
        assert bool(run.document["targets"]) == (expected != "off")


def test_mode_off_connects_to_nothing(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.monkeypatch.setenv("MODE", "off")
    run = stage.run({"mode": "enforce", "policy": policy()})
    assert run.document["targets"] == []
    assert run.document["status"] == "ok"
    assert run.emails == []
    assert leak.is_there


def test_notify_always_publishes_quiet_runs(stage: Stage) -> None:
    assert stage.reap().emails == []
    stage.monkeypatch.setenv("NOTIFY", "always")
    assert "nothing to terminate" in stage.reap().email.subject


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOPIC_ARN", ""),
        ("TOPIC_ARN", "reaper"),
        ("TARGET_SECRETS", " , "),
        ("TARGET_SECRET_TAG", "team"),
        ("MODE", "kill"),
        ("NOTIFY", "never"),
        ("POLICY", "no-such-file.yaml"),
        ("POLICY", "ssm:/no/such/parameter"),
    ],
)
def test_an_invalid_variable_is_an_error_that_names_it(stage: Stage, name: str, value: str) -> None:
    leak = stage.session(LEAK)
    stage.target()
    stage.monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        stage.run({})
    assert (name if name != "POLICY" else value) in str(raised.value)
    assert leak.is_there


@pytest.mark.parametrize(
    "text", ["", "{", "rules: [", "version: 1", "&a [*a]", "\x00", "{" * 50_000, "version: 1\n" * 9]
)
def test_nothing_is_terminated_if_the_policy_cannot_be_loaded(stage: Stage, text: str) -> None:
    leak = stage.session(LEAK)
    path = Path(stage.server.socket_dir) / "policy.yaml"
    path.write_text(text)
    stage.monkeypatch.setenv("POLICY", str(path))
    with pytest.raises(ConfigurationError):
        stage.run({})
    assert leak.is_there


def test_the_policy_is_read_from_a_file(stage: Stage, tmp_path: Path) -> None:
    leak = stage.session(LEAK)
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\nrules:\n- name: mine\n  match: {state: [idle in transaction], idle_for: 1ms}\n"
    )
    stage.monkeypatch.setenv("POLICY", str(path))
    assert stage.run().session(leak)["rule"] == "mine"


def test_a_policy_in_parameter_store_is_reread_in_every_run(stage: Stage) -> None:
    leak = stage.session(LEAK)
    put_policy(stage, json.dumps(policy(rule(role=["nobody"]))))
    assert stage.run().outcomes() == {}
    put_policy(stage)
    assert stage.run().outcomes() == {leak.pid: "terminated"}


def test_the_bundled_policy_spares_a_recent_leak(stage: Stage) -> None:
    leak = stage.session(LEAK)
    assert stage.run().outcomes() == {}
    assert leak.is_there


def test_only_the_rules_named_by_the_event_apply(stage: Stage) -> None:
    leak = stage.session(LEAK)
    both = policy(rule("a"), rule("b"))
    assert stage.run({"policy": both, "rules": ["b"]}).session(leak)["rule"] == "b"
    with pytest.raises(ConfigurationError, match=r"event\.rules\[0\]"):
        stage.run({"policy": both, "rules": ["c"]})


def test_an_unpublished_summary_is_logged_before_the_error_is_raised(
    stage: Stage, output: Output
) -> None:
    leak = stage.session(LEAK)
    topic = stage.aws.topic_arn.replace("session-reaper", "nowhere")
    stage.monkeypatch.setenv("TOPIC_ARN", topic)
    with pytest.raises(PublishError, match="nowhere"):
        stage.reap()
    (line,) = (line for line in read_log(output) if line["message"] == "run")
    assert line["targets"][0]["sessions"][0]["pid"] == leak.pid
    assert not leak.is_there


def test_a_run_logs_each_decision_each_outcome_and_itself(stage: Stage, output: Output) -> None:
    leaks = stage.sessions(2)
    run = stage.reap(limits={"max_terminations": 1})
    lines = read_log(output)
    assert [line["message"] for line in lines] == [
        *("decision", "decision"),
        *("outcome", "outcome"),
        "run",
    ]
    assert {line["run_id"] for line in lines} == {Context.aws_request_id}
    verdicts = {line["session"]["pid"]: line["verdict"] for line in lines[:2]}
    assert verdicts == {leaks[0].pid: "condemn", leaks[1].pid: "spare"}
    outcomes = {line["session"]["pid"]: line["outcome"] for line in lines[2:4]}
    assert outcomes == {leaks[0].pid: "terminated", leaks[1].pid: "spared"}
    assert {key: lines[4][key] for key in run.document} == run.document


def test_log_lines_are_correlated_with_the_event_of_eventbridge(
    stage: Stage, output: Output
) -> None:
    scheduled = {"id": "53dc4d37", "source": "aws.scheduler", "detail-type": "Scheduled Event"}
    stage.run(scheduled)
    stage.run({})
    first, second = (line for line in read_log(output) if line["message"] == "run")
    assert first["correlation_id"] == "53dc4d37"
    assert second["correlation_id"] == Context.aws_request_id


def test_every_target_has_its_metrics(stage: Stage, output: Output) -> None:
    stage.sessions(2)
    stage.target()
    stage.target("broken", port=1)
    run = stage.reap()
    written = metrics(output)
    assert {line["service"] for line in written} == {"session-reaper"}
    of_targets = [line for line in written if "target" in line]
    lines = {line["target"]: line for line in of_targets if "rule" not in line}
    assert set(lines) == {"orders", "broken"}
    assert lines["orders"]["Terminated"] == [2.0]
    assert lines["orders"]["FailedTargets"] == [0.0]
    assert lines["orders"]["SlotsUsed"] == [pytest.approx(100 / 77)]
    assert lines["broken"]["FailedTargets"] == [1.0]
    assert "SlotsUsed" not in lines["broken"]
    (by_rule,) = (line for line in of_targets if "rule" in line)
    assert (by_rule["target"], by_rule["rule"]) == ("orders", "leak")
    assert by_rule["Terminated"] == [2.0]
    assert written[-1]["SuccessfulRuns"] == [1.0]
    assert written[-1]["FailedTargets"] == [1.0]
    assert 0 < written[-1]["RunDuration"][0] <= 1000 * run.seconds


@pytest.mark.every_major
def test_every_session_is_counted_by_its_state_whatever_its_outcome(
    stage: Stage, output: Output
) -> None:
    leaks = [*stage.sessions(2), stage.session(LEAK, application_name="pg_dump")]
    for state in (ABORTED, ABORTED, IDLE, ACTIVE):
        stage.session(state)
    stage.reap(rule(state=[ABORTED], idle_for="1h"))
    (line,) = (line for line in metrics(output) if "target" in line)
    assert line["SessionsIdleInTransaction"] == [float(len(leaks))]
    assert line["SessionsIdleInTransactionAborted"] == [2.0]
    assert line["SessionsIdle"] == [2.0]  # the superuser's own is there, too
    assert line["SessionsActive"] == [1.0]
    assert 0 < line["OldestIdleInTransaction"][0] < 60
    assert "SessionsFastpathFunctionCall" not in line


def test_a_run_that_raises_is_not_counted_as_successful(stage: Stage, output: Output) -> None:
    stage.session(LEAK)
    topic = stage.aws.topic_arn.replace("session-reaper", "nowhere")
    stage.monkeypatch.setenv("TOPIC_ARN", topic)
    with pytest.raises(PublishError):
        stage.reap()
    lines = metrics(output)
    assert [line["Terminated"] for line in lines if "rule" in line] == [[1.0]]
    assert not any("SuccessfulRuns" in line for line in lines)


def test_the_return_value_is_the_documented_one(stage: Stage) -> None:
    stage.session(LEAK)
    document = stage.reap().document
    assert set(document) == {
        "run_id",
        "mode",
        "status",
        "verdict",
        "steps",
        "summary",
        "totals",
        "targets",
    }
    assert document["verdict"].startswith("RESOLVED: ")
    assert set(document["totals"]) >= {
        "targets",
        "failed",
        "terminated",
        "would_terminate",
        "cancelled",
        "escaped",
        "denied",
        "lingering",
    }
    assert set(document["targets"][0]) == {
        "name",
        "secret",
        "also",
        "status",
        "error",
        "slots",
        "sessions",
        "protected",
        "advice",
    }


def test_without_target_metrics_the_metrics_of_the_run_remain(stage: Stage, output: Output) -> None:
    stage.monkeypatch.setenv("TARGET_METRICS", "no")
    stage.target()
    stage.run()
    (line,) = metrics(output)
    assert "target" not in line
    assert line["SuccessfulRuns"] == [1.0]
