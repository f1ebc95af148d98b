"""Every run of a stack with a hub publishes a compact report, which nothing else depends on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.errors import ConfigurationError

from tests.integration.stage import SCHEDULED, Context, policy, use_typo

if TYPE_CHECKING:
    from tests.integration.conftest import Output
    from tests.integration.stage import Stage


@pytest.fixture
def hub_queue(stage: Stage) -> str:
    """The URL of a queue that gets what the stack publishes to its hub's topic."""
    topic, url = stage.subscribe_queue("hub")
    stage.monkeypatch.setenv("FLEET_TOPIC_ARN", topic)
    stage.monkeypatch.setenv("RUN_INTERVAL", "5m")
    return url


def receive(stage: Stage, url: str) -> list[dict[str, Any]]:
    answer = stage.aws.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
    bodies = [json.loads(each["Body"]) for each in answer.get("Messages", [])]
    return [json.loads(body["Message"]) for body in bodies]


def test_a_run_with_terminations_reports_them_by_application_and_role(
    stage: Stage, hub_queue: str
) -> None:
    stage.use_policy(policy())
    stage.sessions(2, application_name="api", query="SELECT 'CANARY'")
    run = stage.run()
    (document,) = receive(stage, hub_queue)
    assert len(run.emails) == 1
    assert (document["version"], document["account"]) == (1, "123456789012")
    assert document["region"] == "eu-central-1"
    assert document["run"] == Context.aws_request_id
    assert document["verdict"] == run.document["verdict"]
    assert document["totals"]["terminated"] == 2
    assert document["usual"]
    assert document["next_by"] - document["sent_at"] == pytest.approx(300)
    (target,) = document["targets"]
    assert [(each["application"], each["count"]) for each in target["groups"]] == [("api", 2)]
    assert "CANARY" not in json.dumps(document)


def test_a_quiet_run_publishes_no_summary_and_a_report(stage: Stage, hub_queue: str) -> None:
    stage.use_policy(policy())
    assert stage.run(SCHEDULED).emails == []
    (document,) = receive(stage, hub_queue)
    assert document["verdict"].startswith("QUIET")
    assert document["targets"][0]["slots"]["max"] == 80


def test_a_run_on_some_targets_says_that_it_is_not_a_usual_one(
    stage: Stage, hub_queue: str
) -> None:
    stage.target()
    stage.run({"targets": ["orders"], "check": True})
    (document,) = receive(stage, hub_queue)
    assert not document["usual"]


def test_a_configuration_error_is_reported_by_every_run(stage: Stage, hub_queue: str) -> None:
    stage.target()
    use_typo(stage, "fleet")
    for emails in (1, 0):
        with pytest.raises(ConfigurationError):
            stage.run(SCHEDULED)
        assert len(stage.aws.delivered()) == emails
        (document,) = receive(stage, hub_queue)
        assert "fleet: unknown key" in document["configuration_error"]
        assert document["targets"] == []


def test_a_hub_that_cannot_be_reached_costs_a_warning_and_a_metric(
    stage: Stage, hub_queue: str, output: Output
) -> None:
    stage.monkeypatch.setenv("FLEET_TOPIC_ARN", f"{stage.aws.topic_arn}-gone")
    stage.use_policy(policy())
    leak = stage.session()
    run = stage.run()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert len(run.emails) == 1
    lines = [json.loads(line) for line in output.readouterr().out.splitlines()]
    (warning,) = (line for line in lines if line.get("level") == "WARNING")
    assert "-gone" in warning["error"]
    assert [line["FleetReportErrors"] for line in lines if "FleetReportErrors" in line] == [[1.0]]
    assert receive(stage, hub_queue) == []
