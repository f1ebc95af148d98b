"""E9105: EC2 refuses a description with an apostrophe, when everything else is made already."""

import re
from collections.abc import Iterator
from typing import Any

from cfnlint.rules import CloudFormationLintRule, RuleMatch

_ALLOWED = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")  # EC2's API, IpRange


class GroupsAreDescribed(CloudFormationLintRule):
    """The descriptions of security groups and their rules are of the characters that EC2 takes."""

    id = "E9105"
    shortdesc = "Descriptions of security groups that EC2 takes"
    description = "Others fail at deployment only, and take the whole stack with them"
    tags = ("house", "descriptions")

    def match(self, cfn: Any) -> list[RuleMatch]:  # noqa: ANN401 -- cfn-lint ships no types
        """What EC2 would refuse."""
        return [
            RuleMatch(["Resources", name, "Properties"], f"EC2 refuses this description: {text}")
            for name, resource in cfn.get_resources().items()
            if resource["Type"].startswith("AWS::EC2::SecurityGroup")
            for text in _descriptions(resource.get("Properties", {}))
            if not _ALLOWED.fullmatch(text)
        ]


def _descriptions(value: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, list):
        for each in value:
            yield from _descriptions(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key in ("Description", "GroupDescription"):
                yield str(each.get("Fn::Sub", "") if isinstance(each, dict) else each)
            else:
                yield from _descriptions(each)
