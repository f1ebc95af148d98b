"""E9102: every log group has a retention."""

from collections.abc import Iterator
from typing import Any

from cfnlint.rules import CloudFormationLintRule, RuleMatch


class LogsEnd(CloudFormationLintRule):
    """Checks that log groups have retention and deletion policies, and functions name theirs."""

    id = "E9102"
    shortdesc = "Log groups have a retention and a deletion policy, functions a log group"
    description = "Lambda's default log group has no retention and outlives the stack"
    tags = ("house", "logs")

    def match(self, cfn: Any) -> list[RuleMatch]:  # noqa: ANN401 -- cfn-lint ships no types
        """Return the missing properties."""
        return [RuleMatch(["Resources", name], problem) for name, problem in _list_problems(cfn)]


def _list_problems(cfn: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 -- cfn-lint's own form
    for name, group in cfn.get_resources("AWS::Logs::LogGroup").items():
        if "RetentionInDays" not in group.get("Properties", {}):
            yield name, f"{name} has no RetentionInDays"
        for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
            if policy not in group:
                yield name, f"{name} has no {policy}"
    for name, function in cfn.get_resources("AWS::Lambda::Function").items():
        if "LogGroup" not in function["Properties"].get("LoggingConfig", {}):
            yield name, f"{name} has no log group of its own"
