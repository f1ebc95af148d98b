"""What the templates make, checked as data: in every scene, with all nested stacks."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from botocore.session import get_session
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from moto.events.models import EventPattern
from session_reaper.settings import FunctionLocation
from session_reaper.summary.console_links import link_to_console

from tests.template.rendering import (
    PSEUDO,
    ROOT,
    TEMPLATES,
    Resource,
    Stack,
    refusals,
    render,
    source,
    transformed,
)
from tests.template.scenes import ALL, BARE, KEY, SCENES

if TYPE_CHECKING:
    from collections.abc import Iterator

STACKS = {name: render(parameters) for name, parameters in SCENES.items()}
every_scene = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())


# -- scenes ----------------------------------------------------------------------------------------


def test_the_scenes_cover_each_condition_both_ways() -> None:
    conditions = [item for stack in STACKS.values() for item in stack.conditions.items()]
    both = {(path, name): {True, False} for path in TEMPLATES for name in _section(path)}
    seen: dict[tuple[str, str], set[bool]] = {}
    for name, value in conditions:
        seen.setdefault(name, set()).add(value)
    assert seen == both


def _section(path: str) -> dict[str, Any]:
    section: dict[str, Any] = source(path).get("Conditions", {})
    return section


def test_the_scenes_cover_every_resource_and_pass_every_rule() -> None:
    made = {one.name.rpartition("/")[2] for stack in STACKS.values() for one in stack.resources}
    assert made == {name for path in TEMPLATES for name in transformed(path)["Resources"]}
    assert [refusals(parameters) for parameters in SCENES.values()] == [[]] * len(SCENES)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_changes_the_stack(name: str) -> None:
    assert list(ALL) == list(source("template.yaml")["Parameters"])
    others = {"SecurityGroupIds": "sg-0e", "VpcId": "vpc-0b", "Endpoints": "no"}
    one, other = render(ALL), render(ALL | {name: others.get(name, "")})
    assert (one.resources, one.outputs) != (other.resources, other.outputs)


# -- optional resources ----------------------------------------------------------------------------


def test_optional_resources_are_off_by_default() -> None:
    kinds = sorted(one.kind for one in STACKS["bare"].resources)
    assert kinds == [
        "AWS::DynamoDB::Table",
        "AWS::IAM::Role",
        "AWS::IAM::Role",
        "AWS::Lambda::EventInvokeConfig",
        "AWS::Lambda::Function",
        "AWS::Logs::LogGroup",
        "AWS::SNS::Topic",
        "AWS::SNS::TopicPolicy",
        "AWS::SQS::Queue",
        "AWS::SQS::QueuePolicy",
        "AWS::Scheduler::Schedule",
    ]
    assert STACKS["bare"].one("SessionReaper")["Environment"]["Variables"]["MODE"] == "observe"
    assert "VpcConfig" not in STACKS["bare"].one("SessionReaper")


def test_parameters_without_a_default_come_first() -> None:
    parameters = list(source("template.yaml")["Parameters"])
    assert parameters[:4] == ["TargetSecrets", "TargetSecretTag", "Email", "Mode"]
    # One of the first two, and that is all that there must be.
    assert refusals({}) == ["Give TargetSecrets, TargetSecretArns or TargetSecretTag."]


@pytest.mark.parametrize(
    ("parameters", "refusal"),
    [
        ({"SubnetIds": "subnet-0a"}, "SecurityGroupIds or VpcId"),
        ({"SecurityGroupIds": "sg-0a"}, "SecurityGroupIds or VpcId"),
        ({"VpcId": "vpc-0a", "DatabaseSecurityGroupIds": "sg-0a"}, "SecurityGroupIds or VpcId"),
        ({"SubnetIds": "subnet-0a", "VpcId": "vpc-0a"}, "needs DatabaseSecurityGroupIds"),
        ({"RouteTableIds": "rtb-0a"}, "needs DatabaseSecurityGroupIds"),
        ({"Endpoints": "yes"}, "needs DatabaseSecurityGroupIds"),
        ({"DatabaseSecurityGroupIds": "sg-0a"}, "needs DatabaseSecurityGroupIds"),
        ({"SlackWorkspaceId": "T0123ABCD"}, "both SlackWorkspaceId"),
        ({"SlackChannelId": "C0123ABCD"}, "both SlackWorkspaceId"),
        ({"TargetSecrets": "orders, billing"}, "TargetSecrets"),
        ({"DatabaseSecurityGroupIds": "sg-0a,sg-0b,sg-0c,sg-0d,sg-0e"}, "DatabaseSecurityGroupIds"),
        ({"ConnectionAlarmPrefix": 'a"b'}, "ConnectionAlarmPrefix"),
        ({"KmsKeyArn": "alias/mine"}, "KmsKeyArn"),
        ({"Mode": "kill"}, "Mode"),
    ],
    ids=str,
)
def test_incomplete_or_invalid_parameters_are_refused_before_deployment(
    parameters: dict[str, str], refusal: str
) -> None:
    assert any(refusal in one for one in refusals(BARE | parameters))


# -- permissions -----------------------------------------------------------------------------------

_KNOWS_NO_RESOURCE = {
    "secretsmanager:BatchGetSecretValue",
    "secretsmanager:ListSecrets",
    "cloudwatch:GetMetricData",
    "cloudwatch:GetMetricStatistics",
    "cloudwatch:ListMetrics",
}


def _statements(node: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    if isinstance(node, str) and node.lstrip().startswith("{"):
        node = json.loads(node)
    if isinstance(node, dict) and "Effect" in node:
        yield node
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _statements(inner)


def _listed(value: Any) -> list[Any]:  # noqa: ANN401
    return value if isinstance(value, list) else [value]


def _policies(stack: Stack) -> Iterator[dict[str, Any]]:
    for role in stack.of("AWS::IAM::Role"):
        yield from _statements(role.properties.get("Policies", []))
    for kind in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
        for policy in stack.of(kind):
            yield from _statements(policy.properties["PolicyDocument"])


@every_scene
def test_every_statement_is_scoped(stack: Stack) -> None:
    statements = list(_policies(stack))
    for statement in statements:
        if statement["Effect"] == "Deny":
            continue
        actions, resources = _listed(statement["Action"]), _listed(statement["Resource"])
        assert all(resources)
        assert not any("*" in action for action in actions)
        if "*" in resources:
            assert statement["Condition"]
            attaches = all(action.startswith("ec2:") for action in actions)
            assert attaches or set(actions) <= _KNOWS_NO_RESOURCE
            if attaches:
                assert any(
                    one["Effect"] == "Deny" and one["Action"] == "ec2:*" for one in statements
                )
        for resource in resources:
            # The account may be a * where a condition says which, a name never is.
            name = resource.removeprefix("arn:").split(":", 4)[-1]
            assert resource == "*" or name.strip("*")
    assert len(statements) > 5


@every_scene
def test_no_role_has_an_aws_managed_policy(stack: Stack) -> None:
    for role in stack.of("AWS::IAM::Role"):
        for arn in role.properties.get("ManagedPolicyArns", []):
            assert arn == "shop/SlackReadOnly"


@every_scene
def test_every_role_has_the_permissions_boundary_if_one_is_given(stack: Stack) -> None:
    whole = stack.conditions["template.yaml", "HasBoundary"]
    for role in stack.of("AWS::IAM::Role"):
        assert role.properties.get("PermissionsBoundary") == (
            ALL["PermissionsBoundaryArn"] if whole else None
        )


def test_the_templates_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for function in STACKS["all"].of("AWS::Lambda::Function"):
        assert {"Key": "version", "Value": project["version"]} in function.properties["Tags"]


def test_secrets_are_granted_by_name_arn_and_tag_only() -> None:
    of = {
        name: [one for one in _policies(STACKS[name]) if "GetSecretValue" in str(one["Action"])]
        for name in ("bare", "by tag", "by ARN")
    }
    assert [len(grants) for grants in of.values()] == [2, 2, 2]  # BatchGetSecretValue is the first
    assert of["bare"][1]["Resource"] == ["arn:*:secretsmanager:*:*:secret:orders-??????"]
    assert of["by tag"][1]["Condition"] == {
        "StringEquals": {"secretsmanager:ResourceTag/session-reaper": "prod"}
    }
    assert of["by ARN"][1]["Resource"] == [SCENES["by ARN"]["TargetSecretArns"]]


def test_iam_authentication_is_granted_for_the_reapers_user_only() -> None:
    [grant] = [one for one in _policies(STACKS["all"]) if one["Action"] == "rds-db:connect"]
    assert grant["Resource"].endswith(":dbuser:*/session_reaper")
    assert all(one["Action"] != "rds-db:connect" for one in _policies(STACKS["bare"]))


@every_scene
def test_keys_are_granted_by_name_and_through_a_service_only(stack: Stack) -> None:
    for statement in _policies(stack):
        if any(action.startswith("kms:") for action in _listed(statement["Action"])):
            assert statement["Condition"]["StringEquals"]["kms:ViaService"]
            for key in _listed(statement["Resource"]):
                assert key in (KEY, ALL["DecryptionKeyArns"], "shop/TopicKey.Arn")


def test_all_stored_data_can_be_encrypted_with_one_key() -> None:
    stack = STACKS["with a key"]
    [use] = [one for one in _policies(stack) if KEY in _listed(one["Resource"])][:1]
    assert use["Condition"]["StringEquals"]["kms:ViaService"] == [
        f"{service}.eu-west-1.amazonaws.com" for service in ("sns", "sqs", "dynamodb")
    ]
    assert stack.one("Topic")["KmsMasterKeyId"] == KEY
    assert stack.one("DeadLetters")["KmsMasterKeyId"] == KEY
    assert stack.one("Memory")["SSESpecification"]["KMSMasterKeyId"] == KEY
    assert all(group.properties["KmsKeyId"] == KEY for group in stack.of("AWS::Logs::LogGroup"))
    assert not stack.of("AWS::KMS::Key")


@every_scene
def test_every_queue_and_topic_is_encrypted_and_requires_tls(stack: Stack) -> None:
    for queue in stack.of("AWS::SQS::Queue"):
        assert ("KmsMasterKeyId" in queue.properties) != queue.properties.get(
            "SqsManagedSseEnabled", False
        )
    for topic in stack.of("AWS::SNS::Topic"):
        assert topic.properties["KmsMasterKeyId"]
    for kind, holder in (("SQS", "Queues"), ("SNS", "Topics")):
        policies = stack.of(f"AWS::{kind}::{'QueuePolicy' if kind == 'SQS' else 'TopicPolicy'}")
        assert {one for policy in policies for one in policy.properties[holder]} == {
            one.name for one in stack.of(f"AWS::{kind}::{holder[:-1]}")
        }
        for policy in policies:
            denied = [one for one in _statements(policy.properties) if one["Effect"] == "Deny"]
            assert denied[0]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
            assert denied[0]["Principal"] == "*"


@every_scene
def test_the_topics_key_may_be_used_by_alarms_and_amazon_q(stack: Stack) -> None:
    if stack.of("AWS::CloudWatch::Alarm") or stack.of("AWS::Chatbot::SlackChannelConfiguration"):
        assert stack.one("Topic")["KmsMasterKeyId"] in (KEY, "shop/TopicKey.Arn")
    for key in stack.of("AWS::KMS::Key"):
        services = [one["Principal"].get("Service") for one in _statements(key.properties)]
        assert services == [None, "cloudwatch.amazonaws.com"]


def test_the_slack_channel_may_read_only() -> None:
    channel = STACKS["with Slack"].one("SlackChannel")
    assert channel["GuardrailPolicies"] == [
        "shop/SlackReadOnly"
    ]  # the default: AdministratorAccess
    actions = [
        action
        for one in _statements(STACKS["with Slack"].one("SlackReadOnly"))
        for action in _listed(one["Action"])
    ]
    assert actions
    assert all(
        action.partition(":")[2].startswith(("Get", "List", "Describe")) for action in actions
    )


# -- failures --------------------------------------------------------------------------------------


@every_scene
def test_every_asynchronous_invocation_has_a_destination(stack: Stack) -> None:
    configured = {
        one.properties["FunctionName"]: one.properties
        for one in stack.of("AWS::Lambda::EventInvokeConfig")
    }
    functions = {one.name for one in stack.of("AWS::Lambda::Function")}
    assert configured.keys() == functions
    for one in configured.values():
        assert one["DestinationConfig"]["OnFailure"]["Destination"] == "shop/DeadLetters.Arn"
        assert one["MaximumEventAgeInSeconds"] <= 3600
    assert configured["shop/SessionReaper"]["MaximumRetryAttempts"] == 0
    assert configured["shop/SessionReaper"]["MaximumEventAgeInSeconds"] == 60


@every_scene
def test_every_delivery_has_a_dead_letter_queue(stack: Stack) -> None:
    targets = [one.properties["Target"] for one in stack.of("AWS::Scheduler::Schedule")]
    targets += [
        target for rule in stack.of("AWS::Events::Rule") for target in rule.properties["Targets"]
    ]
    for target in targets:
        assert target["DeadLetterConfig"]["Arn"] == "shop/DeadLetters.Arn"
        assert target["RetryPolicy"]["MaximumRetryAttempts"] == 0
        assert target["Arn"] == "shop/SessionReaper.Arn"
    assert targets


@every_scene
def test_every_log_group_has_retention_and_every_function_has_a_log_group(stack: Stack) -> None:
    groups = stack.of("AWS::Logs::LogGroup")
    assert all(int(group.properties["RetentionInDays"]) > 0 for group in groups)
    functions = stack.of("AWS::Lambda::Function")
    logged = {function.properties["LoggingConfig"]["LogGroup"] for function in functions}
    assert logged == {group.name for group in groups}
    assert all(one.properties["LoggingConfig"]["LogFormat"] == "JSON" for one in functions)


def test_one_run_at_a_time_and_stacks_start_at_different_seconds() -> None:
    assert STACKS["bare"].one("SessionReaper")["ReservedConcurrentExecutions"] == 1
    window = STACKS["bare"].one("SessionReaperSchedule")["FlexibleTimeWindow"]
    assert window == {"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 1}


# -- an alarm of the user's ------------------------------------------------------------------------


def test_the_alarm_rule_matches_the_example_event_only() -> None:
    stack = STACKS["all"]
    pattern = EventPattern.load(json.dumps(stack.one("ConnectionAlarm")["EventPattern"]))
    event = json.loads((ROOT / "events" / "scheduled_by_alarm.json").read_text())
    assert pattern.matches_event(event)
    for other in (
        event | {"detail": event["detail"] | {"alarmName": "cpu-orders"}},
        event | {"detail": event["detail"] | {"state": event["detail"]["previousState"]}},
        event | {"source": "aws.ec2"},
    ):
        assert not pattern.matches_event(other)


def test_only_that_rule_may_invoke_the_function_and_use_the_queue() -> None:
    stack = STACKS["all"]
    assert stack.one("ConnectionAlarmPermission")["SourceArn"] == "shop/ConnectionAlarm.Arn"
    [allowed] = [
        one for one in _statements(stack.one("DeadLettersPolicy")) if one["Effect"] == "Allow"
    ]
    assert allowed["Condition"] == {"ArnEquals": {"aws:SourceArn": "shop/ConnectionAlarm.Arn"}}


# -- network ---------------------------------------------------------------------------------------


def _network(scene: str, kind: str) -> dict[str, dict[str, Any]]:
    found = STACKS[scene].of(kind)
    return {one.name.rpartition("/")[2]: one.properties for one in found}


@pytest.mark.parametrize(
    ("scene", "groups"),
    [
        ("behind a NAT", ["sg-0a"]),
        ("by endpoints", ["sg-0a", "sg-0b"]),
        ("all", ["sg-0a", "sg-0b", "sg-0c", "sg-0d"]),
    ],
)
def test_the_function_may_connect_to_each_security_group_of_databases(
    scene: str, groups: list[str]
) -> None:
    out = _network(scene, "AWS::EC2::SecurityGroupEgress").values()
    into = _network(scene, "AWS::EC2::SecurityGroupIngress").values()
    function = "shop/NetworkStack/FunctionSecurityGroup"
    assert [one["DestinationSecurityGroupId"] for one in out] == groups
    assert [one["GroupId"] for one in into] == groups
    assert {one["GroupId"] for one in out} == {function}
    assert {one["SourceSecurityGroupId"] for one in into} == {function}
    assert {(one["FromPort"], one["ToPort"]) for one in (*out, *into)} == {(5432, 5432)}


def test_endpoints_serve_this_function_only() -> None:
    endpoints = _network("all", "AWS::EC2::VPCEndpoint")
    gateway = endpoints.pop("DynamoDb")
    assert gateway["RouteTableIds"] == ["rtb-0a", "rtb-0b"]
    # A route table takes one gateway endpoint, of any stack: a VPC that has one needs no second.
    assert _network("by endpoints", "AWS::EC2::VPCEndpoint").keys() == (
        endpoints.keys() - {"ParameterStoreEndpoint", "Monitoring"}
    )
    assert "PolicyDocument" not in gateway
    for endpoint in endpoints.values():
        assert endpoint["PrivateDnsEnabled"] is False
        [statement] = _statements(endpoint["PolicyDocument"])
        assert statement["Condition"] == {"ArnEquals": {"aws:PrincipalArn": "shop/Role.Arn"}}
    assert "AWS::EC2::VPCEndpoint" not in {one.kind for one in STACKS["behind a NAT"].resources}


@pytest.mark.parametrize("scene", ["all", "by endpoints"])
def test_the_function_knows_the_address_of_every_endpoint(scene: str) -> None:
    variables = STACKS[scene].one("SessionReaper")["Environment"]["Variables"]
    known = {value for name, value in variables.items() if name.startswith("AWS_ENDPOINT_URL_")}
    endpoints = [
        one
        for one in STACKS[scene].of("AWS::EC2::VPCEndpoint")
        if one.properties["VpcEndpointType"] == "Interface"
    ]
    assert known == {f"https://{one.name}.DnsEntries" for one in endpoints}


def test_the_sdk_uses_these_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = STACKS["all"].one("SessionReaper")["Environment"]["Variables"]
    given = {name: one for name, one in variables.items() if name.startswith("AWS_ENDPOINT_URL_")}
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", PSEUDO["AWS::Region"])
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    services = ("secretsmanager", "sns", "rds", "ssm", "cloudwatch")
    gone_to = {get_session().create_client(one).meta.endpoint_url for one in services}
    assert gone_to == set(given.values())


def test_the_endpoint_policies_match_the_role() -> None:
    stack = STACKS["all"]
    granted = {
        action
        for one in _statements(stack.one("Role")["Policies"])
        for action in _listed(one["Action"])
    }
    services = {"secretsmanager", "sns", "rds", "ssm", "cloudwatch"}
    passing = {
        action
        for endpoint in _network("all", "AWS::EC2::VPCEndpoint").values()
        for one in _statements(endpoint.get("PolicyDocument", []))
        for action in _listed(one["Action"])
    }
    assert passing == {action for action in granted if action.partition(":")[0] in services}


# -- updates, deletion, two stacks -----------------------------------------------------------------


def _schema(resource: Resource) -> dict[str, Any]:
    """The type as AWS describes it: which properties name it, which make it another one."""
    found = PROVIDER_SCHEMA_MANAGER.get_resource_schema(PSEUDO["AWS::Region"], resource.kind)
    schema: dict[str, Any] = found.schema
    return schema


def _given(resource: Resource, section: str) -> dict[str, Any]:
    names = [pointer.removeprefix("/properties/") for pointer in _schema(resource).get(section, [])]
    return {name: resource.properties[name] for name in names if name in resource.properties}


def test_two_stacks_in_one_account_and_region_share_no_name() -> None:
    taken = [
        {
            (one.kind, json.dumps(names))
            for one in render(ALL, stack=stack).resources
            if (names := _given(one, "primaryIdentifier"))
        }
        for stack in ("shop", "warehouse")
    ]
    assert len(taken[0]) > 3
    assert not taken[0] & taken[1]


def test_lambda_keeps_its_interface_permissions_after_the_function_leaves_the_vpc() -> None:
    # A policy inside of the role would be gone before the function is updated.
    role = STACKS["all"].one("Role")["Policies"]
    assert not any(
        action.startswith("ec2:") for one in _statements(role) for action in _listed(one["Action"])
    )
    # What comes after it goes before it.
    resources = transformed("template.yaml")["Resources"]
    assert resources["NetworkStack"]["DependsOn"] == "AttachToVpc"
    tags = STACKS["in a network of yours"].one("SessionReaper")["Tags"]
    assert {"Key": "may-attach-to-vpc", "Value": "shop/AttachToVpc"} in tags


def test_appending_a_security_group_keeps_the_existing_rules() -> None:
    kinds = ("AWS::EC2::SecurityGroupEgress", "AWS::EC2::SecurityGroupIngress")
    scene = SCENES["by endpoints"]
    before, after = (
        {one.name: one.properties for kind in kinds for one in render(parameters).of(kind)}
        for parameters in (scene, scene | {"DatabaseSecurityGroupIds": "sg-0a,sg-0b,sg-0c"})
    )
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


_KEPT = ("AWS::DynamoDB::Table", "AWS::Logs::LogGroup", "AWS::SNS::Topic", "AWS::SQS::Queue")


@every_scene
def test_no_parameter_change_replaces_a_stateful_resource(stack: Stack) -> None:
    for kind in _KEPT:
        before = {one.name: one for one in STACKS["bare"].of(kind)}
        after = {one.name: one for one in stack.of(kind)}
        assert before.keys() <= after.keys()
        for name, one in before.items():
            for section in ("createOnlyProperties", "conditionalCreateOnlyProperties"):
                assert _given(one, section) == _given(after[name], section)


def test_the_table_keeps_its_deployed_definition() -> None:
    [memory] = STACKS["bare"].of("AWS::DynamoDB::Table")
    assert memory.name == "shop/Memory"
    assert _given(memory, "createOnlyProperties") == {}
    assert memory.properties["KeySchema"] == [
        {"AttributeName": "target", "KeyType": "HASH"},
        {"AttributeName": "kind", "KeyType": "RANGE"},
    ]


@every_scene
def test_a_deleted_stack_leaves_only_the_retained_log_group(stack: Stack) -> None:
    kept = [one.name for one in stack.resources if one.deletion_policy != "Delete"]
    assert kept == (["shop/LogGroup"] if stack.conditions["template.yaml", "KeepsLogs"] else [])


_PARTITIONS = {
    one["id"]: next(name for name in one["regions"] if re.fullmatch(one["regionRegex"], name))
    for one in get_session().get_component("data_loader").load_data("partitions")["partitions"]
}


@pytest.mark.parametrize(("partition", "region"), _PARTITIONS.items())
def test_outputs_and_summaries_link_to_the_console_of_the_partition(
    partition: str, region: str
) -> None:
    with patch.dict(PSEUDO, {"AWS::Partition": partition, "AWS::Region": region}):
        outputs = render(BARE | {"Monitoring": "yes"}).outputs
    place = FunctionLocation(region=region, log_group="a", function="b", dashboard="c")
    console = link_to_console(place, "1")[0].url.partition("/cloudwatch")[0]
    for name in ("FunctionConsole", "LogConsole", "Dashboard"):
        assert outputs[name].startswith(f"{console}/")
    assert partition == "aws" or "aws.amazon.com" not in console


def test_the_outputs_are_the_next_steps() -> None:
    outputs = STACKS["bare"].outputs
    assert outputs["FunctionConsole"].endswith("/functions/shop/SessionReaper?tab=testing")
    assert """--payload '{"check": true}'""" in outputs["CheckCommand"]
    assert "--function-name shop/SessionReaper" in outputs["CheckCommand"]
    assert outputs["LogConsole"].endswith("log-group/shop/LogGroup")
    assert outputs["RoleArn"] == "shop/Role.Arn"
    assert "--function-name shop/SessionReaper --reserved" in outputs["SwitchOffCommand"]
