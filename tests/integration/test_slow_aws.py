"""Whatever AWS does, a run ends before the function times out, and reports its outcomes."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from session_reaper.errors import ConfigurationError, PublishError
from session_reaper.handler import lambda_handler

from tests.integration.stage import PATIENCE, TABLE, Context, policy
from tests.integration.wire import (
    Impostor,
    Proxy,
    aws_but_for,
    drip,
    drip_body,
    hang,
    http,
    page_without_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Event

    from infra.local.aws import Email
    from tests.integration.stage import Stage

    Answer = Callable[[socket.socket, Event], None]


PAGE = b"<html><head><title>403 Forbidden</title></head><body>no</body></html>"
ANSWERS: dict[str, Answer] = {
    "silent": hang,
    "drips": drip_body(),
    "page": http("200 OK", PAGE),
    "refusal": http("403 Forbidden", PAGE),
}
ENDLESS = {
    "dynamodb": '{"Items": [], "LastEvaluatedKey": {"target": {"S": "TOKEN"}, "kind": {"S": "k"}}}',
    "secretsmanager": '{"SecretList": [], "NextToken": "TOKEN"}',
    "rds": (
        "<DescribeDBClustersResponse><DescribeDBClustersResult><Marker>TOKEN</Marker><DBClusters/>"
        "</DescribeDBClustersResult></DescribeDBClustersResponse>"
    ),
}


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of an invocation; `left` in seconds, less than 0 if it was late."""

    error: Exception | None
    document: dict[str, Any]
    left: float
    emails: list[Email]


def invoke(stage: Stage, seconds: float) -> End:
    """Invoke the handler as the schedule does."""
    context = Context(seconds)
    error, document = None, {}
    try:
        document = lambda_handler({}, context)  # type: ignore[arg-type]
    except (ConfigurationError, PublishError) as raised:
        error = raised
    left = context.remaining()
    assert left > -PATIENCE, f"{left} s left: {error}"
    return End(error=error, document=document, left=left, emails=stage.aws.delivered())


@contextmanager
def slow(stage: Stage, service: str, answer: Answer) -> Iterator[None]:
    """Make one AWS service, or all requests that contain a text, answer like this."""
    stand_in = os.environ["AWS_ENDPOINT_URL"]
    text = f"/{service}/aws4_request" if service.isalpha() else service
    with aws_but_for(text.encode(), answer) as gateway:
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gateway.port}")
        yield
        stage.monkeypatch.setenv("AWS_ENDPOINT_URL", stand_in)


@contextmanager
def run_late(stage: Stage) -> Iterator[None]:
    """Make the targets use all their time: one of them sends without end."""
    with Impostor(drip(b"N\0\0\0\xff", 0.05)) as target:
        stage.target("late", port=target.port)
        yield


def count_logged(caplog: pytest.LogCaptureFixture, message: str) -> int:
    return [record.message for record in caplog.records].count(message)


@pytest.mark.thorough
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("drips", 10), pytest.param("silent", 10, marks=pytest.mark.thorough)],
)
def test_a_slow_topic_at_the_end_of_the_time_keeps_no_outcome_out_of_the_log(
    stage: Stage, caplog: pytest.LogCaptureFixture, kind: str, seconds: float
) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    with run_late(stage), slow(stage, "sns", ANSWERS[kind]):
        end = invoke(stage, seconds)
    assert isinstance(end.error, PublishError)
    assert "no answer in" in str(end.error) or kind == "silent"
    assert not leak.is_there
    assert (count_logged(caplog, "outcome"), count_logged(caplog, "run")) == (1, 1)
    items = boto3.client("dynamodb").scan(TableName=TABLE)["Items"]
    assert [item["kind"]["S"].split()[0] for item in items] == ["undelivered"]


@pytest.mark.thorough
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("drips", 8),
        ("endless", 8),
        pytest.param("silent", 8, marks=pytest.mark.thorough),
        pytest.param("page", 8, marks=pytest.mark.thorough),
    ],
)
def test_a_slow_table_at_the_end_of_the_time_does_not_prevent_the_summary(
    stage: Stage, caplog: pytest.LogCaptureFixture, kind: str, seconds: float
) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    answer = ANSWERS.get(kind) or page_without_end(ENDLESS["dynamodb"])
    with run_late(stage), slow(stage, "dynamodb", answer):
        end = invoke(stage, seconds)
    assert not leak.is_there
    assert count_logged(caplog, "outcome") == 1
    (email,) = end.emails
    assert "1 session terminated" in email.subject
    assert "memory table could not be read" in " ".join(email.body.split())


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("kind", "which"),
    [
        ("silent", 0),
        pytest.param("drips", 1, marks=pytest.mark.thorough),
        pytest.param("silent", 1, marks=pytest.mark.thorough),
        pytest.param("drips", 0, marks=pytest.mark.thorough),
    ],
)
def test_a_hanging_topic_does_not_delay_the_other(stage: Stage, kind: str, which: int) -> None:
    pager, url = stage.subscribe_queue("pager")
    stage.monkeypatch.setenv("CRITICAL_TOPIC_ARN", pager)
    stage.fill()
    topic = ("session-reaper", "pager")[which]
    with slow(stage, f"%3A{topic}&Subject", ANSWERS[kind]):
        end = invoke(stage, 10)
    assert isinstance(end.error, PublishError)
    assert (len(end.emails), len(stage.read_subjects(url))) == ((0, 1), (1, 0))[which]


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        *((kind, 3) for kind in ANSWERS),
        pytest.param("drips", 10, marks=pytest.mark.thorough),
        pytest.param("silent", 60, marks=pytest.mark.thorough),
    ],
)
def test_a_policy_that_ssm_does_not_return_is_an_error_in_time(
    stage: Stage, kind: str, seconds: float
) -> None:
    stage.target()
    stage.monkeypatch.setenv("POLICY", "ssm:/reaper/policy")
    with slow(stage, "ssm", ANSWERS[kind]):
        end = invoke(stage, seconds)
    assert isinstance(end.error, ConfigurationError)
    assert str(end.error).startswith("POLICY ssm:/reaper/policy: parameter: cannot be read: ")
    assert end.left > 0.7 * seconds - PATIENCE
    if seconds > 10:
        assert end.left > 0.3 * seconds  # the policy has a part of the time, not all of it


@pytest.mark.parametrize("kind", [*ANSWERS, "endless"])
def test_secrets_that_cannot_be_listed_are_reported_in_time(stage: Stage, kind: str) -> None:
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "team=shop")
    answer = ANSWERS.get(kind) or page_without_end(ENDLESS["secretsmanager"])
    with slow(stage, "secretsmanager", answer):
        end = invoke(stage, 6)
    assert end.document["status"] == "failed"
    (email,) = end.emails
    assert "tag team=shop" in email.subject


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("silent", 1),
        ("page", 1),
        ("drips", 2),
        ("refusal", 2),
        *(
            pytest.param(kind, number, marks=pytest.mark.thorough)
            for kind, number in (("drips", 1), ("refusal", 1), ("silent", 2), ("page", 2))
        ),
    ],
)
def test_secrets_that_cannot_be_read_are_reported_in_time(
    stage: Stage, kind: str, number: int
) -> None:
    for index in range(number):
        stage.target(f"orders-{index}")
    with slow(stage, "secretsmanager", ANSWERS[kind]):
        end = invoke(stage, 6)
    messages = [target["error"]["message"] for target in end.document["targets"]]
    assert len(messages) == number
    assert all("cannot be read" in message for message in messages)
    assert len(end.emails) == 1


@pytest.mark.parametrize("kind", [*ANSWERS, "endless"])
def test_if_rds_does_not_answer_the_host_of_the_secret_is_used(stage: Stage, kind: str) -> None:
    stage.use_policy(policy())
    stage.target(dbClusterIdentifier="orders")
    leak = stage.session()
    answer = ANSWERS.get(kind) or page_without_end(ENDLESS["rds"])
    with slow(stage, "rds", answer):
        end = invoke(stage, 6)
    assert not leak.is_there
    assert len(end.emails) == 1


@pytest.mark.thorough
def test_a_secret_that_drips_when_reread_keeps_the_first_error_of_its_target(
    stage: Stage,
) -> None:
    stage.use_policy(policy())
    stage.target()
    leak = stage.session()
    with Proxy(stage.server.port) as elsewhere:
        stage.target("wrong", password="wrong", port=elsewhere.port)  # noqa: S106 -- it is
        with slow(stage, "secretsmanager.GetSecretValue", drip_body()):
            end = invoke(stage, 6)
    assert not leak.is_there
    assert len(end.emails) == 1
    orders, wrong = end.document["targets"]
    assert orders["error"] is None
    assert wrong["error"]["code"] in {"28P01", "deadline"}


def _waits_without_end(*_: object, **__: object) -> list[Any]:
    threading.Event().wait(20)
    raise socket.gaierror


@pytest.fixture
def full_backlog() -> Iterator[tuple[str, int]]:
    """An address that drops every SYN: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address: tuple[str, int] = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.settimeout(0)
            filler.connect_ex(address)
        yield address
        for filler in fillers:
            filler.close()


@pytest.mark.thorough
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("fault", "seconds"),
    [("name", 5), ("addresses", 5), pytest.param("addresses", 10, marks=pytest.mark.thorough)],
)
def test_a_hanging_name_server_or_network_does_not_outlast_the_function(
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    full_backlog: tuple[str, int],
    fault: str,
    seconds: float,
) -> None:
    """Only for calls at the end of a run; their threads are named after the service."""
    resolve = socket.getaddrinfo
    three = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", full_backlog)] * 3
    over = threading.Event()

    def call_slowly(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 -- socket's own
        if threading.current_thread().name.startswith(("call-sns", "call-dynamodb")):
            if fault == "addresses":
                return three
            over.wait(20)
        return resolve(*arguments, **named)

    stage.use_policy(policy())
    leak = stage.session()
    stage.cleanup(over.set)
    with (
        run_late(stage),
        slow(stage, "none", hang),
    ):  # a new endpoint: no connection is open already
        stage.monkeypatch.setattr(socket, "getaddrinfo", call_slowly)
        end = invoke(stage, seconds)
        stage.monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert isinstance(end.error, PublishError)
    assert not leak.is_there
    assert (count_logged(caplog, "outcome"), count_logged(caplog, "run")) == (1, 1)


@contextmanager
def no_thread_for_calls(stage: Stage) -> Iterator[None]:
    """Make the process unable to start threads for the calls at the end of a run."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(("call-sns", "call-dynamodb")):
            raise RuntimeError("can't start new thread")
        start(thread)

    # A new endpoint, so that its pools have no thread yet.
    with slow(stage, "none", hang), stage.monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.thorough)])
def test_the_summary_is_published_without_a_new_thread(
    stage: Stage, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    pager, url = stage.subscribe_queue("pager")
    stage.monkeypatch.setenv("CRITICAL_TOPIC_ARN", pager)
    stage.fill()
    with no_thread_for_calls(stage):
        end = invoke(stage, seconds)
    assert end.error is None
    assert (len(end.emails), len(stage.read_subjects(url))) == (1, 1)
    assert count_logged(caplog, "run") == 1


@pytest.mark.thorough
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("seconds", [6, pytest.param(10, marks=pytest.mark.thorough)])
def test_without_a_new_thread_a_silent_topic_does_not_outlast_the_function(
    stage: Stage, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    stage.use_policy(policy())
    leak = stage.session()
    with run_late(stage), slow(stage, "sns", hang):
        gateway = os.environ["AWS_ENDPOINT_URL"]
        with no_thread_for_calls(stage):
            stage.monkeypatch.setenv("AWS_ENDPOINT_URL", gateway)
            end = invoke(stage, seconds)
    assert isinstance(end.error, PublishError)
    assert "ReadTimeoutError" in str(end.error)
    assert not leak.is_there
    assert (count_logged(caplog, "outcome"), count_logged(caplog, "run")) == (1, 1)


@pytest.mark.thorough
@pytest.mark.usefixtures("table")
def test_dripping_services_at_the_end_of_a_minute_get_their_share_of_time_only(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """About 19 s: 3 to read the table, 13 to publish, 3 to write."""
    stage.use_policy(policy())
    leak = stage.session()
    began = time.monotonic()
    with slow(stage, "dynamodb", drip_body()), slow(stage, "sns", drip_body()):
        end = invoke(stage, 60)
    assert time.monotonic() - began < 45
    assert isinstance(end.error, PublishError)
    assert not leak.is_there
    assert (count_logged(caplog, "outcome"), count_logged(caplog, "run")) == (1, 1)


# A proxy that refuses, and shows the request.
ECHO = http("403 Forbidden", b"<pre>Authorization: AWS4-HMAC X-Amz-Security-Token: TOKEN</pre>")


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("service", ["dynamodb", "rds", "secretsmanager", "sns"])
def test_a_page_that_repeats_the_request_shows_no_credential(
    stage: Stage, caplog: pytest.LogCaptureFixture, service: str
) -> None:
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "team=shop")
    stage.use_policy(policy())
    stage.session()
    with slow(stage, service, ECHO):
        end = invoke(stage, 20)
    shown = f"{end.error}{end.document}{[vars(record) for record in caplog.records]}{end.emails}"
    assert "AWS4-HMAC" not in shown
    assert "not from AWS" in shown or service == "rds"  # which the secret does not need
