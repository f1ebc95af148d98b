"""The rules of infra/cfn_rules: what each refuses, and that cfn-lint finds them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from cfnlint.rules import RulesCollection
from cfnlint.template import Template

from infra.cfn_rules.descriptions import GroupsAreDescribed
from infra.cfn_rules.logs import LogsEnd
from infra.cfn_rules.names import NamesAreGenerated
from infra.cfn_rules.parameters import ParametersAreExplained
from infra.cfn_rules.statements import StatementsAreScoped
from tests.template.sources import ROOT

RULES = (
    GroupsAreDescribed,
    LogsEnd,
    NamesAreGenerated,
    ParametersAreExplained,
    StatementsAreScoped,
)


def _find(rule: Any, template: dict[str, Any]) -> list[str]:  # noqa: ANN401
    template = {"Resources": {}} | copy.deepcopy(template)
    return [match.message for match in rule().match(Template("x.yaml", template, ["eu-west-1"]))]


def test_cfn_lint_finds_every_rule_in_the_folder() -> None:
    collection = RulesCollection()
    collection.create_from_directory(str(ROOT / "infra" / "cfn_rules"))
    assert {"E9101", "E9102", "E9103", "E9104", "E9105"} == {rule.id for rule in RULES}
    assert {rule.id for rule in RULES} <= {rule.id for rule in collection.rules.values()}
    assert "--append-rules infra/cfn_rules" in (ROOT / "Makefile").read_text()


# -- statements ------------------------------------------------------------------------------------

_GOOD = {"Effect": "Allow", "Action": "sns:Publish", "Resource": "arn:aws:sns:::t"}
_CONDITION = {"StringEquals": {"aws:RequestedRegion": "eu-west-1"}}


def _role(statement: object, kind: str = "AWS::IAM::Role") -> dict[str, Any]:
    document = {"PolicyDocument": {"Statement": [statement]}}
    return {"Resources": {"Role": {"Type": kind, "Properties": {"Policies": [document]}}}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"Action": "*"}, "more than one action"),
        ({"Action": ["sns:Publish", "sns:*"]}, "more than one action"),
        ({"Action": "kms:GenerateDataKey*"}, "more than one action"),
        ({"Resource": "*"}, "needs a condition"),
        ({"Resource": "*", "Condition": _CONDITION}, "name the resource"),
        ({"Resource": "*", "Action": "secretsmanager:ListSecrets"}, "needs a condition"),
        ({"Resource": ["*"], "Condition": _CONDITION}, "name the resource"),
        ({"Principal": "*"}, "every principal"),
        ({"Principal": {"AWS": "*"}}, "every principal"),
        ({"Resource": "*", "Action": "cloudwatch:PutMetricData"}, "needs a condition"),
    ],
    ids=str,
)
def test_a_wide_statement_is_found(change: dict[str, Any], problem: str) -> None:
    assert any(problem in one for one in _find(StatementsAreScoped, _role(_GOOD | change)))


@pytest.mark.parametrize("gone", ["Action", "Resource"])
def test_a_statement_with_notaction_or_notresource_is_found(gone: str) -> None:
    statement = {f"Not{key}" if key == gone else key: one for key, one in _GOOD.items()}
    assert _find(StatementsAreScoped, _role(statement))


@pytest.mark.parametrize(
    "statement",
    [
        _GOOD,
        _GOOD | {"Effect": "Deny", "Action": "*", "Resource": "*"},
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "x"}},
        {
            "Effect": "Allow",
            "Action": "secretsmanager:ListSecrets",
            "Resource": "*",
            "Condition": _CONDITION,
        },
        {"Effect": "Allow", "Action": "cloudwatch:ListMetrics", "Resource": "*"},
    ],
    ids=str,
)
def test_a_scoped_statement_is_accepted(statement: dict[str, Any]) -> None:
    assert _find(StatementsAreScoped, _role(statement)) == []


def test_a_wide_statement_is_found_inside_an_if_and_inside_text() -> None:
    wide = _GOOD | {"Resource": "*"}
    assert _find(StatementsAreScoped, _role({"Fn::If": ["Yes", wide, {"Ref": "AWS::NoValue"}]}))
    text = {
        "Fn::Sub": ['{"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "${A}"}]}', {}]
    }
    assert _find(StatementsAreScoped, _role(text))


def test_in_a_key_policy_only_the_account_may_do_everything() -> None:
    owner = {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}
    root, service = {"AWS": "arn:aws:iam::1:root"}, {"Service": "cloudwatch.amazonaws.com"}
    key = "AWS::KMS::Key"
    assert _find(StatementsAreScoped, _role(owner | {"Principal": root}, key)) == []
    assert _find(StatementsAreScoped, _role(owner | {"Principal": service}, key))
    assert _find(StatementsAreScoped, _role(owner | {"Principal": root}))


def test_an_endpoint_may_admit_everything_of_one_account_only() -> None:
    every = {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}
    account = {"Condition": {"StringEquals": {"aws:PrincipalAccount": "1"}}}
    endpoint = "AWS::EC2::VPCEndpoint"
    assert _find(StatementsAreScoped, _role(every | account, endpoint)) == []
    assert _find(StatementsAreScoped, _role(every, endpoint))
    assert _find(StatementsAreScoped, _role(every | account))


def test_an_endpoint_without_a_policy_is_found() -> None:
    endpoint = {"Type": "AWS::EC2::VPCEndpoint", "Properties": {}}
    [problem] = _find(StatementsAreScoped, {"Resources": {"DynamoDb": endpoint}})
    assert problem == "DynamoDb admits every principal: give it a PolicyDocument"


# -- logs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["RetentionInDays", "DeletionPolicy", "UpdateReplacePolicy"])
def test_a_log_group_without_retention_is_found(gone: str) -> None:
    group = {
        "Type": "AWS::Logs::LogGroup",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": {"RetentionInDays": 7},
    }
    assert _find(LogsEnd, {"Resources": {"Logs": group}}) == []
    for part in (group, group["Properties"]):
        assert isinstance(part, dict)
        part.pop(gone, None)
    assert _find(LogsEnd, {"Resources": {"Logs": group}}) == [f"Logs has no {gone}"]


def test_a_function_with_lambdas_default_log_group_is_found() -> None:
    function = {"Type": "AWS::Lambda::Function", "Properties": {"LoggingConfig": {}}}
    assert _find(LogsEnd, {"Resources": {"F": function}}) == ["F has no log group of its own"]


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("AWS::Lambda::Function", "FunctionName"),
        ("AWS::SNS::Topic", "TopicName"),
        ("AWS::Scheduler::Schedule", "Name"),
        ("AWS::Logs::LogGroup", "LogGroupName"),
        ("AWS::IAM::Role", "RoleName"),
        ("AWS::CloudWatch::Alarm", "AlarmName"),
        ("AWS::Chatbot::SlackChannelConfiguration", "ConfigurationName"),
        ("AWS::EC2::SecurityGroup", "GroupName"),
        ("AWS::IAM::ManagedPolicy", "ManagedPolicyName"),
    ],
)
def test_a_name_shared_by_all_stacks_is_found(kind: str, key: str) -> None:
    def found(name: object) -> list[str]:
        resource = {"Type": kind, "Properties": {key: name}}
        return _find(NamesAreGenerated, {"Parameters": {"Shop": {}}, "Resources": {"R": resource}})

    assert found("reaper")
    assert found({"Fn::Sub": "reaper-${AWS::Region}"})
    assert found({"Fn::Sub": "${AWS::StackName}-reaper"}) == []
    assert found({"Fn::Join": ["-", [{"Ref": "AWS::StackName"}, "reaper"]]}) == []
    assert found({"Ref": "Shop"}) == []


# -- parameters ------------------------------------------------------------------------------------


def _make_interface(*grouped: str, **parameters: dict[str, str]) -> dict[str, Any]:
    interface = {"ParameterGroups": [{"Parameters": list(grouped)}]}
    return {"Metadata": {"AWS::CloudFormation::Interface": interface}, "Parameters": parameters}


def test_a_parameter_without_a_description_is_found() -> None:
    good = {"Description": "How far to go", "Default": ""}
    assert _find(ParametersAreExplained, _make_interface("Mode", Mode=good)) == []
    assert _find(ParametersAreExplained, _make_interface("Mode", Mode={})) == [
        "Mode has no description",
        "Mode has no default",
    ]
    assert _find(ParametersAreExplained, {"Parameters": {"Mode": {}}}) == [
        "Mode has no description"
    ]


@pytest.mark.parametrize("grouped", [(), ("Mode", "Mode"), ("Mode", "Other")])
def test_a_parameter_in_no_group_or_in_two_is_found(grouped: tuple[str, ...]) -> None:
    good = {"Description": "How far to go", "Default": ""}
    [problem] = _find(ParametersAreExplained, _make_interface(*grouped, Mode=good))
    assert "each once" in problem


# -- descriptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        ({"GroupDescription": "The function of it", "SecurityGroupEgress": []}, 0),
        ({"GroupDescription": {"Fn::Sub": "The function of ${Service}"}}, 0),
        ({"GroupDescription": "AWS's"}, 1),
        ({"SecurityGroupEgress": [{"Description": "AWS's APIs"}]}, 1),
        ({"GroupDescription": "x" * 256}, 1),
    ],
)
def test_a_description_that_ec2_refuses_is_found(properties: dict[str, Any], found: int) -> None:
    group = {"Type": "AWS::EC2::SecurityGroup", "Properties": properties}
    assert len(_find(GroupsAreDescribed, {"Resources": {"Group": group}})) == found
