"""The hub's side of a roll-out: the topic of each region, and what the hub expects."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from session_reaper.aws.fleet_table import to_item, to_key
from session_reaper.fleet.message import Spoke
from session_reaper.fleet.state import SpokeState

from infra.fleet.accounts import Deployment
from infra.fleet.stacks import (
    DeployError,
    Options,
    assume_role,
    describe_error,
    read_outputs,
    read_parameters,
    run_sam,
)

_TEMPLATE: Final = Path(__file__).with_name("region.yaml")
_STACK: Final = "session-reaper-fleet"
_NOT_DEPLOYED: Final = "not-deployed-yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """The hub's stack, which is in the caller's own account and region."""

    account: str
    region: str
    queue_arn: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTopic:
    """The topic of one region, and its key."""

    arn: str
    key_arn: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoTopic:
    """Why a region has no topic, so that none of its stacks can join the fleet."""

    problem: str


def find_hub(stack: str) -> Hub:
    """Find the hub's stack with the caller's own credentials. Raises DeployError."""
    session = boto3.Session()
    if session.region_name is None:
        raise DeployError("set AWS_REGION to the region of the hub's stack")
    try:
        outputs = read_outputs(stack, session)
        account = session.client("sts").get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        raise DeployError(
            f"the hub's stack {stack} cannot be read: {describe_error(error)}"
        ) from None
    if "MemoryTable" not in outputs:
        raise DeployError(f"stack {stack} has no output MemoryTable; deploy infra/fleet/hub.yaml")
    return Hub(
        account=account,
        region=session.region_name,
        queue_arn=outputs["QueueArn"],
        table=outputs["MemoryTable"],
    )


def deploy_topics(
    deployments: Sequence[Deployment], hub: Hub, organization: str, options: Options
) -> Mapping[str, FleetTopic | NoTopic]:
    """Deploy the topic of each region, preview or only find it; return them by region."""
    accounts = {each.account for each in deployments}
    regions = sorted({each.region for each in deployments})
    return {
        region: _deploy_topic(region, accounts, hub, organization, options) for region in regions
    }


def _deploy_topic(
    region: str, accounts: Collection[str], hub: Hub, organization: str, options: Options
) -> FleetTopic | NoTopic:
    own = Deployment(line=0, account=hub.account, region=region, stack=_STACK)
    place = f"the topic of {region}, stack {_STACK} in {hub.account}"
    try:
        session = assume_role(own)
        before = read_parameters(_STACK, session)
        publishers = choose_publishers(accounts, before or {}, organization)
        own = replace(own, parameters={"QueueArn": hub.queue_arn, **publishers})
        if not options.register:
            verb = "previewing" if options.preview else "deploying"
            print(f"{verb} the topic of {region}", flush=True)
            run_sam(own, session, replace(options, template=_TEMPLATE))
        if options.preview and before is None:
            return _stand_in(hub, region)
        outputs = read_outputs(_STACK, session)
    except (DeployError, BotoCoreError, ClientError) as error:
        return NoTopic(problem=f"{place}: {describe_error(error)}")
    if "FleetTopicArn" not in outputs:  # its first deployment has failed
        return NoTopic(problem=f"{place}: has no outputs, so its deployment has failed")
    return FleetTopic(arn=outputs["FleetTopicArn"], key_arn=outputs["KmsKeyArn"])


def _stand_in(hub: Hub, region: str) -> FleetTopic:
    """Return the ARNs of a topic that is not deployed yet, for a preview of the stacks' changes."""
    partition = hub.queue_arn.split(":")[1]
    place = f"{region}:{hub.account}"
    return FleetTopic(
        arn=f"arn:{partition}:sns:{place}:{_NOT_DEPLOYED}",
        key_arn=f"arn:{partition}:kms:{place}:key/{_NOT_DEPLOYED}",
    )


def choose_publishers(
    accounts: Collection[str], before: Mapping[str, str], organization: str
) -> Mapping[str, str]:
    """Choose who may publish to a topic; accounts of other files stay admitted."""
    organization = organization or before.get("OrganizationId", "")
    if organization:
        return {"OrganizationId": organization, "Accounts": ""}
    known = {each for each in before.get("Accounts", "").split(",") if each}
    return {"Accounts": ",".join(sorted({*accounts, *known}))}


def join_fleet(deployment: Deployment, topic: FleetTopic, before: Mapping[str, str]) -> Deployment:
    """Set the parameters that lead the stack's reports to the hub; `before` are the stack's own."""
    given = deployment.parameters
    keys = [each for each in {**before, **given}.get("KmsKeyArns", "").split(",") if each]
    fleet = {
        "FleetTopicArn": given.get("FleetTopicArn", topic.arn),
        "KmsKeyArns": ",".join(dict.fromkeys([*keys, topic.key_arn])),
    }
    return replace(deployment, parameters={**given, **fleet})


def expect_report(hub: Hub, spoke: Spoke, interval: float) -> None:
    """Register the stack if it is new; its first report is expected within `interval` seconds.

    Raises DeployError.
    """
    state = SpokeState(spoke=spoke, expected_by=time.time() + interval)
    dynamodb = boto3.Session().client("dynamodb", region_name=hub.region)
    try:
        dynamodb.put_item(
            TableName=hub.table,
            Item=to_item(state),
            ConditionExpression="attribute_not_exists(target)",
        )
    except dynamodb.exceptions.ConditionalCheckFailedException:
        return
    except (BotoCoreError, ClientError) as error:
        raise DeployError(
            f"deployed, but not registered with the hub: {describe_error(error)}"
        ) from None


def forget_stack(hub: Hub, label: str) -> None:
    """Let the hub forget a removed stack. Raises DeployError if it does not know the stack."""
    account, region, function = [*label.split("/"), "", ""][:3]
    dynamodb = boto3.Session().client("dynamodb", region_name=hub.region)
    try:
        answer = dynamodb.delete_item(
            TableName=hub.table,
            Key=to_key(Spoke(account, region, function)),
            ReturnValues="ALL_OLD",
        )
    except (BotoCoreError, ClientError) as error:
        raise DeployError(f"{label}: {describe_error(error)}") from None
    if "Attributes" not in answer:
        raise DeployError(
            f"{label}: the hub does not know this stack; write its name as digests show it"
        )
