"""Runs ministack, an emulator of AWS, and adds what session-reaper's stacks need beyond it.

Run it with the Python of `.tools/deployment`; the environment configures it, as ministack
documents. `main` lists the additions. Calls that IAM denies are printed.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import ministack.app
from ministack.core import iam_evaluator
from ministack.core.responses import get_account_id
from ministack.services import cloudwatch, ec2, eventbridge
from ministack.services.cloudformation import changesets, engine, handlers, provisioners, stacks


def main() -> None:
    """Add the calls that the emulator lacks, then serve until a signal ends the process."""
    for module in (changesets, engine, handlers, stacks):
        module._evaluate_conditions = evaluate_conditions
    provisioners._RESOURCE_HANDLERS["AWS::Logs::QueryDefinition"] = QUERY_DEFINITION
    provisioners._RESOURCE_HANDLERS["AWS::EC2::SecurityGroupIngress"] = SECURITY_GROUP_INGRESS
    cloudwatch._dispatch_alarm_actions = with_state_change(cloudwatch._dispatch_alarm_actions)
    iam_evaluator.enforce = with_denials_printed(iam_evaluator.enforce)
    ministack.app._port_is_bindable = lambda *_: False  # otherwise it also serves on port 443
    ministack.app.main()


def evaluate_conditions(
    template: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Evaluate a template's conditions, also with Split, Sub and Join, which ministack does not."""
    conditions = template.get("Conditions", {})

    def evaluate(node: Any) -> Any:  # noqa: ANN401 -- any value of a template
        value = node
        if isinstance(node, dict):
            [(function, argument)] = node.items()
            match function:
                case "Condition":
                    value = evaluate(conditions[argument])
                case "Fn::Equals":
                    value = len({str(evaluate(one)) for one in argument}) == 1
                case "Fn::Not":
                    value = not evaluate(argument[0])
                case "Fn::And":
                    value = all(map(evaluate, argument))
                case "Fn::Or":
                    value = any(map(evaluate, argument))
                case _:
                    value = engine._resolve_refs(node, {}, parameters, {}, {}, "", "")
        return value

    return {name: evaluate(one) for name, one in conditions.items()}


# Accepts a saved query without saving it.
QUERY_DEFINITION = {
    "create": lambda logical_id, _properties, stack: (f"{stack}-{logical_id}", {}),
    "delete": lambda _physical_id, _properties: None,
}


def add_ingress(
    logical_id: str, properties: Mapping[str, Any], stack: str
) -> tuple[str, dict[str, str]]:
    """Add a rule to a security group."""
    group = ec2._security_groups[properties["GroupId"]]
    group["IpPermissions"] += provisioners._ec2_sg_permissions([properties])
    return f"{stack}-{logical_id}", {}


def remove_ingress(_physical_id: str, properties: Mapping[str, Any]) -> None:
    """Remove the rule, if the group still exists."""
    group = ec2._security_groups.get(properties["GroupId"])
    if group:
        removed = provisioners._ec2_sg_permissions([properties])
        group["IpPermissions"] = [one for one in group["IpPermissions"] if one not in removed]


# A rule of a security group; ministack supports rules only within the group.
SECURITY_GROUP_INGRESS = {"create": add_ingress, "delete": remove_ingress}


def with_state_change(dispatch: Callable[..., None]) -> Callable[..., None]:
    """Send an alarm's state change to EventBridge, too: ministack's alarms only publish to SNS."""

    def dispatch_and_send(alarm: Mapping[str, Any], old: str, new: str, reason: str) -> None:
        dispatch(alarm, old, new, reason)
        detail = {
            "alarmName": alarm["AlarmName"],
            "previousState": {"value": old},
            "state": {"value": new, "reason": reason},
        }
        entry = {
            "Source": "aws.cloudwatch",
            "DetailType": "CloudWatch Alarm State Change",
            "Detail": json.dumps(detail),
        }
        eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)

    return dispatch_and_send


# The resources that AWS checks for a list of all; ministack checks "*".
LISTED = {"rds:DescribeDBClusters": "cluster:*", "rds:DescribeDBInstances": "db:*"}

# AWS checks the permission for a single call; ministack checks the name of the batch call.
BATCHES = {
    f"sqs:{action}Batch": f"sqs:{action}" for action in ("DeleteMessage", "ChangeMessageVisibility")
}


def with_denials_printed(enforce: Callable[..., Any]) -> Callable[..., Any]:
    """Print each request that IAM denies, because a program may handle a denial silently."""

    def enforce_and_print(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", **facts: object
    ) -> object:
        if resource_arn == "*" and action in LISTED:
            account = get_account_id()
            resource_arn = f"arn:aws:rds:{region}:{account}:{LISTED[action]}"
        action = BATCHES.get(action, action)
        denied = enforce(key, action, service, region, resource_arn, **facts)
        if denied:
            print(f"DENIED {action} {resource_arn}", flush=True)
        return denied

    return enforce_and_print


if __name__ == "__main__":
    main()
