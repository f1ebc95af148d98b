"""The webhook function against an HTTPS server in the place of Slack."""

from __future__ import annotations

import json
import logging
import socket
import time
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest
from session_reaper.errors import ConfigurationError, ReaperError
from session_reaper.webhook import lambda_handler

from infra.local.certificates import make_tls
from tests.integration.slack import PATH, Reply, Slack, run_slack
from tests.integration.stage import PATIENCE, Context
from tests.integration.wire import aws_but_for, drip_body, hang, http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from threading import Event

    from infra.local.aws import Aws
    from infra.local.postgres import Tls

OURS = {"text": "orders: 3 sessions terminated", "blocks": [{"type": "divider"}]}


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tls:
    """Make a certificate of an authority that this process trusts."""
    made = make_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    return made


@pytest.fixture
def store(cloud: Aws, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    def put(secret: object) -> None:
        cloud.put_secret("webhook", secret)
        monkeypatch.setenv("WEBHOOK_SECRET", "webhook")

    return put


@pytest.fixture
def slack(tls: Tls, store: Callable[[object], None]) -> Iterator[Callable[..., Slack]]:
    """Return a function that starts a Slack with these replies and stores its URL."""
    with ExitStack() as stack:

        def start(*replies: Reply) -> Slack:
            started = stack.enter_context(run_slack(tls, replies or (Reply(),)))
            store(started.url)
            return started

        yield start


@pytest.fixture(autouse=True)
def _url_is_never_shown(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """Check every log line and all output of each test."""
    level = logging.getLogger().level  # caplog's own way would undo what log_levels.py does
    logging.getLogger().setLevel(logging.DEBUG)
    yield
    logging.getLogger().setLevel(level)
    output = capfd.readouterr()
    logged = [caplog.handler.format(record) for record in caplog.get_records("call")]
    assert "canary" not in "\n".join([*logged, output.out, output.err]).lower()


def deliver(
    message: object = OURS, *, subject: str | None = "a subject", seconds: float = 30
) -> None:
    """Invoke the function as SNS does."""
    text = message if isinstance(message, str) else json.dumps(message)
    record = {"EventSource": "aws:sns", "Sns": {"Subject": subject, "Message": text}}
    lambda_handler({"Records": [record]}, cast("Any", Context(seconds)))


def error_of_delivery(*, seconds: float = 30) -> str:
    """Return the error of an invocation; its traceback must not show the URL."""
    with pytest.raises(ReaperError) as raised:
        deliver(seconds=seconds)
    assert "canary" not in "".join(traceback.format_exception(raised.value)).lower()
    return str(raised.value)


def test_a_summary_is_posted_unchanged(slack: Callable[..., Slack]) -> None:
    here = slack()
    deliver(OURS)
    assert (here.posts, here.paths) == ([OURS], [PATH])


@pytest.mark.parametrize("secret", ["{url}", " {url}\n", '{{"url": "{url}"}}'])
def test_the_secret_contains_the_url_as_text_or_as_json(
    tls: Tls, store: Callable[[object], None], secret: str
) -> None:
    with run_slack(tls, (Reply(),)) as here:
        store(secret.format(url=here.url))
        deliver()
    assert here.posts == [OURS]


def test_an_alarm_of_cloudwatch_is_posted_as_text_with_its_description(
    slack: Callable[..., Slack],
) -> None:
    here = slack()
    deliver(
        {
            "AlarmName": "orders-full",
            "AlarmDescription": "Slots are used up.\nLook <here>.",
            "NewStateValue": "ALARM",
            "NewStateReason": "91.0 >= 85.0",
            "Trigger": {"MetricName": "SlotsUsed"},
        }
    )
    text = "ALARM: orders-full\nSlots are used up.\nLook &lt;here&gt;.\n91.0 &gt;= 85.0"
    assert here.posts == [{"text": text}]


@pytest.mark.parametrize(
    ("subject", "message", "text"),
    [
        ("Hello", "<!channel> & all", "Hello\n&lt;!channel&gt; &amp; all"),
        (None, "no subject", "no subject"),
        ("Cut", "&" * 9000, "Cut\n" + "&amp;" * 2996),
        (None, '["text"]', '["text"]'),
        (None, '{"text": 1}', '{"text": 1}'),
        (None, "[" * 100_000, "[" * 3000),
    ],
)
def test_any_other_message_is_posted_as_escaped_text(
    slack: Callable[..., Slack], subject: str | None, message: str, text: str
) -> None:
    here = slack()
    deliver(message, subject=subject)
    assert here.posts == [{"text": text}]


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(status=500), "500, ok"),
        (Reply(status=503, said=PATH), "503, no reason"),
        (Reply(status=429, headers={"Retry-After": "2"}, said="rate_limited"), "429, rate_limited"),
    ],
)
def test_a_message_is_posted_once_per_invocation_and_lambda_repeats_it(
    slack: Callable[..., Slack], reply: Reply, problem: str
) -> None:
    here = slack(reply, Reply())
    assert f"did not reach Slack: {problem}." in error_of_delivery()
    assert len(here.posts) == 1
    deliver()
    assert here.posts == [OURS, OURS]


def test_a_slack_that_hangs_is_an_error_before_lambda_ends_the_invocation(
    slack: Callable[..., Slack],
) -> None:
    slack(Reply(hangs=True))
    began = time.monotonic()
    assert "did not reach Slack: no answer in " in error_of_delivery(seconds=4)
    assert time.monotonic() - began < 4 + PATIENCE


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.thorough)])
def test_a_slack_that_answers_byte_by_byte_is_an_error_before_lambda_ends_the_invocation(
    slack: Callable[..., Slack], seconds: float
) -> None:
    slack(Reply(drips=True))
    began = time.monotonic()
    assert "did not reach Slack: no answer in " in error_of_delivery(seconds=seconds)
    assert time.monotonic() - began < seconds + PATIENCE


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "answer", [hang, drip_body(), http("200 OK", b"<html>no</html>")], ids="abc"
)
def test_a_secret_that_cannot_be_read_in_time_is_an_error_that_names_it(
    store: Callable[[object], None],
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[socket.socket, Event], None],
    seconds: float,
) -> None:
    store("https://localhost/canary/canary")
    with aws_but_for(b"/secretsmanager/aws4_request", answer) as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gateway.port}")
        began = time.monotonic()
        assert error_of_delivery(seconds=seconds).startswith("secret webhook cannot be read: ")
        assert time.monotonic() - began < seconds + PATIENCE


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "action_prohibited"),
        (404, "no_service"),
        (410, "channel_is_archived"),
        (400, "invalid_payload"),
    ],
)
def test_an_error_code_of_slack_is_shown_with_a_hint(
    slack: Callable[..., Slack], status: int, said: str
) -> None:
    here = slack(Reply(status=status, said=said))
    assert error_of_delivery() == (
        f"the message did not reach Slack: {status}, {said}. "
        "If the webhook was removed, store the URL of a new one in secret webhook."
    )
    assert len(here.posts) == 1


@pytest.mark.parametrize("said", [f"<p>{PATH} was not found", "canary", "\0", "x" * 5000, ""])
def test_text_that_is_not_an_error_code_is_not_shown(
    slack: Callable[..., Slack], said: str
) -> None:
    slack(Reply(status=404, said=said))
    assert "404, no reason." in error_of_delivery()


def test_a_new_webhook_is_used_from_the_next_invocation_on(
    slack: Callable[..., Slack], tls: Tls, cloud: Aws
) -> None:
    slack(Reply(status=404, said="no_service"))
    assert "no_service" in error_of_delivery()
    with run_slack(tls, (Reply(),)) as new:
        cloud.secrets.put_secret_value(SecretId="webhook", SecretString=new.url)
        deliver()
    assert new.posts == [OURS]


def test_a_redirect_is_not_followed(slack: Callable[..., Slack], tls: Tls) -> None:
    with run_slack(tls, (Reply(),)) as elsewhere:
        slack(Reply(status=307, headers={"Location": elsewhere.url}))
        assert "307, ok" in error_of_delivery()
    assert elsewhere.posts == []


def test_nothing_is_posted_to_a_server_that_the_system_does_not_trust(
    slack: Callable[..., Slack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = slack()
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(make_tls(tmp_path / "other").authority))
    assert "SSLError" in error_of_delivery()
    assert here.posts == []


def test_a_refused_connection_is_an_error_without_the_url(store: Callable[[object], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store(f"https://localhost:{port}{PATH}")
    assert "NewConnectionError" in error_of_delivery()


@pytest.mark.parametrize(
    "secret",
    [
        f"http://hooks.slack.com{PATH}",
        f"hooks.slack.com{PATH}",
        f"https://{PATH}",
        f"https://hooks.slack.com{PATH} {PATH}",
        {"uri": f"https://hooks.slack.com{PATH}"},
        {"url": ["https://canary/canary"]},
        b"canary",
        "-",
    ],
)
def test_a_secret_without_an_https_url_is_an_error_that_names_it(
    store: Callable[[object], None], secret: object
) -> None:
    store(secret)
    assert (
        error_of_delivery()
        == 'secret webhook must contain an https URL, as text or as {"url": "…"}'
    )


def test_an_invalid_host_is_an_error_that_does_not_show_it(
    store: Callable[[object], None],
) -> None:
    store(f"https://[canary{PATH}")
    assert "LocationParseError" in error_of_delivery()


def test_a_missing_secret_is_an_error_that_names_it(
    cloud: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cloud.secrets.list_secrets()["SecretList"] == []
    monkeypatch.setenv("WEBHOOK_SECRET", "nothing-there")
    said = error_of_delivery()
    assert said.startswith("secret nothing-there cannot be read: ")
    assert "ResourceNotFoundException" in said
    assert "WEBHOOK_SECRET" in said


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_missing_variable_is_named(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBHOOK_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("WEBHOOK_SECRET", value)
    with pytest.raises(ConfigurationError, match=r"^WEBHOOK_SECRET: is required"):
        deliver()
