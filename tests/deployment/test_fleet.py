"""The hub of a fleet and the topic of a region, deployed under the policies of their own roles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from session_reaper.report.model import Outcome

from tests.builders import a_target_report, some_fates
from tests.deployment.account import ACCOUNT, REGION, ROOT, SAM
from tests.fleet import a_message, an_origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deployment.account import Account

HUB, TOPIC = "fleet-hub", "fleet-region"


@pytest.fixture(scope="module")
def hub(account: Account) -> Iterator[dict[str, str]]:
    """The outputs of both stacks, which are deleted at the end."""
    for stack, template, parameters in (
        (HUB, ".aws-sam/hub/template.yaml", ()),
        (TOPIC, "infra/fleet/region.yaml", ("Accounts=" + ACCOUNT,)),
    ):
        given = [*parameters]
        if stack == TOPIC:
            given.append(f"QueueArn={account.outputs(HUB)['QueueArn']}")
        account.run(
            *(SAM, "deploy", "--stack-name", stack, "--template-file", ROOT / template),
            *("--no-confirm-changeset", "--resolve-s3", "--capabilities", "CAPABILITY_IAM"),
            *(("--parameter-overrides", *given) if given else ()),
        )
    yield account.outputs(HUB) | account.outputs(TOPIC)
    for stack in (TOPIC, HUB):
        account.delete(stack)


def test_a_report_to_the_topic_of_the_region_is_in_the_hubs_answer(
    account: Account, hub: dict[str, str]
) -> None:
    fates = some_fates(3, Outcome.TERMINATED)
    message = a_message(an_origin(region=REGION), a_target_report(*fates, used_after=1))
    account.client("sns").publish(TopicArn=hub["FleetTopicArn"], Message=message)
    resources = account.client("cloudformation").describe_stack_resources(StackName=HUB)
    (function,) = (
        each["PhysicalResourceId"]
        for each in resources["StackResources"]
        if each["ResourceType"] == "AWS::Lambda::Function"
    )
    begin = len(account.log.read_text())
    answer = account.invoke(function, {})
    assert account.denials(begin) == set()
    assert answer["verdict"] == "RESOLVED: 3 sessions were terminated and verified gone."
    assert answer["published"]
    assert (answer["messages"], answer["refused"], answer["complete"]) == (1, 0, True)
    assert account.invoke(function, {})["messages"] == 0
