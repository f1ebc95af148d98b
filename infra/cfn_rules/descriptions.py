"""E9105: EC2 refuses an apostrophe in a description, late in a deployment."""

import re
from collections.abc import Iterator
from typing import Any

from cfnlint.rules import CloudFormationLintRule, RuleMatch

_ALLOWED = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")  # EC2's API, IpRange


class GroupsAreDescribed(CloudFormationLintRule):
    """Checks that EC2 accepts the descriptions of security groups and of their rules."""

    id = "E9105"
    shortdesc = "EC2 accepts the descriptions of security groups"
    description = "Otherwise the deployment fails and rolls back the whole stack"
    tags = ("house", "descriptions")

    def match(self, cfn: Any) -> list[RuleMatch]:  # noqa: ANN401 -- cfn-lint ships no types
        """Return the descriptions that EC2 refuses."""
        return [
            RuleMatch(["Resources", name, "Properties"], f"EC2 refuses this description: {text}")
            for name, resource in cfn.get_resources().items()
            if resource["Type"].startswith("AWS::EC2::SecurityGroup")
            for text in _list_descriptions(resource.get("Properties", {}))
            if not _ALLOWED.fullmatch(text)
        ]


def _list_descriptions(value: Any) -> Iterator[str]:  # noqa: ANN401 -- cfn-lint's own form
    if isinstance(value, list):
        for each in value:
            yield from _list_descriptions(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key in ("Description", "GroupDescription"):
                yield str(each.get("Fn::Sub", "") if isinstance(each, dict) else each)
            else:
                yield from _list_descriptions(each)
