"""Secrets that become targets, and the errors of invalid ones."""

from __future__ import annotations

import json
import time
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from botocore.client import BaseClient
from session_reaper.errors import ConfigurationError

from tests.integration.stage import LEAK, PATIENCE, Run, policy
from tests.integration.wire import aws_but_for, http

if TYPE_CHECKING:
    from tests.integration.stage import Stage

BROKEN: dict[str, object] = {
    "binary": b"\x00\xff",
    "text": "hunter2",
    "list": [1],
    "empty": {},
    "no-host": {"username": "u", "password": "p"},
    "no-user": {"host": "h", "password": "p"},
    "no-password": {"host": "h", "username": "u"},
    "mysql": {"engine": "mysql", "host": "h", "username": "u", "password": "p"},
    "port": {"host": "h", "username": "u", "password": "p", "port": "5432; DROP"},
    "long-port": {"host": "h", "username": "u", "password": "p", "port": "1" * 5000},
    "sslmode": {"host": "h", "username": "u", "password": "p", "sslmode": "prefer"},
    "number": {"host": 7, "username": "u", "password": "p"},
    "surrogate": '{"host": "h", "username": "\\ud800", "password": "p"}',
    "surrogate-name": '{"host": "h", "username": "u", "password": "p", "name": "\\ud800"}',
    "blank-name": {"host": "h.invalid", "username": "u", "password": "p", "name": " "},
    "nul": {"host": "h", "username": "u\0", "password": "p"},
}


def test_invalid_secrets_do_not_affect_a_valid_one(stage: Stage) -> None:
    leak = stage.session(LEAK)
    for name, value in BROKEN.items():
        stage.aws.put_secret(name, value)
        stage.listed(name)
    stage.listed("missing")
    stage.target("healthy")
    run = stage.reap()
    assert run.outcomes("healthy") == {leak.pid: "terminated"}
    assert run.document["status"] == "partial"
    assert run.document["totals"]["failed"] == len(BROKEN) + 1
    for name in [*BROKEN, "missing"]:
        if name == "blank-name":
            continue
        error = run.error(name)
        assert error["code"] == "secret", (name, error)
        assert name in error["message"]
        assert error["hint"]
    assert len(run.emails) == 1


def test_a_denied_secret_is_reported_with_the_missing_permission(stage: Stage) -> None:
    # The stand-in allows everything, so the denial is written into its response.
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001

    def deny(client: BaseClient, operation: str, arguments: dict[str, Any]) -> object:
        answer = call(client, operation, arguments)
        if operation == "BatchGetSecretValue":
            (error,) = answer["Errors"]
            assert error["SecretId"] == "denied"
            error["ErrorCode"] = "AccessDeniedException"
        return answer

    stage.target("healthy")
    stage.listed("denied")
    stage.monkeypatch.setattr(BaseClient, "_make_api_call", deny)
    run = stage.reap()
    assert "AccessDenied" in run.error("denied")["message"]
    assert "secretsmanager:GetSecretValue" in run.error("denied")["hint"]
    assert run.target("healthy")["status"] == "ok"


def test_a_secret_marked_for_deletion_is_reported_with_the_remedy(stage: Stage) -> None:
    stage.target("leaving")
    stage.aws.secrets.delete_secret(SecretId="leaving", RecoveryWindowInDays=7)
    run = stage.reap()
    assert "restore" in run.error("leaving")["hint"]


def test_the_arn_of_a_secret_that_was_created_again_is_reported_with_the_reason(
    stage: Stage,
) -> None:
    stage.target("ledger")
    old = _arn(stage, "ledger")
    stage.aws.secrets.delete_secret(SecretId="ledger", ForceDeleteWithoutRecovery=True)
    stage.target("ledger")
    assert _arn(stage, "ledger") != old
    stage.monkeypatch.setenv("TARGET_SECRETS", old)
    assert "created again has a new ARN" in stage.run({"check": True}).error("ledger")["hint"]


def _arn(stage: Stage, name: str) -> str:
    return str(stage.aws.secrets.describe_secret(SecretId=name)["ARN"])


@pytest.mark.parametrize("way", ["name twice", "name and ARN", "name and tag", "blanks"])
def test_a_secret_configured_twice_is_one_target(stage: Stage, way: str) -> None:
    leak = stage.session(LEAK)
    stage.target()
    if way == "name twice":
        stage.listed("orders")
    elif way == "name and ARN":
        stage.listed(_arn(stage, "orders"))
    elif way == "name and tag":
        tags = [{"Key": "reap", "Value": "yes"}]
        stage.aws.secrets.tag_resource(SecretId="orders", Tags=tags)  # type: ignore[arg-type]
        stage.monkeypatch.setenv("TARGET_SECRET_TAG", "reap=yes")
    else:
        stage.monkeypatch.setenv("TARGET_SECRETS", " orders , ,orders,")
    run = stage.reap()
    assert run.document["totals"]["targets"] == 1
    assert run.outcomes() == {leak.pid: "terminated"}


def test_the_targets_name_is_the_name_then_the_identifier_then_the_secrets(stage: Stage) -> None:
    stage.target("a", name="A", dbInstanceIdentifier="B", dbClusterIdentifier="C", port=1)
    stage.target("b", dbInstanceIdentifier="B", dbClusterIdentifier="C", port=2)
    stage.target("c", dbClusterIdentifier="C", port=3)
    stage.target("d", port=4)
    stage.listed(_arn(stage, stage.target("e", port=5)))
    run = stage.run({"policy": policy()})
    assert sorted(target["name"] for target in run.document["targets"]) == ["A", "B", "C", "d", "e"]


def test_secrets_are_found_by_their_tag(stage: Stage) -> None:
    for name, tags in {
        "tagged": {"team": "shop"},
        "prefix": {"team": "shopping"},
        "other": {"other": "shop"},
        "crossed": {"team": "x", "other": "shop"},
        "untagged": {},
    }.items():
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        text = json.dumps(stage.secret())
        stage.aws.secrets.create_secret(Name=name, SecretString=text, Tags=listed)  # type: ignore[arg-type]
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "team=shop")
    run = stage.reap()
    assert [target["name"] for target in run.document["targets"]] == ["tagged"]


def test_a_tag_that_no_secret_has_is_an_error(stage: Stage) -> None:
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "team=nobody")
    with pytest.raises(ConfigurationError, match="TARGET_SECRET_TAG"):
        stage.reap()


def test_only_the_targets_that_the_event_names_are_reaped(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target("a", port=1)
    stage.target("b", name="orders")
    stage.listed("missing")
    run = stage.run({"targets": ["orders"], "policy": policy()})
    assert [target["name"] for target in run.document["targets"]] == ["orders"]
    assert run.outcomes() == {leak.pid: "terminated"}


def test_an_unknown_target_name_is_an_error_before_any_signal(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target()
    with pytest.raises(ConfigurationError, match=r"event\.targets\[1\].*nobody"):
        stage.run({"targets": ["orders", "nobody"], "policy": policy()})
    assert leak.is_there


def test_a_uri_in_place_of_a_targets_name_is_not_shown(stage: Stage) -> None:
    stage.target()
    with pytest.raises(ConfigurationError, match=r"^event\.targets\[0\]: ") as caught:
        stage.run({"targets": ["postgres://app:hunter2@db.example/orders"]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("service", ["secretsmanager", "AmazonSSM"])
def test_an_aws_api_that_hangs_does_not_delay_the_run_beyond_its_time(
    stage: Stage, service: str
) -> None:
    stage.target()
    if service == "AmazonSSM":
        stage.monkeypatch.setenv("POLICY", "ssm:/policy")
    seconds = 8 if service == "AmazonSSM" else 2
    ended, took = _run_with_silent(stage, service, seconds)
    assert took < seconds + PATIENCE
    if isinstance(ended, Run):
        assert ended.document["status"] == "failed"
        assert len(ended.emails) == 1
    else:
        assert isinstance(ended, ConfigurationError)


@pytest.mark.parametrize("others", [0, 1])  # read by itself, and in a batch
@pytest.mark.parametrize("body", [b"<html><body>no</body></html>", b'"no"', b"[]", b"{}", b""])
@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "503 Service Unavailable"])
def test_if_a_proxy_answers_for_secrets_manager_each_secret_is_reported(
    stage: Stage, status: str, body: bytes, others: int
) -> None:
    for number in range(1 + others):
        stage.target(f"orders-{number}")
    with aws_but_for(b"/secretsmanager/aws4_request", http(status, body)) as proxy:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        run = stage.run(seconds=30)
    assert len(run.document["targets"]) == 1 + others
    for target in run.document["targets"]:
        assert "cannot be read" in target["error"]["message"]
        assert "bug" not in target["error"]["message"]
    assert len(run.emails) == 1


def _run_with_silent(
    stage: Stage, service: str, seconds: float
) -> tuple[Run | ConfigurationError, float]:
    """The result of a run for which one AWS service is silent, and its duration in seconds."""
    ended: list[tuple[Run | ConfigurationError, float]] = []

    def run() -> None:
        started = time.monotonic()
        try:
            result: Run | ConfigurationError = stage.run(seconds=seconds)
        except ConfigurationError as error:
            result = error
        ended.append((result, time.monotonic() - started))

    with aws_but_for(f"{service}.".encode()) as silent:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.port}")
        thread = Thread(target=run)
        thread.start()
        thread.join()
    return ended[0]
