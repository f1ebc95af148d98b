"""The output of `sam build` under the real Lambda runtime client."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from infra.local.aws import Aws, aws
from infra.local.certificates import make_tls
from infra.local.postgres import Server, Tls, bundled_builds, npm_builds, server
from tests.artifact.runtime import InitError, Runtime
from tests.integration.slack import Reply, run_slack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SERVERS = ROOT / ".tools" / "servers"
EVENTS = sorted((ROOT / "events").glob("*.json"))
PASSWORD = "canary-of-the-artifact"  # noqa: S105 -- of a server that lives for seconds
POLICY = {
    "version": 1,
    "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "1ms"}}],
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def database(tls: Tls) -> Iterator[Server]:
    # With TLS if `make matrix` or `make bench` has installed servers that have it, as in CI.
    build = npm_builds(SERVERS)[18] if SERVERS.is_dir() else bundled_builds()[18]
    with (
        server(build, tls=tls if build.tls else None) as running,
        contextlib.closing(running.connect()) as admin,
    ):
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
        }
        if database.tls:
            secret["sslrootcert"] = database.tls.authority.read_text()
        else:
            secret["sslmode"] = "disable"
        stand_in.put_secret("orders", secret)
        yield stand_in


@pytest.fixture(scope="module")
def function(artifact: Path, library: Path, cloud: Aws) -> Callable[..., Runtime]:
    """Start a runtime of the built artifact, with these variables added to the usual ones."""

    def make(**environment: str) -> Runtime:
        usual = {"TARGET_SECRETS": "orders", "TOPIC_ARN": cloud.topic_arn, "MODE": "enforce"}
        return Runtime(
            artifact,
            "session_reaper.handler.lambda_handler",
            library,
            environment=_make_environment() | usual | environment,
            read_only=True,
        )

    return make


@pytest.fixture(scope="module")
def runtime(function: Callable[..., Runtime]) -> Iterator[Runtime]:
    with function() as started:
        yield started


@pytest.mark.parametrize("event", EVENTS, ids=lambda path: path.stem)
def test_every_event_of_the_console_is_answered_with_a_report(
    runtime: Runtime, event: Path
) -> None:
    answer = runtime.invoke(json.loads(event.read_text()))

    assert answer.error is None
    assert _get_document(answer.payload)["summary"].startswith("orders: ")


def test_a_leak_is_terminated_and_reported_everywhere(
    runtime: Runtime, database: Server, cloud: Aws
) -> None:
    cloud.delivered()
    leak = database.connect(user="app", password="app", application_name="leaky")  # noqa: S106 -- as above
    leak.run("BEGIN")
    leak.run("SELECT 'a literal', 4711")
    (pid,) = list_pids(database, "leaky")

    answer = runtime.invoke({"policy": POLICY})

    document = _get_document(answer.payload)
    (session,) = document["targets"][0]["sessions"]
    assert (session["pid"], session["outcome"]) == (pid, "terminated")
    assert list_pids(database, "leaky") == []
    (email,) = cloud.delivered()
    assert email.subject == document["summary"]
    decisions = [r["session"] for r in answer.records if r.get("message") == "decision"]
    assert [decision["pid"] for decision in decisions if isinstance(decision, dict)] == [pid]
    for said in (json.dumps(document), email.body, answer.log):
        assert PASSWORD not in said
        assert "a literal" not in said
        assert "4711" not in said
    with contextlib.suppress(Exception):  # its session is gone, so closing fails
        leak.close()


def test_no_library_logs_what_it_reads_at_any_log_level(
    function: Callable[..., Runtime],
) -> None:
    levels = ("AWS_LAMBDA_LOG_LEVEL", "POWERTOOLS_LOG_LEVEL", "LOG_LEVEL")
    with function(**dict.fromkeys(levels, "DEBUG"), POWERTOOLS_DEBUG="true") as runtime:
        answer = runtime.invoke({})
    assert answer.error is None
    assert [record.get("message") for record in answer.records].count("run") == 1
    assert PASSWORD not in answer.log
    loggers = {str(record.get("logger", "")).partition(".")[0] for record in answer.records}
    assert not loggers & {"botocore", "urllib3", "pg8000", "aws_lambda_powertools"}


def test_a_yaml_policy_and_the_notification_state_are_used(
    function: Callable[..., Runtime], cloud: Aws
) -> None:
    policy = """
        version: 1
        rules: [{name: written-in-yaml, match: {state: [idle in transaction], idle_for: 1h}}]
    """
    cloud.ssm.put_parameter(Name="policy", Value=policy, Type="String")
    table = boto3.client("dynamodb")
    names = ("target", "kind")
    table.create_table(
        TableName="memory",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in names],
        KeySchema=[
            {"AttributeName": "target", "KeyType": "HASH"},
            {"AttributeName": "kind", "KeyType": "RANGE"},
        ],
    )
    scheduled = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}

    with function(POLICY="ssm:policy", MEMORY_TABLE="memory", TARGET_SECRETS="gone") as runtime:
        failed = runtime.invoke(scheduled)
    with function(POLICY="ssm:policy") as runtime:
        unknown = runtime.invoke({"rules": ["leak"]})

    assert failed.error is None
    assert _get_document(failed.payload)["status"] == "failed"
    assert table.scan(TableName="memory")["Items"] != []
    assert unknown.error is not None
    assert "written-in-yaml" in str(unknown.error["errorMessage"])


def test_an_invalid_event_is_an_error_that_names_the_key(runtime: Runtime) -> None:
    answer = runtime.invoke({"polcy": {}})

    assert answer.error is not None
    assert answer.error["errorType"] == "ConfigurationError"
    assert "event.polcy: unknown key" in str(answer.error["errorMessage"])


def test_a_raised_error_says_where_in_the_source(runtime: Runtime) -> None:
    answer = runtime.invoke({"mode": "loud"})

    assert answer.error is not None
    trace = str(answer.error["stackTrace"])
    assert "session_reaper/handler.py" in trace
    assert "request = read_request(event)" in trace  # as the source lies beside its bytecode
    assert runtime.invoke({}).error is None


def test_a_missing_variable_is_an_error_that_names_it(function: Callable[..., Runtime]) -> None:
    with function(TOPIC_ARN="") as runtime:
        answer = runtime.invoke({})

    assert answer.error is not None
    assert answer.error["errorType"] == "ConfigurationError"
    assert "TOPIC_ARN" in str(answer.error["errorMessage"])


def test_a_missing_package_is_an_init_error_that_names_it(
    artifact: Path, library: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(artifact, tmp_path / "task")
    shutil.rmtree(broken / "scramp")

    with (
        Runtime(broken, "session_reaper.handler.lambda_handler", library) as runtime,
        pytest.raises(InitError, match="scramp") as raised,
    ):
        runtime.invoke({})
    assert raised.value.error is not None
    assert raised.value.error["errorType"] == "Runtime.ImportModuleError"


def test_a_hanging_target_leaves_time_to_report_it_and_the_others(
    function: Callable[..., Runtime], cloud: Aws
) -> None:
    cloud.delivered()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, sends nothing
        host, port = silent.getsockname()
        cloud.put_secret(
            "silent",
            {"host": host, "port": port, "username": "u", "password": "p", "name": "silent"},
        )
        with function(TARGET_SECRETS="orders,silent") as runtime:
            runtime.start()
            answer = runtime.invoke({}, timeout_ms=10_000)

    assert answer.error is None  # nor was its time over
    document = _get_document(answer.payload)
    assert document["status"] == "partial"
    assert {t["name"]: t["status"] for t in document["targets"]} == {
        "orders": "ok",
        "silent": "failed",
    }
    (email,) = cloud.delivered()
    assert email.subject == document["summary"]


@contextlib.contextmanager
def _allow_many_open_files() -> Iterator[None]:
    """Let this process have more open files than the usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4_096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_silent_targets_than_threads_are_all_reported(
    function: Callable[..., Runtime], cloud: Aws
) -> None:
    cloud.delivered()
    names = [f"silent-{number}" for number in range(1_100)]
    with _allow_many_open_files(), contextlib.ExitStack() as silent:
        for name in names:  # secrets of one server would be one target
            host, port = silent.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()
            cloud.put_secret(
                name, {"host": host, "port": port, "username": "u", "password": "p", "name": name}
            )
        with (
            function(TARGET_SECRETS=",".join(names)) as runtime,
            ThreadPoolExecutor(1) as pool,
        ):
            runtime.start()
            answering = pool.submit(runtime.invoke, {}, timeout_ms=15_000)
            held: dict[str, set[int]] = {"task": set(), "fd": set()}  # threads, open files
            while not wait([answering], 0.05).done:
                for kind, counts in held.items():
                    counts.add(len(list(Path(f"/proc/{runtime.pid}/{kind}").iterdir())))
            answer = answering.result()

    assert [500 < max(counts) < 1024 for counts in held.values()] == [True, True]  # Lambda's limits
    assert answer.error is None
    totals = _get_document(answer.payload)["totals"]
    assert (totals["targets"], totals["failed"]) == (1_100, 1_100)
    (email,) = cloud.delivered()
    assert email.subject.startswith("1100 of 1100 targets not reached")


def test_fifty_warm_invocations_leave_nothing_behind(
    runtime: Runtime, database: Server, cloud: Aws
) -> None:
    for _ in range(50):  # until everything that is created once exists
        assert runtime.invoke({"policy": POLICY}).error is None
    before, pid = Held.by(runtime.pid), runtime.pid

    for _ in range(50):
        assert runtime.invoke({"policy": POLICY}).error is None

    after = Held.by(runtime.pid)
    assert runtime.pid == pid
    assert (after.threads, after.files, after.sockets) == (
        before.threads,
        before.files,
        before.sockets,
    )
    assert after.memory_kb - before.memory_kb < 500
    with contextlib.closing(database.connect()) as admin:
        # A backend ends a moment after its connection.
        sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'session_reaper'"
        assert _wait_until(lambda: admin.run(sql) == [[0]])
    cloud.delivered()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The resources of a process."""

    memory_kb: int
    threads: int
    files: int
    sockets: int

    @classmethod
    def by(cls, pid: int | None) -> Held:
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        open_files = [str(path.readlink()) for path in (process / "fd").iterdir()]
        return cls(
            memory_kb=int(status["VmRSS"].split()[0]),
            threads=int(status["Threads"]),
            files=len(open_files),
            sockets=sum(name.startswith("socket:") for name in open_files),
        )


def test_the_webhook_function_posts_a_summary(
    webhook_artifact: Path, library: Path, cloud: Aws, tls: Tls
) -> None:
    environment = {"WEBHOOK_SECRET": "webhook", "SSL_CERT_FILE": str(tls.authority)}
    handler = "session_reaper.webhook.lambda_handler"
    with (
        run_slack(tls, (Reply(), Reply(status=404, said="no_service"))) as slack,
        Runtime(
            webhook_artifact,
            handler,
            library,
            environment=_make_environment() | environment,
            read_only=True,
        ) as runtime,
    ):
        cloud.put_secret("webhook", slack.url)
        event = {"Records": [{"Sns": {"Subject": "orders", "Message": '{"text": "3 terminated"}'}}]}
        posted, refused = runtime.invoke(event), runtime.invoke(event)

    assert posted.error is None
    assert slack.posts == [{"text": "3 terminated"}] * 2
    assert refused.error is not None
    assert refused.error["errorType"] == "PublishError"
    assert "no_service" in str(refused.error["errorMessage"])
    assert slack.url not in posted.log + refused.log


def list_pids(database: Server, application: str) -> list[int]:
    with contextlib.closing(database.connect()) as admin:
        rows = admin.run(
            "SELECT pid FROM pg_stat_activity WHERE application_name = :name", name=application
        )
    return [row[0] for row in rows]


def _make_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _wait_until(is_so: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _get_document(payload: object) -> dict[str, Any]:
    assert isinstance(payload, dict)
    return payload
