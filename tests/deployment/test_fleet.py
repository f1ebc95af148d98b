"""A hub and stacks of two accounts, rolled out by `make deploy-fleet` under the policies of their roles."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.deployment.account import ACCOUNT, REGION
from tests.deployment.conftest import MODE, POLICY, write_secret
from tests.integration.stage import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.local.postgres import Server
    from tests.deployment.account import Account

HUB, TOPIC, STACK = "fleet-hub", "session-reaper-fleet", "session-reaper"
SPOKES = ("111111111111", "222222222222")
ROLE = "deployer"
ACCOUNTS = f"""\
account,region,role,TargetSecretTag,Mode,PolicyParameterName
111111111111,{REGION},{ROLE},session-reaper=prod,ssm:{MODE},{POLICY}
222222222222,{REGION},{ROLE},session-reaper=prod,ssm:{MODE},{POLICY}
"""
BY_ANYBODY_OF_THE_HUB = {
    "Effect": "Allow",
    "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
    "Action": "sts:AssumeRole",
}
EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The hub's account, its outputs, and a queue that gets what the hub's topic publishes."""

    account: Account
    outputs: dict[str, str]
    inbox: str
    accounts: Path

    def client(self, spoke: str, service: str) -> Any:  # noqa: ANN401 -- each service has its own type
        """Return a client with all rights in a stack's account."""
        connect: Any = boto3.client
        return connect(
            service,
            endpoint_url=self.account.environment["AWS_ENDPOINT_URL"],
            verify=self.account.environment["AWS_CA_BUNDLE"],
            region_name=REGION,
            aws_access_key_id=spoke,
            aws_secret_access_key="test",  # noqa: S106 -- the emulator's
        )

    def run_spoke(self, spoke: str) -> dict[str, Any]:
        """Run the function of a stack's account."""
        stacks = self.client(spoke, "cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        outputs = {each["OutputKey"]: each["OutputValue"] for each in stacks[0]["Outputs"]}
        answer = self.client(spoke, "lambda").invoke(
            FunctionName=outputs["FunctionName"], Payload=b"{}"
        )
        document: dict[str, Any] = json.loads(answer["Payload"].read())
        return document

    def roll_out(self) -> str:
        """Run `make deploy-fleet` without building anything; return what it prints."""
        given = (f"ACCOUNTS={self.accounts}", f"HUB={HUB}")
        return self.account.run("make", "-o", "build", "deploy-fleet", *given)

    def run_hub(self) -> dict[str, Any]:
        return self.account.invoke(self.outputs["FunctionName"], {})

    def await_message(self, text: str) -> str:
        """Return the first new message of the hub's topic that contains the text."""
        sqs = self.account.client("sqs")
        found: list[str] = []

        def has_arrived() -> bool:
            answer = sqs.receive_message(QueueUrl=self.inbox, MaxNumberOfMessages=10)
            bodies = [json.loads(each["Body"])["Message"] for each in answer.get("Messages", [])]
            found.extend(each for each in bodies if text in each)
            return bool(found)

        until(has_arrived, f"a message with {text!r}", 60)
        return found[0]


def prepare(fleet: Fleet, spoke: str, database: Server) -> None:
    """Create what the stack of an account needs: a role to deploy it, a target, policy and mode."""
    iam = fleet.client(spoke, "iam")
    trust = json.dumps({"Version": "2012-10-17", "Statement": [BY_ANYBODY_OF_THE_HUB]})
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=trust)
    rights = json.dumps({"Version": "2012-10-17", "Statement": [EVERYTHING]})
    iam.put_role_policy(RoleName=ROLE, PolicyName="all", PolicyDocument=rights)
    tags = [{"Key": "session-reaper", "Value": "prod"}]
    fleet.client(spoke, "secretsmanager").create_secret(
        Name="orders", SecretString=write_secret(database), Tags=tags
    )
    match = {"state": "idle in transaction", "idle_for": "500ms"}
    policy = {"version": 1, "rules": [{"name": "leak", "match": match}]}
    for name, value in ((POLICY, json.dumps(policy)), (MODE, "enforce")):
        fleet.client(spoke, "ssm").put_parameter(Name=name, Value=value, Type="String")


@pytest.fixture(scope="module")
def fleet(
    account: Account, database: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    account.run("make", "-o", "build", "deploy-hub", f"HUB={HUB}")
    outputs = account.read_outputs(HUB)
    sqs = account.client("sqs")
    inbox = sqs.create_queue(QueueName="fleet-inbox")["QueueUrl"]
    arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:fleet-inbox"
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    sqs.set_queue_attributes(QueueUrl=inbox, Attributes={"Policy": document})
    account.client("sns").subscribe(TopicArn=outputs["TopicArn"], Protocol="sqs", Endpoint=arn)
    file = tmp_path_factory.mktemp("fleet") / "accounts.csv"
    file.write_text(ACCOUNTS)
    fleet = Fleet(account=account, outputs=outputs, inbox=inbox, accounts=file)
    for spoke in SPOKES:
        prepare(fleet, spoke, database)
    assert "2 stacks: 2 done, 0 failed" in fleet.roll_out()
    yield fleet
    sqs.delete_queue(QueueUrl=inbox)
    for stack in (TOPIC, HUB):
        account.delete(stack)


def test_the_hub_expects_the_stacks_that_were_deployed(fleet: Fleet) -> None:
    answer = fleet.run_hub()
    assert (answer["stacks"], answer["messages"], answer["complete"]) == (2, 0, True)
    assert not answer["published"]


def test_what_two_accounts_terminate_is_in_one_digest(fleet: Fleet, database: Server) -> None:
    begin = len(fleet.account.log.read_text())
    for spoke in SPOKES:
        with closing(database.connect(user="app", password="app")) as session:  # noqa: S106
            session.run("START TRANSACTION")

            def is_terminated(spoke: str = spoke) -> bool:
                return bool(fleet.run_spoke(spoke)["totals"]["terminated"])

            until(is_terminated, "the session is terminated", 60)
    answer = fleet.run_hub()
    assert fleet.account.read_denials(begin) == set()
    assert answer["verdict"] == "RESOLVED: 2 sessions were terminated and verified gone."
    assert answer["refused"] == 0
    digest = " ".join(fleet.await_message("RESOLVED").split())
    assert "Fleet: 2 stacks in 2 accounts, 2 targets, 2 sessions terminated" in digest
    for spoke in SPOKES:
        assert f"{spoke}/{REGION}/orders" in digest
    assert fleet.run_hub()["messages"] == 0


def test_a_message_that_is_refused_is_visible_again_at_the_end_of_the_run(fleet: Fleet) -> None:
    begin = len(fleet.account.log.read_text())
    sqs = fleet.account.client("sqs")
    url = sqs.get_queue_url(QueueName=fleet.outputs["QueueArn"].rpartition(":")[2])["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="garbage")
    answers = [fleet.run_hub() for _ in range(2)]
    sqs.purge_queue(QueueUrl=url)
    assert fleet.account.read_denials(begin) == set()
    assert [answer["refused"] for answer in answers] == [1, 1]


def test_a_second_roll_out_changes_nothing(fleet: Fleet) -> None:
    before = [
        fleet.client(spoke, "cloudformation").describe_stacks(StackName=STACK)["Stacks"][0]
        for spoke in SPOKES
    ]
    assert "2 stacks: 2 done, 0 failed" in fleet.roll_out()
    for spoke, stack in zip(SPOKES, before, strict=True):
        now = fleet.client(spoke, "cloudformation").describe_stacks(StackName=STACK)["Stacks"][0]
        assert now["Parameters"] == stack["Parameters"]
        assert now["Outputs"] == stack["Outputs"]
    assert fleet.run_hub()["stacks"] == 2


@pytest.mark.parametrize("alarm", ["NoRun", "Errors", "RefusedReports", "OldReports"])
def test_an_alarm_of_the_hub_reaches_its_topic(fleet: Fleet, alarm: str) -> None:
    cloudwatch = fleet.account.client("cloudwatch")
    for state in ("OK", "ALARM"):  # an earlier test may have set the alarm off
        cloudwatch.set_alarm_state(
            AlarmName=f"{HUB}-{alarm}", StateValue=state, StateReason=f"{alarm}: {state}"
        )
    assert json.loads(fleet.await_message(f"{alarm}: ALARM"))["AlarmName"] == f"{HUB}-{alarm}"


def test_the_alarms_watch_the_hubs_function_and_queues(fleet: Fleet) -> None:
    alarms = fleet.account.client("cloudwatch").describe_alarms(AlarmNamePrefix=HUB)["MetricAlarms"]
    watched = {
        each["AlarmName"].removeprefix(f"{HUB}-"): each["Dimensions"][0]["Value"] for each in alarms
    }
    queue = fleet.outputs["QueueArn"].rpartition(":")[2]
    dead_letters = fleet.outputs["DeadLettersUrl"].rpartition("/")[2]
    assert watched == {
        "NoRun": fleet.outputs["FunctionName"],
        "Errors": fleet.outputs["FunctionName"],
        "RefusedReports": dead_letters,
        "OldReports": queue,
    }
