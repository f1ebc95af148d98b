"""What `sam build` made, and nothing else, under the real Lambda runtime client."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.local.aws import Aws, aws
from infra.local.postgres import Server, bundled_builds, server
from tests.artifact.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
EVENTS = sorted((ROOT / "events").glob("*.json"))
PASSWORD = "canary-of-the-artifact"  # noqa: S105 -- of a server that lives for seconds
POLICY = {
    "version": 1,
    "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "1ms"}}],
}


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    with server(bundled_builds()[18]) as running, contextlib.closing(running.connect()) as admin:
        admin.run((ROOT / "infra/database/reaper_role.sql").read_text())
        admin.run(f"ALTER ROLE session_reaper PASSWORD '{PASSWORD}'")
        admin.run("CREATE ROLE app LOGIN PASSWORD 'app'")
        yield running


@pytest.fixture(scope="module")
def cloud(database: Server) -> Iterator[Aws]:
    with aws() as stand_in:
        secret = {
            "host": database.host,
            "port": database.port,
            "username": "session_reaper",
            "password": PASSWORD,
            "sslmode": "disable",
        }
        stand_in.put_secret("orders", secret)
        yield stand_in


@pytest.fixture(scope="module")
def runtime(artifact: Path, library: Path, cloud: Aws) -> Iterator[Runtime]:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    environment |= {"TARGET_SECRETS": "orders", "TOPIC_ARN": cloud.topic_arn, "MODE": "enforce"}
    handler = "session_reaper.handler.lambda_handler"
    with Runtime(artifact, handler, library, environment=environment) as started:
        yield started


@pytest.mark.parametrize("event", EVENTS, ids=lambda path: path.stem)
def test_every_event_of_the_console_is_answered_with_a_report(
    runtime: Runtime, event: Path
) -> None:
    answer = runtime.invoke(json.loads(event.read_text()))

    assert answer.error is None
    assert _document(answer.payload)["summary"].startswith("orders: ")


def test_a_leak_is_terminated_and_reported_everywhere(
    runtime: Runtime, database: Server, cloud: Aws
) -> None:
    cloud.delivered()
    leak = database.connect(user="app", password="app", application_name="leaky")  # noqa: S106 -- as above
    leak.run("BEGIN")
    leak.run("SELECT 'a literal', 4711")
    (pid,) = database_pids(database, "leaky")

    answer = runtime.invoke({"policy": POLICY})

    document = _document(answer.payload)
    (session,) = document["targets"][0]["sessions"]
    assert (session["pid"], session["outcome"]) == (pid, "terminated")
    assert database_pids(database, "leaky") == []
    (email,) = cloud.delivered()
    assert email.subject == document["summary"]
    decisions = [r["session"] for r in answer.records if r.get("message") == "decision"]
    assert [decision["pid"] for decision in decisions if isinstance(decision, dict)] == [pid]
    for said in (json.dumps(document), email.body, answer.log):
        assert PASSWORD not in said
        assert "a literal" not in said
        assert "4711" not in said
    with contextlib.suppress(Exception):  # its session is gone; goodbye reaches nobody
        leak.close()


def test_a_mistake_in_the_event_is_an_error_that_names_it(runtime: Runtime) -> None:
    answer = runtime.invoke({"polcy": {}})

    assert answer.error is not None
    assert answer.error["errorType"] == "ConfigurationError"
    assert "event.polcy: unknown key" in str(answer.error["errorMessage"])


def test_the_artifact_holds_the_package_whole_and_compiled(artifact: Path) -> None:
    package = ROOT / "functions" / "session_reaper"
    shipped = {
        path.relative_to(package)
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    missing = [path for path in shipped if not (artifact / "session_reaper" / path).is_file()]
    assert missing == []
    assert not (artifact / "boto3").exists()
    sources = list((artifact / "session_reaper").glob("*.py"))
    compiled = list((artifact / "session_reaper" / "__pycache__").glob("*.cpython-313.pyc"))
    assert len(sources) == len(compiled)


def database_pids(database: Server, application: str) -> list[int]:
    with contextlib.closing(database.connect()) as admin:
        rows = admin.run(
            "SELECT pid FROM pg_stat_activity WHERE application_name = :name", name=application
        )
    return [row[0] for row in rows]


def _document(payload: object) -> dict[str, Any]:
    assert isinstance(payload, dict)
    return payload
