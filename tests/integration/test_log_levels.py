"""Only our own logger writes below WARNING, whatever level the environment asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.stage import PASSWORD

if TYPE_CHECKING:
    from infra.local.aws import Aws
    from tests.integration.stage import Stage

FUNCTIONS = Path(__file__).parents[2] / "functions"
URL = "https://localhost:1/services/T0CANARY/B0CANARY/canary"
LEVELS = {
    "AWS_LAMBDA_LOG_LEVEL": "DEBUG",
    "POWERTOOLS_LOG_LEVEL": "DEBUG",
    "LOG_LEVEL": "DEBUG",
    "POWERTOOLS_DEBUG": "true",
    "BOTO_DEBUG": "true",
}
# The lowest levels that Lambda's runtimes can set, before and after the import.
SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from session_reaper.errors import ReaperError
from session_reaper.{module} import lambda_handler
for name in (None, "botocore", "urllib3", "pg8000", "made_later", "made_later.below"):
    logging.getLogger(name).setLevel(logging.DEBUG)
    logging.getLogger(name).info("an info that nobody needs")
    logging.getLogger(name).warning("a warning of %s", name)

class Context:
    function_name = "reaper"
    memory_limit_in_mb = 256
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:reaper"
    aws_request_id = "5f1c0c1e"
    get_remaining_time_in_millis = lambda self: 5000

try:
    lambda_handler({event}, Context())
except ReaperError as error:
    print("raised", type(error).__name__, error)
"""


def output(module: str, event: object, **environment: str) -> str:
    """Return the output of a process that runs the entry point once."""
    variables = {**os.environ, **LEVELS, **environment, "PYTHONPATH": str(FUNCTIONS)}
    ended = subprocess.run(  # noqa: S603 -- our own script
        [sys.executable, "-c", SCRIPT.format(module=module, event=event)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout + ended.stderr


def assert_quiet(said: str) -> None:
    assert "an info that nobody needs" not in said
    assert "a warning of made_later.below" in said
    assert "[DEBUG]" not in said
    assert "DEBUG:" not in said


def test_only_the_reaper_logs_below_warning(stage: Stage) -> None:
    stage.target()
    said = output("handler", {})
    assert '"message":"run"' in said
    assert PASSWORD not in said
    assert_quiet(said)


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_the_webhook_logs_neither_url_nor_secret(cloud: Aws, level: str) -> None:
    cloud.put_secret("webhook", URL)
    event = {"Records": [{"Sns": {"Subject": "a", "Message": json.dumps({"text": "a"})}}]}
    said = output("webhook", event, WEBHOOK_SECRET="webhook", AWS_LAMBDA_LOG_LEVEL=level)  # noqa: S106 -- a name
    assert "raised PublishError" in said
    assert "canary" not in said.lower()
    assert_quiet(said)
