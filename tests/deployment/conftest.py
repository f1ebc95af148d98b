"""The stack that the tests deploy, its database, and the account that it is deployed into."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from infra.local.certificates import make_tls
from infra.local.postgres import Server, Tls, bundled_builds, npm_builds, server
from tests.deployment.account import ACCOUNT, REGION, ROOT, Account, run_account
from tests.integration.slack import Reply, Slack, run_slack

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVERS: Final = ROOT / ".tools" / "servers"
STACK: Final = "shop"
PASSWORD: Final = "sw0rdfish"  # noqa: S105 -- of a server that lives for minutes
POLICY: Final = "/session-reaper/policy"
MODE: Final = "/session-reaper/mode"
PARAMETERS: Final = {
    "TargetSecretTag": "session-reaper=prod",
    "Email": "team@example.com",
    "Mode": f"ssm:{MODE}",
    "PolicyParameterName": POLICY,
    "ScheduleExpression": "rate(1 minute)",
    "LogRetentionInDays": "7",
}


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def run_server(tls: Tls) -> Iterator[Server]:
    """Run a server, with TLS if `make matrix` has installed servers that have it, as in CI."""
    build = npm_builds(SERVERS)[18] if SERVERS.is_dir() else bundled_builds()[18]
    with server(build, tls=tls if build.tls else None) as running:
        yield running


@pytest.fixture(scope="session")
def database(tls: Tls) -> Iterator[Server]:
    """A server that the function may work on, with a role `app` that leaks."""
    with run_server(tls) as running, contextlib.closing(running.connect()) as admin:
        admin.run((ROOT / "infra/database/reaper_role.sql").read_text())
        admin.run(f"ALTER ROLE session_reaper PASSWORD '{PASSWORD}'")
        admin.run("CREATE ROLE app LOGIN PASSWORD 'app'")
        yield running


def write_secret(database: Server) -> str:
    """Write the text of the secret of `session_reaper` on the database."""
    secret = {
        "host": database.host,
        "port": database.port,
        "username": "session_reaper",
        "password": PASSWORD,
        "sslmode": "disable",
    }
    if database.tls:
        secret |= {"sslmode": "verify-full", "sslrootcert": database.tls.authority.read_text()}
    return json.dumps(secret)


@pytest.fixture(scope="session")
def account(tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with run_account(tmp_path_factory.mktemp("account"), tls) as running:
        yield running


@pytest.fixture(scope="session")
def slack(tls: Tls) -> Iterator[Slack]:
    with run_slack(tls, (Reply(),)) as running:
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """The deployed stack, and a queue that receives what its topic publishes."""

    account: Account
    outputs: dict[str, str]
    inbox: str

    def receive(self) -> list[dict[str, Any]]:
        """Return the summaries that arrived since the last call, as SNS delivered them."""
        return receive_messages(self.account, self.inbox)

    def invoke(self, event: object) -> dict[str, Any]:
        """Invoke the function; return its answer, or its error object."""
        return self.account.invoke(self.outputs["FunctionName"], event)


@pytest.fixture(scope="session")
def deployed(account: Account, database: Server) -> Deployed:
    """Deploy the stack as docs/deployment.md says, and subscribe a queue to its topic."""
    secret = write_secret(database)
    secrets = account.client("secretsmanager")
    tags = [{"Key": "session-reaper", "Value": "prod"}]
    secrets.create_secret(Name="orders", SecretString=secret, Tags=tags)
    secrets.create_secret(Name="not-ours", SecretString=secret)
    policy = {
        "version": 1,
        "rules": [{"name": "leak", "match": {"state": "idle in transaction", "idle_for": "500ms"}}],
    }
    for name, value in ((POLICY, json.dumps(policy)), (MODE, "enforce")):
        account.client("ssm").put_parameter(Name=name, Value=value, Type="String")
    account.deploy(STACK, PARAMETERS)
    outputs = account.read_outputs(STACK)
    inbox = subscribe_queue(account, outputs["TopicArn"])
    return Deployed(account=account, outputs=outputs, inbox=inbox)


def subscribe_queue(account: Account, topic: str) -> str:
    """Create a queue that admits the topic, and subscribe it; return its URL."""
    arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:inbox"
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    created = account.client("sqs").create_queue(QueueName="inbox", Attributes={"Policy": policy})
    account.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    url: str = created["QueueUrl"]
    return url


def receive_messages(account: Account, inbox: str) -> list[dict[str, Any]]:
    """Take the messages out of a queue that is subscribed to a topic."""
    sqs = account.client("sqs")
    answer = sqs.receive_message(QueueUrl=inbox, MaxNumberOfMessages=10)
    messages = answer.get("Messages", [])
    for one in messages:
        sqs.delete_message(QueueUrl=inbox, ReceiptHandle=one["ReceiptHandle"])
    return [json.loads(one["Body"]) for one in messages]
