"""E9104: every parameter is explained to people who deploy by hand."""

from collections.abc import Iterator
from typing import Any, Final

from cfnlint.rules import CloudFormationLintRule, RuleMatch

_INTERFACE: Final = "AWS::CloudFormation::Interface"


class ParametersAreExplained(CloudFormationLintRule):
    """Checks that parameters have a description and, beside an Interface, a default and a group.

    The console shows the groups, `sam deploy --guided` asks in the order of the parameters: both
    must be the same.
    """

    id = "E9104"
    shortdesc = "Parameters have a description, a group and a default"
    description = "The console and sam deploy --guided show them in the same order"
    tags = ("house", "parameters")

    def match(self, cfn: Any) -> list[RuleMatch]:  # noqa: ANN401 -- cfn-lint ships no types
        """Return the missing parts, and the differences in order."""
        interface = cfn.template.get("Metadata", {}).get(_INTERFACE)
        parameters = cfn.template.get("Parameters", {})
        problems = _check_each(parameters, interface)
        matches = [RuleMatch(["Parameters", name], problem) for name, problem in problems]
        if interface:
            groups = interface.get("ParameterGroups", [])
            grouped = [name for group in groups for name in group["Parameters"]]
            if grouped != list(parameters):
                matches.append(
                    RuleMatch(
                        ["Metadata", _INTERFACE, "ParameterGroups"],
                        "The groups do not have all parameters, each once, in their order",
                    )
                )
        return matches


def _check_each(parameters: dict[str, Any], interface: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 -- cfn-lint's own form
    for name, parameter in parameters.items():
        if not parameter.get("Description"):
            yield name, f"{name} has no description"
        if interface and "Default" not in parameter:
            yield name, f"{name} has no default"
