"""E9101: policies name their actions and resources."""

import json
from collections.abc import Iterator
from typing import Any, Final

from cfnlint.rules import CloudFormationLintRule, RuleMatch

Path = list[str | int]

# These support no narrower resource and only read metrics, in any region.
_READS_METRICS: Final = {
    "cloudwatch:GetMetricData",
    "cloudwatch:GetMetricStatistics",
    "cloudwatch:GetMetricWidgetImage",
    "cloudwatch:ListMetrics",
}
# These support no narrower resource, so they need a condition.
_KNOWS_NO_RESOURCE: Final = {
    *_READS_METRICS,
    # Each secret also needs GetSecretValue.
    "secretsmanager:BatchGetSecretValue",
    "secretsmanager:ListSecrets",
    # Lambda needs these to attach a function to a VPC; they are denied to the function's code.
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
}


class StatementsAreScoped(CloudFormationLintRule):
    """Checks that each Allow names its actions, and a resource or a condition."""

    id = "E9101"
    shortdesc = "Policy statements are scoped"
    description = "Allow names its actions; Resource * only where IAM supports nothing narrower, with a condition"
    tags = ("house", "iam")

    def match(self, cfn: Any) -> list[RuleMatch]:  # noqa: ANN401 -- cfn-lint ships no types
        """Return the statements that are too wide."""
        return [
            RuleMatch(["Resources", *path], problem)
            for name, resource in cfn.get_resources().items()
            for path, statement in _list_statements(resource, [name])
            for problem in _list_problems(statement, resource["Type"])
        ] + [
            RuleMatch(
                ["Resources", name], f"{name} admits every principal: give it a PolicyDocument"
            )
            for name, endpoint in cfn.get_resources("AWS::EC2::VPCEndpoint").items()
            if not any(_list_statements(endpoint, []))
        ]


def _list_statements(value: Any, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:  # noqa: ANN401 -- cfn-lint's own form
    if isinstance(value, dict):
        if "Effect" in value:
            yield path, value
            return
        for key, inner in value.items():
            if key == "Fn::Sub" and (text := _get_text(inner)).lstrip().startswith("{"):
                # cfn-lint cannot name a position inside a text.
                yield from ((path, found) for _, found in _list_statements(json.loads(text), []))
            else:
                yield from _list_statements(inner, [*path, key])
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _list_statements(inner, [*path, index])


def _get_text(sub: Any) -> str:  # noqa: ANN401 -- cfn-lint's own form
    text = sub[0] if isinstance(sub, list) else sub
    return text if isinstance(text, str) else ""


def _list_problems(statement: dict[str, Any], kind: str) -> Iterator[str]:
    if statement["Effect"] != "Allow" or _admits_the_account(statement, kind):
        return
    actions = _to_list(statement.get("Action", "*"))
    for action in actions:
        if "*" in action:
            yield f"{action} is more than one action: name each"
    if statement.get("Principal") in ("*", {"AWS": "*"}) and "Condition" not in statement:
        yield "An Allow for every principal needs a condition"
    # The trust policy of a role has no Resource.
    if actions != ["sts:AssumeRole"] and "*" in _to_list(statement.get("Resource", "*")):
        yield from _list_problems_of_any_resource(statement, actions, kind)


def _list_problems_of_any_resource(
    statement: dict[str, Any], actions: list[str], kind: str
) -> Iterator[str]:
    if "Condition" not in statement and not set(actions) <= _READS_METRICS:
        yield "Resource * needs a condition"
    # In the policy of a key, * means the key; in that of an endpoint, all requests through it.
    of_itself = kind in ("AWS::KMS::Key", "AWS::EC2::VPCEndpoint")
    if not of_itself and (wide := [one for one in actions if one not in _KNOWS_NO_RESOURCE]):
        yield f"{', '.join(wide)}: name the resource"


def _admits_the_account(statement: dict[str, Any], kind: str) -> bool:
    """Return whether the policy of a key or endpoint leaves the decision to the account's IAM."""
    if kind == "AWS::EC2::VPCEndpoint":
        return "aws:PrincipalAccount" in statement.get("Condition", {}).get("StringEquals", {})
    return kind == "AWS::KMS::Key" and ":root" in str(statement.get("Principal"))


def _to_list(value: Any) -> list[Any]:  # noqa: ANN401 -- cfn-lint's own form
    return value if isinstance(value, list) else [value]
