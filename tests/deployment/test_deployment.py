"""The built application, deployed by `sam deploy` into an emulator of AWS that enforces IAM policies.

The tests run in the order of this file, because they are the life of one stack. docs/deployment.md
lists what the emulator cannot prove.
"""

from __future__ import annotations

import json
import shlex
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
from botocore.exceptions import ClientError

from tests.deployment.account import ACCOUNT, REGION, ROOT, SAM, Account
from tests.deployment.conftest import MODE, PARAMETERS, STACK, Deployed
from tests.integration.stage import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from infra.local.postgres import Server
    from tests.integration.slack import Slack

FIRE_SECONDS: Final = 180.0
"""The longest time until the schedule fires, which takes a minute on an idle machine."""


def is_connected(database: Server, pid: int) -> bool:
    with closing(database.connect()) as admin:
        return bool(admin.run("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=pid))


@contextmanager
def leak_session(database: Server) -> Iterator[int]:
    """Leave a session idle in transaction; yield its pid when the policy condemns it."""
    with (
        closing(database.connect(user="app", password="app")) as session,  # noqa: S106 -- for minutes
        closing(database.connect()) as admin,
    ):
        session.run("START TRANSACTION")
        pid = session.run("SELECT pg_backend_pid()")[0][0]
        is_old = (
            "SELECT now() > state_change + interval '1s' FROM pg_stat_activity WHERE pid = :pid"
        )
        until(lambda: admin.run(is_old, pid=pid) != [[False]], "the session is old enough")
        yield pid


def await_message(deployed: Deployed, text: str) -> dict[str, Any]:
    """Return the first new message of the topic that contains the text."""
    found: list[dict[str, Any]] = []

    def has_arrived() -> bool:
        found.extend(one for one in deployed.receive() if text in one["Message"])
        return bool(found)

    until(has_arrived, f"a message with {text!r}", 60)
    return found[0]


# -- before a deployment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({}, "Set TargetSecretTag or TargetSecretArns."),
        ({"SubnetIds": "subnet-0a"}, "Set both SubnetIds and SecurityGroupIds, or neither."),
        ({"SecurityGroupIds": "sg-0a"}, "Set both SubnetIds and SecurityGroupIds, or neither."),
        ({"Mode": "kill"}, "Mode"),
        ({"Mode": "ssm:mode"}, "Mode"),
        ({"TargetSecretArns": "orders"}, "TargetSecretArns"),
        ({"KmsKeyArns": "alias/mine"}, "KmsKeyArns"),
    ],
    ids=str,
)
def test_incomplete_or_invalid_parameters_are_refused(
    deployed: Deployed, parameters: dict[str, str], problem: str
) -> None:
    cloudformation = deployed.account.client("cloudformation")
    original = cloudformation.get_template(StackName=STACK, TemplateStage="Original")
    body = original["TemplateBody"]
    given = ({"TargetSecretTag": "a=b"} if parameters else {}) | parameters
    with pytest.raises(ClientError) as raised:
        cloudformation.create_change_set(
            StackName="refused",
            ChangeSetName="refused",
            ChangeSetType="CREATE",
            TemplateBody=body if isinstance(body, str) else json.dumps(body),
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value} for name, value in given.items()
            ],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        )
    assert problem in str(raised.value)


def test_the_network_has_the_endpoints_that_are_asked_for(account: Account) -> None:
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    routes = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    account.attach(
        "network",
        STACK,
        VpcId=vpc,
        VpcCidr="10.0.0.0/16",
        SubnetIds=subnet,
        Endpoints="sns,secretsmanager",
        RouteTableIds=routes,
    )
    endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    assert {one["ServiceName"] for one in endpoints} == {
        f"com.amazonaws.{REGION}.sns",
        f"com.amazonaws.{REGION}.secretsmanager",
        f"com.amazonaws.{REGION}.dynamodb",
    }
    groups = ec2.describe_security_groups()["SecurityGroups"]
    group = account.read_outputs(f"{STACK}-network")["SecurityGroupIds"]
    [function] = [one for one in groups if one["GroupId"] == group]
    assert {one["FromPort"] for one in function["IpPermissionsEgress"]} >= {443, 5432}


# -- first deployment ------------------------------------------------------------------------------


def test_the_schedule_terminates_a_leak_and_the_summary_arrives(
    deployed: Deployed, database: Server
) -> None:
    with leak_session(database) as pid:
        until(lambda: not is_connected(database, pid), "the leak is terminated", FIRE_SECONDS)
    summary = await_message(deployed, "1 session terminated")
    assert summary["TopicArn"] == deployed.outputs["TopicArn"]
    assert summary["MessageAttributes"]["severity"]["Value"] == "info"


@pytest.mark.parametrize(
    "event", sorted((ROOT / "events").glob("*.json")), ids=lambda one: one.stem
)
def test_sam_remote_invoke_runs_every_event(deployed: Deployed, event: Path) -> None:
    command = ("remote", "invoke", "SessionReaper", "--stack-name", STACK, "--event-file", event)
    answer = json.loads(deployed.account.run(SAM, *command))
    assert answer["status"] == "ok", answer
    assert [one["name"] for one in answer["targets"]] == ["orders"]


def test_the_log_group_receives_the_log(deployed: Deployed) -> None:
    deployed.invoke({})
    logs = deployed.account.client("logs")
    found = logs.filter_log_events(logGroupName=deployed.outputs["LogGroupName"])["events"]
    assert any('"message":"run"' in one["message"] for one in found)


def test_a_secret_without_the_tag_is_not_readable(deployed: Deployed) -> None:
    secrets = deployed.account.client("secretsmanager")
    orders = json.loads(secrets.get_secret_value(SecretId="orders")["SecretString"])
    secrets.create_secret(Name="rescue", SecretString=json.dumps(orders))
    fallback = json.dumps(orders | {"fallback_secret": "rescue"})
    secrets.put_secret_value(SecretId="orders", SecretString=fallback)
    begin = len(deployed.account.log.read_text())
    answer = deployed.invoke({"check": True})
    assert answer["totals"]["failed"] == 0
    [denied] = deployed.account.read_denials(begin)
    assert denied.startswith("secretsmanager:GetSecretValue")
    assert ":secret:rescue-" in denied


def test_a_run_that_fails_is_kept_in_the_dead_letter_queue(deployed: Deployed) -> None:
    deployed.account.client("lambda").invoke(
        FunctionName=deployed.outputs["FunctionName"],
        InvocationType="Event",
        Payload=b'{"unknown": 1}',
    )
    sqs = deployed.account.client("sqs")
    messages: list[dict[str, Any]] = []

    def has_arrived() -> bool:
        answer = sqs.receive_message(QueueUrl=deployed.outputs["DeadLettersUrl"])
        messages.extend(answer.get("Messages", []))
        return bool(messages)

    until(has_arrived, "a dead letter", 60)
    assert "event.unknown" in messages[0]["Body"]


def test_an_alarm_of_the_stack_reaches_the_topic(deployed: Deployed) -> None:
    cloudwatch = deployed.account.client("cloudwatch")
    for state in ("OK", "ALARM"):
        cloudwatch.set_alarm_state(
            AlarmName=f"{STACK}-NoSuccessfulRun", StateValue=state, StateReason=f"test: {state}"
        )
    alarm = json.loads(await_message(deployed, "test: ALARM")["Message"])
    assert "Invoke the function" in alarm["AlarmDescription"]


# -- enforce and stop without a deployment -------------------------------------------------------------------------------


def test_the_mode_changes_without_a_deployment(deployed: Deployed) -> None:
    ssm = deployed.account.client("ssm")
    for mode in ("off", "observe", "enforce"):
        ssm.put_parameter(Name=MODE, Value=mode, Overwrite=True)
        assert deployed.invoke({})["mode"] == mode


def test_the_switch_off_command_stops_every_run(deployed: Deployed) -> None:
    words = shlex.split(deployed.outputs["SwitchOffCommand"])
    assert words[:3] == ["aws", "lambda", "put-function-concurrency"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--region"] == REGION
    function = options["--function-name"]
    client = deployed.account.client("lambda")
    client.put_function_concurrency(
        FunctionName=function,
        ReservedConcurrentExecutions=int(options["--reserved-concurrent-executions"]),
    )
    try:
        with pytest.raises(ClientError, match="TooManyRequests"):
            deployed.invoke({})
    finally:
        client.delete_function_concurrency(FunctionName=function)
    assert deployed.invoke({})["status"] == "ok"


# -- an update -------------------------------------------------------------------------------------


def find_notification_table(account: Account) -> str:
    [found] = [
        one["PhysicalResourceId"]
        for one in account.client("cloudformation").describe_stack_resources(StackName=STACK)[
            "StackResources"
        ]
        if one["LogicalResourceId"] == "Memory"
    ]
    name: str = found
    return name


def read_known_issues(account: Account) -> list[dict[str, Any]]:
    table = find_notification_table(account)
    items: list[dict[str, Any]] = account.client("dynamodb").scan(TableName=table)["Items"]
    return sorted(items, key=json.dumps)


@contextmanager
def fill_server(database: Server) -> Iterator[None]:
    """Let the database accept superusers only."""
    with closing(database.connect()) as admin:
        admin.run("ALTER DATABASE postgres CONNECTION LIMIT 0")
        try:
            yield
        finally:
            admin.run("ALTER DATABASE postgres CONNECTION LIMIT -1")


@pytest.fixture(scope="session")
def updated(deployed: Deployed, database: Server) -> Deployed:
    """The stack with other parameters: more secrets, a second topic, no alarms."""
    secrets = deployed.account.client("secretsmanager")
    orders = json.loads(secrets.get_secret_value(SecretId="orders")["SecretString"])
    orders.pop("fallback_secret", None)

    def secret(name: str, **changes: str) -> str:
        value = json.dumps(orders | changes)
        arn: str = secrets.create_secret(Name=name, SecretString=value)["ARN"]
        return arn

    # The fallback secret gets no slot either, so the run is critical.
    master = secret("master")
    secrets.put_secret_value(
        SecretId="orders", SecretString=json.dumps(orders | {"fallback_secret": "master"})
    )
    pager = deployed.account.client("sns").create_topic(Name="pager")["TopicArn"]
    with fill_server(database):
        deployed.invoke({})
        before = read_known_issues(deployed.account)
        assert before
        deployed.account.deploy(
            STACK,
            PARAMETERS
            | {
                "TargetSecretArns": secret("ledger", dbClusterIdentifier="ledger"),
                "FallbackSecretArns": master,
                "CriticalTopicArn": pager,
                "Alarms": "no",
                "Email": "",
                "LogRetentionInDays": "30",
                "ReserveConcurrency": "yes",
                "ScheduleExpression": "rate(1 hour)",
            },
        )
    assert read_known_issues(deployed.account) == before
    return deployed


def test_an_update_keeps_the_notification_state_and_every_name(updated: Deployed) -> None:
    kept = {name: one for name, one in updated.outputs.items() if name != "AlarmTopicArn"}
    assert updated.account.read_outputs(STACK) == kept
    assert updated.account.client("cloudwatch").describe_alarms()["MetricAlarms"] == []


def test_a_private_stack_grants_only_what_its_parameters_need(account: Account) -> None:
    secret = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:ledger-AbCdEf"
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/mine"
    stack = f"{STACK}-private"
    account.deploy(
        stack,
        {
            "TargetSecretArns": f"{secret},{secret[:-1]}g",
            "SubnetIds": "subnet-0a,subnet-0b",
            "SecurityGroupIds": account.read_outputs(f"{STACK}-network")["SecurityGroupIds"],
            "KmsKeyArns": key,
            "Alarms": "no",
        },
    )
    outputs = account.read_outputs(stack)
    iam = account.client("iam")
    name = outputs["RoleArn"].rpartition("/")[2]
    assert set(iam.list_role_policies(RoleName=name)["PolicyNames"]) == {
        "session-reaper",
        "use-your-keys",
        "attach-to-vpc",
    }
    statements = {
        one["Sid"]: one
        for policy in ("session-reaper", "use-your-keys")
        for one in iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"][
            "Statement"
        ]
    }
    assert statements["ReadTargetSecrets"]["Resource"] == [secret, f"{secret[:-1]}g"]
    assert statements["UseKeys"]["Resource"] == [key]
    assert not statements.keys() & {"ReadFallbackSecrets", "ReadPolicy"}
    account.delete(stack)


# -- permissions -----------------------------------------------------------------------------------

UNPROVEN: Final = {
    # Lambda itself does this with the role; the emulator does it with rights of its own.
    "WriteLog",
    "KeepFailedRuns",
    # Making a token for IAM authentication sends no request.
    "LogInByIam",
    # No instance of the emulator's RDS has an address in rds.amazonaws.com.
    "SeeConnectionsOfClusters",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One action of one statement on one resource."""

    policy: str
    sid: str
    action: str
    resource: str

    def without(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the policy's document without this grant; its statement is split into the others."""
        kept = [one for one in document["Statement"] if one["Sid"] != self.sid]
        [split] = [one for one in document["Statement"] if one["Sid"] == self.sid]
        for action in _to_list(split["Action"]):
            for resource in _to_list(split["Resource"]):
                if (action, resource) != (self.action, self.resource):
                    part = {"Action": action, "Resource": resource, "Sid": f"Part{len(kept)}"}
                    kept.append(split | part)
        return {**document, "Statement": kept}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The function's role, and the calls that it permits."""

    deployed: Deployed
    database: Server

    @property
    def name(self) -> str:
        return self.deployed.outputs["RoleArn"].rpartition("/")[2]

    def read_policies(self) -> dict[str, dict[str, Any]]:
        iam = self.deployed.account.client("iam")
        names = iam.list_role_policies(RoleName=self.name)["PolicyNames"]
        return {
            name: iam.get_role_policy(RoleName=self.name, PolicyName=name)["PolicyDocument"]
            for name in names
        }

    def list_grants(self) -> list[Grant]:
        return [
            Grant(policy=name, sid=one["Sid"], action=action, resource=resource)
            for name, document in self.read_policies().items()
            for one in document["Statement"]
            for action in _to_list(one["Action"])
            for resource in dict.fromkeys(_to_list(one["Resource"]))
        ]

    def put_policy(self, name: str, document: Mapping[str, Any]) -> None:
        self.deployed.account.client("iam").put_role_policy(
            RoleName=self.name, PolicyName=name, PolicyDocument=json.dumps(document)
        )

    def find_denied_calls(self) -> set[str]:
        """Make every call that the function makes; return those that IAM denied.

        The first run finds a full server, which is critical; the second reports its recovery.
        """
        account = self.deployed.account
        for item in read_known_issues(account):
            key = {name: item[name] for name in ("target", "kind")}
            account.client("dynamodb").delete_item(
                TableName=find_notification_table(account), Key=key
            )
        begin = len(account.log.read_text())
        with fill_server(self.database):
            self.deployed.invoke({})
        self.deployed.invoke({})
        return account.read_denials(begin)


def _to_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_each_permission_of_the_function_is_needed(updated: Deployed, database: Server) -> None:
    role = Role(deployed=updated, database=database)
    assert role.find_denied_calls() == set()
    policies = role.read_policies()
    unneeded = set()
    for grant in role.list_grants():
        role.put_policy(grant.policy, grant.without(policies[grant.policy]))
        denied = role.find_denied_calls()
        role.put_policy(grant.policy, policies[grant.policy])
        actions = {one.split()[0] for one in denied}
        assert actions <= {grant.action}, f"{grant}: {denied}"
        if not denied:
            unneeded.add(grant.sid)
    assert unneeded == UNPROVEN
    assert role.find_denied_calls() == set()


# -- attached stacks -------------------------------------------------------------------------------


def test_monitoring_cannot_attach_to_a_stack_without_alarms(updated: Deployed) -> None:
    with pytest.raises(AssertionError, match="'AlarmTopicArn' has no Default and was not provided"):
        updated.account.attach("monitoring", STACK)


def test_monitoring_attaches_to_a_stack_with_alarms(updated: Deployed) -> None:
    account = updated.account
    account.deploy(STACK, {"Alarms": "yes"})
    account.attach("monitoring", STACK)
    cloudwatch = account.client("cloudwatch")
    alarms = {one["AlarmName"]: one for one in cloudwatch.describe_alarms()["MetricAlarms"]}
    for name in ("SlotsUsed", "TargetsFailing"):
        assert alarms[f"{STACK}-{name}"]["AlarmActions"] == [updated.outputs["TopicArn"]]
    [dashboard] = cloudwatch.list_dashboards()["DashboardEntries"]
    assert dashboard["DashboardName"] == f"{STACK}-{REGION}"


def test_an_alarm_on_connections_runs_the_function_at_once(
    updated: Deployed, database: Server
) -> None:
    updated.account.attach("alarm_trigger", STACK)
    cloudwatch = updated.account.client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName="connections-orders",
        Namespace="AWS/RDS",
        MetricName="DatabaseConnections",
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=85,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
    )
    with leak_session(database) as pid:
        cloudwatch.set_alarm_state(
            AlarmName="connections-orders", StateValue="ALARM", StateReason="test"
        )
        until(lambda: not is_connected(database, pid), "the leak is terminated", 60)
    cloudwatch.delete_alarms(AlarmNames=["connections-orders"])


def test_the_webhook_posts_summaries_to_slack(updated: Deployed, slack: Slack) -> None:
    account = updated.account
    arn = account.client("secretsmanager").create_secret(Name="slack", SecretString=slack.url)
    account.attach("webhook", STACK, WebhookSecretArn=arn["ARN"])
    updated.invoke({"check": True})
    until(lambda: slack.posts, "a post", 60)
    assert "CHECKED" in json.dumps(slack.posts[0])


def test_a_check_reports_a_secret_that_was_created_again(updated: Deployed) -> None:
    secrets = updated.account.client("secretsmanager")
    value = secrets.get_secret_value(SecretId="ledger")["SecretString"]
    secrets.delete_secret(SecretId="ledger", ForceDeleteWithoutRecovery=True)
    secrets.create_secret(Name="ledger", SecretString=value)
    targets = updated.invoke({"check": True})["targets"]
    [error] = [one["error"] for one in targets if one["error"]]
    assert "created again has a new ARN" in error["hint"]


# -- deletion --------------------------------------------------------------------------------------


def list_resources(account: Account) -> dict[str, list[str]]:
    """Return the names of all resources of the kinds that our stacks create."""
    return {
        "alarms": [
            one["AlarmName"]
            for one in account.client("cloudwatch").describe_alarms()["MetricAlarms"]
        ],
        "dashboards": [
            one["DashboardName"]
            for one in account.client("cloudwatch").list_dashboards()["DashboardEntries"]
        ],
        "functions": [
            one["FunctionName"] for one in account.client("lambda").list_functions()["Functions"]
        ],
        "keys in use": [
            one["KeyId"]
            for one in account.client("kms").list_keys()["Keys"]
            if account.client("kms").describe_key(KeyId=one["KeyId"])["KeyMetadata"]["Enabled"]
        ],
        "log groups": [
            one["logGroupName"] for one in account.client("logs").describe_log_groups()["logGroups"]
        ],
        "endpoints": [
            one["VpcEndpointId"]
            for one in account.client("ec2").describe_vpc_endpoints()["VpcEndpoints"]
        ],
        "queues": account.client("sqs").list_queues().get("QueueUrls", []),
        "roles": [one["RoleName"] for one in account.client("iam").list_roles()["Roles"]],
        "rules": [one["Name"] for one in account.client("events").list_rules()["Rules"]],
        "schedules": [
            one["Name"] for one in account.client("scheduler").list_schedules()["Schedules"]
        ],
        "tables": account.client("dynamodb").list_tables()["TableNames"],
        "topics": [one["TopicArn"] for one in account.client("sns").list_topics()["Topics"]],
    }


def test_deletion_leaves_nothing(updated: Deployed) -> None:
    account = updated.account
    assert list_resources(account)["functions"]
    stacks = [
        one["StackName"] for one in account.client("cloudformation").describe_stacks()["Stacks"]
    ]
    for name in sorted((one for one in stacks if one.startswith(STACK)), reverse=True):
        account.delete(name)
    left = {kind: names for kind, names in list_resources(account).items() if names}
    assert left == {
        "queues": [updated.inbox],
        "topics": [f"arn:aws:sns:{REGION}:{ACCOUNT}:pager"],
    }
