"""Sets of parameters that between them take every way through the templates."""

from __future__ import annotations

from typing import Final

_SECRET: Final = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"  # noqa: S105 -- its ARN
KEY: Final = "arn:aws:kms:eu-west-1:123456789012:key/5e1c7a30-0000-4000-8000-000000000001"

BARE: Final = {"TargetSecrets": "orders"}

ALL: Final = {
    "TargetSecrets": "orders,prod/billing",
    "TargetSecretTag": "session-reaper=prod",
    "Email": "team@example.com",
    "Mode": "enforce",
    "TargetSecretArns": f"{_SECRET}shared-AbCdEf",
    "ClusterTargets": "endpoint",
    "PausedClusters": "connect",
    "FallbackSecretArns": f"{_SECRET}master-AbCdEf",
    "IamDatabaseUser": "session_reaper",
    "DecryptionKeyArns": "arn:aws:kms:eu-west-1:123456789012:key/5e1c7a30-0000-4000-8000-000000000002",
    "Policy": "ssm:/reaper/policy:3",
    "ScheduleExpression": "rate(1 minute)",
    "ConnectionAlarmPrefix": "connections-",
    "Notify": "always",
    "RemindAfter": "90m",
    "CriticalTopicArn": "arn:aws:sns:eu-west-1:123456789012:pager",
    "SlackWorkspaceId": "T0123ABCD",
    "SlackChannelId": "C0123ABCD",
    "WebhookSecretArn": f"{_SECRET}slack-AbCdEf",
    "TargetMetrics": "no",
    "Monitoring": "yes",
    "LogRetentionInDays": "30",
    "KeepLogs": "yes",
    "KmsKeyArn": KEY,
    "PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary",
    "SubnetIds": "subnet-0a,subnet-0b",
    "SecurityGroupIds": "",
    "VpcId": "vpc-0a",
    "DatabaseSecurityGroupIds": "sg-0a,sg-0b,sg-0c,sg-0d",
    "Endpoints": "all",
    "RouteTableIds": "rtb-0a,rtb-0b",
}

SCENES: Final = {
    "bare": BARE,
    "all": ALL,
    "all without a key": ALL | {"KmsKeyArn": ""},
    "with the mode in a parameter": BARE | {"Mode": "ssm:/reaper/mode:2"},
    "by tag": {"TargetSecretTag": "session-reaper=prod"},
    "by ARN": {"TargetSecretArns": f"{_SECRET}shared-AbCdEf"},
    "with alarms": BARE | {"Monitoring": "yes"},
    "with Slack": BARE | {"SlackWorkspaceId": "T0123ABCD", "SlackChannelId": "C0123ABCD"},
    "with a key": BARE | {"KmsKeyArn": KEY},
    "in a network of yours": BARE | {"SubnetIds": "subnet-0a", "SecurityGroupIds": "sg-0a,sg-0b"},
    "behind a NAT": BARE
    | {"SubnetIds": "subnet-0a", "VpcId": "vpc-0a", "DatabaseSecurityGroupIds": "sg-0a"},
    "by endpoints": BARE
    | {
        "SubnetIds": "subnet-0a",
        "VpcId": "vpc-0a",
        "DatabaseSecurityGroupIds": "sg-0a,sg-0b",
        "Endpoints": "yes",
    },
}
