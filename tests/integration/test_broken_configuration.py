"""A scheduled run whose configuration is invalid says so; the mode may be in a parameter."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import jsonschema
import pytest
from botocore.client import BaseClient
from session_reaper.errors import ConfigurationError

from tests.integration.notification_state import age_items, read_items, read_kinds
from tests.integration.slack import NOTIFICATION_SCHEMA
from tests.integration.stage import SCHEDULED, Stage, policy, use_typo

if TYPE_CHECKING:
    from infra.local.aws import Email
    from tests.integration.conftest import Output

SECRET = "hunter2-CANARY"  # noqa: S105 -- of nothing
URI = f"postgres://app:{SECRET}@db.example:5432/orders"


def fail(stage: Stage, match: str, event: object = SCHEDULED) -> list[Email]:
    """Invoke the function, which must raise, and return what it published."""
    with pytest.raises(ConfigurationError, match=match):
        stage.run(event)
    return list(stage.aws.delivered())


@pytest.mark.usefixtures("table")
def test_a_policy_that_does_not_load_is_published_once_and_a_different_error_at_once(
    stage: Stage,
) -> None:
    use_typo(stage, "first")
    (email,) = fail(stage, "first")
    assert email.subject.startswith(
        "nothing is terminated, the configuration is invalid: POLICY ssm:policy: rules[0]."
    )
    assert email.body.startswith("ACTION NEEDED: The configuration is invalid.")
    assert "nothing is terminated until it is fixed" in " ".join(email.body.split())
    assert "1. Fix POLICY ssm:policy: rules[0].first: unknown key; known:" in email.body
    assert "mode unknown" in email.body
    assert email.attributes["severity"] == "warning"
    assert email.attributes["status"] == "failed"
    jsonschema.validate(json.loads(email.chat), NOTIFICATION_SCHEMA)
    assert fail(stage, "first") == []
    use_typo(stage, "second")
    assert len(fail(stage, "second")) == 1
    use_typo(stage, "first")
    assert len(fail(stage, "first")) == 1
    assert len(read_items()) == 1
    age_items(3000)
    assert fail(stage, "first") == []
    age_items(600)
    assert len(fail(stage, "first")) == 1


@pytest.mark.usefixtures("table")
def test_an_error_that_returns_after_a_valid_run_is_news(stage: Stage) -> None:
    for _ in range(2):
        use_typo(stage, "again")
        assert len(fail(stage, "again")) == 1
        stage.use_policy(policy())
        stage.run(SCHEDULED)
        assert read_kinds() == set()


def test_without_a_table_the_process_keeps_the_known_issues(stage: Stage) -> None:
    use_typo(stage, "third")
    assert len(fail(stage, "third")) == 1
    assert fail(stage, "third") == []
    use_typo(stage, "fourth")
    assert len(fail(stage, "fourth")) == 1
    stage.monkeypatch.setenv("REMIND_AFTER", "1ms")
    time.sleep(0.002)
    assert len(fail(stage, "fourth")) == 1
    stage.monkeypatch.delenv("REMIND_AFTER")
    stage.use_policy(policy())
    stage.run(SCHEDULED)
    use_typo(stage, "fourth")
    assert len(fail(stage, "fourth")) == 1
    stage.use_policy(policy())
    stage.run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TARGET_SECRETS", URI),
        ("TARGET_SECRET_TAG", URI),
        ("POLICY", URI),
        ("MODE", URI),
        ("MEMORY_TABLE", URI),
        ("REMIND_AFTER", URI),
        ("DASHBOARD", URI),
        ("CRITICAL_TOPIC_ARN", URI),
    ],
)
def test_the_published_error_names_the_variable_and_shows_no_secret(
    stage: Stage, output: Output, name: str, value: str
) -> None:
    stage.target()
    stage.monkeypatch.setenv(name, value)
    (email,) = fail(stage, name)
    assert name in email.body
    written = email.subject + email.body + email.chat + email.webhook + output.readouterr().out
    assert SECRET not in written
    assert "db.example" not in written


@pytest.mark.parametrize("topic", ["not-an-arn", URI, "", "gone"])
def test_the_critical_topic_gets_the_error_if_the_other_topic_is_broken(
    stage: Stage, topic: str
) -> None:
    critical, queue = stage.subscribe_queue("critical-topic")
    stage.monkeypatch.setenv("CRITICAL_TOPIC_ARN", critical)
    stage.monkeypatch.setenv("TOPIC_ARN", topic)
    if topic == "gone":
        stage.monkeypatch.setenv("TOPIC_ARN", f"{stage.aws.topic_arn}-gone")
        stage.monkeypatch.setenv("NOTIFY", "sometimes")
    variable = "NOTIFY" if topic == "gone" else "TOPIC_ARN"
    assert fail(stage, variable) == []
    (subject,) = stage.read_subjects(queue)
    assert subject.startswith(f"nothing is terminated, the configuration is invalid: {variable}: ")


def test_if_no_topic_is_valid_the_error_is_raised(stage: Stage) -> None:
    stage.monkeypatch.setenv("TOPIC_ARN", "not-an-arn")
    assert fail(stage, "TOPIC_ARN") == []


def test_a_tag_that_no_secret_has_is_published(stage: Stage) -> None:
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "team=nobody")
    (email,) = fail(stage, "TARGET_SECRET_TAG")
    assert "no secret has this tag" in email.body


@pytest.mark.parametrize("event", [{}, {"check": True}, {"cheque": True}, {"targets": ["nowhere"]}])
def test_a_manual_run_only_raises_the_error(stage: Stage, event: dict[str, object]) -> None:
    if "cheque" not in event and "targets" not in event:
        use_typo(stage, "manual")
    assert fail(stage, "manual|cheque|nowhere", event) == []


def test_an_error_that_waits_for_aws_is_the_same_error_in_every_run(stage: Stage) -> None:
    stage.use_policy(policy())
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- botocore's one way out
    pauses = iter([1.0, 1.3])

    def hang(client: BaseClient, operation: str, arguments: dict[str, object]) -> object:
        if operation == "GetParameter":
            time.sleep(5)
        return call(client, operation, arguments)

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", hang)
    published = []
    for pause in pauses:
        with pytest.raises(ConfigurationError, match="no answer in"):
            stage.run(SCHEDULED, seconds=10 * pause / 3)
        published += stage.aws.delivered()
    assert len(published) == 1


def test_a_scheduled_run_with_an_invalid_configuration_is_a_metric(
    stage: Stage, output: Output
) -> None:
    use_typo(stage, "metric")
    fail(stage, "metric")
    documents = [json.loads(line) for line in output.readouterr().out.splitlines()]
    assert [each["ConfigurationErrors"] for each in documents if "_aws" in each] == [[1.0]]
    (line,) = [each for each in documents if each.get("message") == "invalid configuration"]
    assert line["published"] is True
    fail(stage, "metric", {})
    assert "ConfigurationErrors" not in output.readouterr().out
    stage.use_policy(policy())
    stage.run()


# -- the mode in a parameter -----------------------------------------------------------------------


def put_mode(stage: Stage, value: str) -> None:
    stage.aws.ssm.put_parameter(Name="/reaper/mode", Value=value, Type="String", Overwrite=True)
    stage.monkeypatch.setenv("MODE", "ssm:/reaper/mode")


def test_the_mode_in_a_parameter_applies_from_the_next_run_on(stage: Stage) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    for mode, outcomes in {
        "off": None,
        "observe": "would_terminate",
        "enforce": "terminated",
    }.items():
        put_mode(stage, f" {mode}\n")
        run = stage.run(SCHEDULED)
        assert run.document["mode"] == mode
        if outcomes:
            assert run.outcomes() == {leak.pid: outcomes}
    put_mode(stage, "enforce")
    assert stage.run({"mode": "observe"}).document["mode"] == "observe"
    stage.use_policy(policy(mode="observe"))
    assert stage.run(SCHEDULED).document["mode"] == "observe"


@pytest.mark.parametrize("value", [None, "Enforce", "enforced", "ssm:/reaper/mode", URI, SECRET])
def test_a_mode_parameter_that_is_missing_or_invalid_terminates_nothing(
    stage: Stage, output: Output, value: str | None
) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    put_mode(stage, "off")
    stage.run(SCHEDULED)  # a valid configuration, so that the same error is news
    put_mode(stage, value or "enforce")
    if value is None:
        stage.aws.ssm.delete_parameter(Name="/reaper/mode")
    (email,) = fail(stage, "MODE ssm:/reaper/mode: ")
    assert leak.is_there
    said = " ".join(email.body.split())
    assert "MODE ssm:/reaper/mode: " in said
    assert "off, observe" in said
    assert ".." not in said
    assert SECRET not in said + email.subject + email.chat + email.webhook + output.readouterr().out
