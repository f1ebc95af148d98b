"""E9103: the names of two stacks in one account and region cannot collide."""

from typing import Any

from cfnlint.rules import CloudFormationLintRule, RuleMatch


class NamesAreGenerated(CloudFormationLintRule):
    """Checks that CloudFormation generates each name, or that it contains the stack's name.

    An attached stack may take the root stack's name from a parameter.
    """

    id = "E9103"
    shortdesc = "No fixed names"
    description = "Two stacks in one account and region must not collide"
    tags = ("house", "names")

    def match(self, cfn: Any) -> list[RuleMatch]:  # noqa: ANN401 -- cfn-lint ships no types
        """Return the names that are the same in every stack."""
        unique = {"AWS::StackName", "AWS::StackId", *cfn.template.get("Parameters", {})}
        return [
            RuleMatch(
                ["Resources", name, "Properties", key], f"{key} is the same in every stack: {value}"
            )
            for name, resource in cfn.get_resources().items()
            for key, value in resource.get("Properties", {}).items()
            if key in _name_keys(resource["Type"]) and not _mentions(value, unique)
        ]


def _name_keys(kind: str) -> set[str]:
    """Return the properties that may hold the name, such as FunctionName of a Function."""
    *_, service, last = kind.split("::")
    # In the first two, FunctionName names another resource. An inline policy's name is only used
    # within its role.
    if last in ("Permission", "EventInvokeConfig") or kind == "AWS::IAM::Policy":
        return set()
    return {"Name", f"{last}Name", f"{service}Name", "ConfigurationName", "AliasName", "GroupName"}


def _mentions(value: Any, names: set[str]) -> bool:  # noqa: ANN401 -- cfn-lint's own form
    if isinstance(value, dict):
        return any(
            (key == "Ref" and inner in names)
            or (key == "Fn::Sub" and any(f"${{{name}}}" in str(inner) for name in names))
            or _mentions(inner, names)
            for key, inner in value.items()
        )
    return isinstance(value, list) and any(_mentions(inner, names) for inner in value)
