"""All AWS calls of the functions, recorded, compared with the roles in template.yaml.

One set of parameters makes both: the environment that the handlers run in, and the roles. No call is
without a grant, no grant without a call. What AWS itself does with a role stands in lists of its own
here, each with its reason.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import boto3
import pytest
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from session_reaper.webhook import lambda_handler as webhook_handler

from infra.local.aws import REGION
from infra.local.certificates import make_tls
from tests.integration.endpoints import error_response
from tests.integration.grants import (
    Call,
    Request,
    Statement,
    find_refused,
    find_superfluous,
    parse_statements,
    record_requests,
)
from tests.integration.slack import Reply, run_slack
from tests.integration.stage import PASSWORD, REAPER, Context, policy
from tests.integration.wire import Impostor, say, unused_port
from tests.template.rendering import PSEUDO, Stack, refusals, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from infra.local.aws import Aws
    from tests.integration.stage import Stage

OTHER_ACCOUNT: Final = "210987654321"
OTHER_REGION: Final = "us-west-2"
POLICY: Final = "/reaper/policy"
MODE: Final = "/reaper/mode"
RESCUE: Final = "rescue"  # a secret's name


def arn(service: str, resource: str, *, account: str = DEFAULT_ACCOUNT_ID) -> str:
    return f"arn:aws:{service}:{REGION}:{account}:{resource}"


SHARED: Final = arn("secretsmanager", "secret:shared-AbCdEf", account=OTHER_ACCOUNT)
KEY_OF_YOURS: Final = arn("kms", "key/5e1c7a30-0000-4000-8000-000000000002")
KEY_OF_STORED: Final = arn("kms", "key/5e1c7a30-0000-4000-8000-000000000001")

# The names of the template's resources in the stand-in.
MADE: Final = {
    "shop/Topic": arn("sns", "session-reaper"),
    "shop/TopicKey.Arn": arn("kms", "key/5e1c7a30-0000-4000-8000-000000000003"),
    "shop/Memory": "shop-Memory",
    "shop/Memory.Arn": arn("dynamodb", "table/shop-Memory"),
    "shop/DeadLetters.Arn": arn("sqs", "shop-DeadLetters"),
    # CloudFormation's ARN of a log group includes its streams.
    "shop/LogGroup.Arn": arn("logs", "log-group:shop:*"),
    "shop/WebhookLogGroup.Arn": arn("logs", "log-group:shop-webhook:*"),
}

# -- calls that AWS itself makes with a role -------------------------------------------------------

# Lambda itself makes these calls with the role of a function; our code makes none of them.
LOGS: Final = ("logs:CreateLogStream", "logs:PutLogEvents")  # it writes what a function prints
DESTINATION: Final = ("sqs:SendMessage",)  # it puts a failed invocation into the queue
ATTACHING: Final = (  # it makes the interfaces in the subnets and takes them away
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
)
# A service that meets a key of the account's uses it as the caller. A secret and a parameter are
# decrypted. A message is encrypted by a data key of its own, and SNS and SQS decrypt that to see that
# it is whole. An item is encrypted by the table's key, which is there already and is decrypted.
DECRYPTS: Final = ("kms:Decrypt",)
ENCRYPTS: Final = ("kms:Decrypt", "kms:GenerateDataKey")
THROUGH: Final = {
    "secretsmanager:GetSecretValue": DECRYPTS,
    "ssm:GetParameter": DECRYPTS,
    "dynamodb:Scan": DECRYPTS,
    "dynamodb:PutItem": DECRYPTS,
    "dynamodb:DeleteItem": DECRYPTS,
    "sns:Publish": ENCRYPTS,
    "sqs:SendMessage": ENCRYPTS,
}


def call(action: str, resource: str, key: str | None = None, **facts: str) -> Call:
    known = {"aws:RequestedRegion": REGION}
    if resource != "*":
        _, _, _, region, account, _ = resource.split(":", 5)
        known = {"aws:RequestedRegion": region, "aws:ResourceAccount": account}
    facts = known | facts
    return Call(action=action, resource=resource, facts=frozenset(facts.items()), key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The resources for these parameters, with the stand-in's names."""

    stack: Stack
    parameters: Mapping[str, str]

    def role(self, name: str = "Role") -> tuple[Statement, ...]:
        inside = self.stack.one(name)["Policies"]
        beside = [one.properties for one in self.stack.of("AWS::IAM::Policy")]
        attached = [one for one in beside if one["Roles"] == [f"shop/{name}"]]
        return parse_statements(_real([*inside, *attached]))

    def environment(self, function: str) -> Mapping[str, str]:
        variables: Mapping[str, str] = _real(self.stack.one(function)["Environment"]["Variables"])
        return variables

    def calls_of_aws(self, group: str, function: str, ours: Sequence[Call]) -> Iterator[Call]:
        """The calls made with the function's role, by our code and by AWS."""
        stream = MADE[group].removesuffix("*") + "log-stream:2026/11/25/[$LATEST]abc"
        own = [call(action, stream) for action in LOGS]
        own += [call(action, MADE["shop/DeadLetters.Arn"]) for action in DESTINATION]
        if "VpcConfig" in self.stack.one(function):
            own += [call(action, "*") for action in ATTACHING]
        yield from own
        for one in [*ours, *own]:
            for action in THROUGH.get(one.action, ()):
                key = one.key or self._key(one.resource)
                if key:
                    service = one.action.partition(":")[0]
                    facts = {"kms:ViaService": f"{service}.{REGION}.amazonaws.com"}
                    if service == "secretsmanager":
                        facts["kms:EncryptionContext:SecretARN"] = one.resource
                    elif service == "sns":
                        facts["kms:EncryptionContext:aws:sns:topicArn"] = one.resource
                    yield call(action, key, **facts)

    def _key(self, resource: str) -> str | None:
        """The customer key that encrypts the template's resources; foreign topics have other keys."""
        keys: Mapping[str, str | None] = {
            MADE["shop/Topic"]: self.stack.one("Topic")["KmsMasterKeyId"],
            MADE["shop/DeadLetters.Arn"]: self.stack.one("DeadLetters").get("KmsMasterKeyId"),
            MADE["shop/Memory.Arn"]: self.stack.one("Memory")
            .get("SSESpecification", {})
            .get("KMSMasterKeyId"),
        }
        return _own(_real(keys.get(resource)))


def deployed(parameters: Mapping[str, str]) -> Deployment:
    with patch.dict(PSEUDO, {"AWS::Region": REGION, "AWS::AccountId": DEFAULT_ACCOUNT_ID}):
        assert refusals(parameters) == []
        return Deployment(stack=render(parameters), parameters=parameters)


def _real(node: Any) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        return {key: _real(one) for key, one in node.items()}
    if isinstance(node, list):
        return [_real(one) for one in node]
    return MADE.get(node, node)


# -- the recording ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A deployment with all options, and the requests of each function."""

    deployment: Deployment
    reaper: tuple[Call, ...]
    webhook: tuple[Call, ...]

    def calls(self, deployment: Deployment, function: str = "SessionReaper") -> tuple[Call, ...]:
        """The calls of a function, and of AWS for it, under this deployment's parameters."""
        ours, group = self.reaper, "shop/LogGroup.Arn"
        if function == "Webhook":
            ours, group = self.webhook, "shop/WebhookLogGroup.Arn"
        theirs = deployment.calls_of_aws(group, function, ours)
        return tuple(dict.fromkeys([*ours, *theirs]))


def _calls(requests: Iterable[Request], cloud: Aws) -> tuple[Call, ...]:
    """Yield the calls that IAM authorises for these requests."""
    found = [one for request in requests for one in _asked(request, cloud)]
    return tuple(dict.fromkeys(found))


def _asked(request: Request, cloud: Aws) -> Iterator[Call]:
    arguments = request.arguments
    match request.operation:
        case "secretsmanager:GetSecretValue":
            yield _read(arguments["SecretId"], cloud)
        case "secretsmanager:BatchGetSecretValue" | "secretsmanager:ListSecrets":
            yield call(request.operation, "*")
            for each in arguments.get("SecretIdList", ()):
                yield _read(each, cloud)
        case "cloudwatch:GetMetricData":
            yield call(request.operation, "*")
        case "rds:DescribeDBClusters" | "rds:DescribeDBInstances":
            kind = "cluster" if request.operation.endswith("Clusters") else "db"
            yield call(request.operation, arn("rds", f"{kind}:*"))
        case "rds-db:connect":
            assert f".{REGION}.rds." in request.host
            user = f"dbuser:db-ABCDEFGHIJKLMNOPQRSTUVWXYZ/{arguments['DBUser']}"
            yield call(request.operation, arn("rds-db", user))
        case "ssm:GetParameter":
            name = arguments["Name"].partition(":")[0]
            (found,) = cloud.ssm.describe_parameters(
                ParameterFilters=[{"Key": "Name", "Values": [name]}]
            )["Parameters"]
            resource = arn("ssm", f"parameter/{name.removeprefix('/')}")
            yield call(request.operation, resource, _own(found["KeyId"]))
        case "sns:Publish":
            topic = arguments["TopicArn"]
            said = cloud.sns.get_topic_attributes(TopicArn=topic)["Attributes"]
            yield call(request.operation, topic, _own(said.get("KmsMasterKeyId")))
        case "dynamodb:Scan" | "dynamodb:PutItem" | "dynamodb:DeleteItem":
            yield call(request.operation, arn("dynamodb", f"table/{arguments['TableName']}"))
        case other:
            raise AssertionError(f"{other}: what does IAM want for it?")


def _read(secret_id: str, cloud: Aws) -> Call:
    action = "secretsmanager:GetSecretValue"
    if f":{OTHER_ACCOUNT}:" in secret_id:
        return call(action, secret_id)
    secret = cloud.secrets.describe_secret(SecretId=secret_id)
    tags = {f"secretsmanager:ResourceTag/{i['Key']}": i["Value"] for i in secret.get("Tags", ())}
    return call(action, secret["ARN"], _own(secret.get("KmsKeyId")), **tags)


def _own(key: str | None) -> str | None:
    """A customer key: AWS's own keys need no grant."""
    return key if key and key.startswith("arn:") else None


@pytest.fixture
def recording(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Recording]:
    _rds_is_here(stage)
    tls = make_tls(tmp_path)
    refusal = error_response("53300", "too many connections", R="CheckMyDatabase")
    with run_slack(tls, (Reply(),)) as slack, Impostor(say(refusal)) as full:
        deployment = deployed(_parameters(stage, slack.url, full.port))
        dynamodb = boto3.client("dynamodb")
        properties = deployment.stack.one("Memory")
        dynamodb.create_table(
            TableName=MADE["shop/Memory"],
            **{
                key: properties[key] for key in ("AttributeDefinitions", "KeySchema", "BillingMode")
            },
        )
        stage.cleanup(lambda: dynamodb.delete_table(TableName=MADE["shop/Memory"]))
        for function in ("SessionReaper", "Webhook"):
            for name, value in deployment.environment(function).items():
                monkeypatch.setenv(name, value)
        with record_requests() as requests:
            _whole_job(stage)
            reaper = _calls(requests, stage.aws)
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
        with record_requests() as requests:
            webhook_handler({"Records": [{"Sns": {"Message": "{}"}}]}, Context())  # type: ignore[arg-type]
            webhook = _calls(requests, stage.aws)
        assert len(slack.posts) == 1
        yield Recording(deployment=deployment, reaper=reaper, webhook=webhook)


def _rds_is_here(stage: Stage) -> None:
    """Resolve every RDS endpoint to this machine."""
    stage.cleanup(get_backend("rds")[DEFAULT_ACCOUNT_ID][REGION].reset)
    resolve = socket.getaddrinfo

    def resolved(host: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- the library's own
        here = "127.0.0.1" if str(host).endswith(".rds.amazonaws.com") else host
        return resolve(here, *arguments, **options)

    stage.monkeypatch.setattr(socket, "getaddrinfo", resolved)


def _parameters(stage: Stage, webhook: str, full_port: int) -> dict[str, str]:
    """Every way to a secret, to a login and to a reader; each secret is configured in one way only."""
    cloud = stage.aws

    def secret(name: str, value: object, **tags: str) -> str:
        return cloud.secrets.create_secret(
            Name=name,
            SecretString=value if isinstance(value, str) else json.dumps(value),
            Tags=[{"Key": tag, "Value": said} for tag, said in tags.items()],
            KmsKeyId=KEY_OF_YOURS,
        )["ARN"]

    rescuer = stage.role("rescuer", "SUPERUSER")
    secret("orders", stage.secret(fallback_secret=RESCUE))
    secret("prod/billing", stage.secret(port=full_port))
    endpoint = _that_may_pause("events")
    by_token = {"auth": "iam", "password": None, "sslmode": None}
    secret("events", stage.secret(host=endpoint, port=unused_port(), **by_token), reap="prod")
    cloud.ssm.put_parameter(
        Name=POLICY, Value=json.dumps(policy()), Type="SecureString", KeyId=KEY_OF_YOURS
    )
    cloud.ssm.put_parameter(Name=MODE, Value="enforce", Type="SecureString", KeyId=KEY_OF_YOURS)
    attributes = {"KmsMasterKeyId": KEY_OF_YOURS}
    pager = cloud.sns.create_topic(Name="pager", Attributes=attributes)["TopicArn"]
    stage.cleanup(lambda: cloud.sns.delete_topic(TopicArn=pager))
    return {
        "TargetSecrets": "orders,prod/billing",
        "TargetSecretArns": f"{SHARED},{_managed(stage)}",
        "TargetSecretTag": "reap=prod",
        "FallbackSecretArns": secret(RESCUE, stage.secret(username=rescuer)),
        "IamDatabaseUser": REAPER,
        "DecryptionKeyArns": KEY_OF_YOURS,
        "Policy": f"ssm:{POLICY}:1",
        "Mode": f"ssm:{MODE}",
        "CriticalTopicArn": pager,
        "WebhookSecretArn": secret("slack", webhook),
        "Monitoring": "yes",  # without a key of yours the topic then has one of the stack's
        "KmsKeyArn": KEY_OF_STORED,
        "SubnetIds": "subnet-0a",
        "SecurityGroupIds": "sg-0a",
    }


def _that_may_pause(name: str) -> str:
    """The endpoint of the only instance of a cluster of Aurora Serverless with a minimum of 0."""
    rds = boto3.client("rds")
    rds.create_db_cluster(
        DBClusterIdentifier=f"{name}-cluster",
        Engine="aurora-postgresql",
        MasterUsername="root",
        MasterUserPassword="never-used",
        ServerlessV2ScalingConfiguration={"MinCapacity": 0, "MaxCapacity": 1},
    )
    made = rds.create_db_instance(
        DBInstanceIdentifier=name,
        DBClusterIdentifier=f"{name}-cluster",
        Engine="aurora-postgresql",
        DBInstanceClass="db.serverless",
    )["DBInstance"]
    return made["Endpoint"]["Address"]


def _managed(stage: Stage) -> str:
    """The managed secret of an RDS instance, without host and port."""
    made = boto3.client("rds").create_db_instance(
        DBInstanceIdentifier="ledger",
        Engine="postgres",
        DBInstanceClass="db.r6g.large",
        AllocatedStorage=20,
        MasterUsername="root",
        ManageMasterUserPassword=True,
        Port=stage.server.port,
    )["DBInstance"]
    found = made["MasterUserSecret"]["SecretArn"]
    value = {"username": REAPER, "password": PASSWORD, "sslmode": "disable"}
    stage.aws.secrets.put_secret_value(SecretId=found, SecretString=json.dumps(value))
    return found


def _whole_job(stage: Stage) -> None:
    """A run with a full server (a critical issue), two that reach the other one, and a check."""
    leak = stage.session()
    stage.root.run("ALTER DATABASE postgres CONNECTION LIMIT 0")
    stage.cleanup(stage.root.run, "ALTER DATABASE postgres CONNECTION LIMIT -1")
    run = stage.run()
    assert run.target("orders")["fallback_secret"] == RESCUE
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.error("prod/billing")["code"] == "53300"
    stage.root.run("ALTER DATABASE postgres CONNECTION LIMIT -1")
    for event in (
        {},
        {"check": True},
        {"source": "aws.scheduler", "detail-type": "Scheduled Event"},
    ):
        run = stage.run(event)
        reached = {one["name"] for one in run.document["targets"] if one["error"] is None}
        assert reached == {"orders"}  # ledger leads to the same server


# -- calls and grants match ------------------------------------------------------------------------

ROLES: Final = {"SessionReaper": "Role", "Webhook": "WebhookRole"}


def said(things: Iterable[object]) -> set[str]:
    return {str(one) for one in things}


def test_the_recorder_sees_every_kind_of_call(recording: Recording) -> None:
    assert {one.action for one in recording.reaper} == {
        "cloudwatch:GetMetricData",
        "dynamodb:DeleteItem",
        "dynamodb:PutItem",
        "dynamodb:Scan",
        "rds-db:connect",
        "rds:DescribeDBClusters",
        "rds:DescribeDBInstances",
        "secretsmanager:BatchGetSecretValue",
        "secretsmanager:GetSecretValue",
        "secretsmanager:ListSecrets",
        "sns:Publish",
        "ssm:GetParameter",
    }
    assert said(recording.webhook) == {"secretsmanager:GetSecretValue slack"}


def test_every_call_is_granted_and_every_grant_is_used(recording: Recording) -> None:
    for function, role in ROLES.items():
        granted = recording.deployment.role(role)
        calls = recording.calls(recording.deployment, function)
        assert said(find_refused(granted, calls)) == set()
        assert said(find_superfluous(granted, calls)) == set()


# The calls that are refused once a parameter is empty: its own, and no others.
WITHOUT: Final = {
    "TargetSecrets": {
        "secretsmanager:GetSecretValue orders",
        "secretsmanager:GetSecretValue prod/billing",
    },
    "TargetSecretArns": {
        "secretsmanager:GetSecretValue shared",
        "secretsmanager:GetSecretValue rds!db",
    },
    "TargetSecretTag": {
        "secretsmanager:GetSecretValue events",
        "secretsmanager:ListSecrets *",
    },
    "FallbackSecretArns": {"secretsmanager:GetSecretValue rescue"},
    "IamDatabaseUser": {f"rds-db:connect dbuser:db-ABCDEFGHIJKLMNOPQRSTUVWXYZ/{REAPER}"},
    "DecryptionKeyArns": {
        "kms:Decrypt secretsmanager",
        "kms:Decrypt ssm",
        "kms:Decrypt sns",
        "kms:GenerateDataKey sns",
    },
    "Policy": {"ssm:GetParameter parameter/reaper/policy"},
    "Mode": {"ssm:GetParameter parameter/reaper/mode"},
    "Policy,Mode": {
        "ssm:GetParameter parameter/reaper/policy",
        "ssm:GetParameter parameter/reaper/mode",
        "kms:Decrypt ssm",
    },
    "CriticalTopicArn": {"sns:Publish pager", "kms:Decrypt sns", "kms:GenerateDataKey sns"},
    "KmsKeyArn": {
        "kms:Decrypt dynamodb",
        "kms:Decrypt sns",
        "kms:Decrypt sqs",
        "kms:GenerateDataKey sns",
        "kms:GenerateDataKey sqs",
    },
    "SubnetIds,SecurityGroupIds": {f"{action} *" for action in ATTACHING},
}


OFF: Final = {"Mode": "enforce"}  # every other parameter is off when it is empty


def test_optional_features_that_are_off_are_not_granted(recording: Recording) -> None:
    everything = recording.calls(recording.deployment)
    seen = {}
    for names in WITHOUT:
        empty = {name: OFF.get(name, "") for name in names.split(",")}
        less = deployed({**recording.deployment.parameters, **empty})
        granted = less.role()
        seen[names] = said(find_refused(granted, everything))
        # Each remaining grant is used by a remaining call.
        left = [one for one in recording.reaper if not find_refused(granted, [one])]
        calls = replace(recording, reaper=tuple(left)).calls(less)
        assert (names, said(find_superfluous(granted, calls))) == (names, set())
    assert seen == WITHOUT


def test_without_a_customer_key_the_webhooks_role_may_use_no_key(recording: Recording) -> None:
    less = deployed({**recording.deployment.parameters, "KmsKeyArn": "", "DecryptionKeyArns": ""})
    lost = find_refused(less.role("WebhookRole"), recording.calls(recording.deployment, "Webhook"))
    assert said(lost) == {
        "kms:Decrypt secretsmanager",
        "kms:Decrypt sqs",
        "kms:GenerateDataKey sqs",
    }


def test_missing_and_superfluous_grants_are_found(recording: Recording) -> None:
    """Removing any grant, or adding one, makes the comparison fail."""
    for function, role in ROLES.items():
        granted = recording.deployment.role(role)
        calls = recording.calls(recording.deployment, function)
        grants = [grant for one in granted for grant in one.grants() if grant.effect == "Allow"]
        assert len(grants) > 5
        for gone in grants:
            kept = [one for one in grants if one != gone]
            assert [one for one in calls if gone.covers(one)] == find_refused(kept, calls) != []
        for more in (
            Statement(effect="Allow", actions=("sns:Subscribe",), resources=("*",), conditions=()),
            replace(granted[0], actions=("logs:*",)),
            granted[0],
        ):
            assert str(next(more.grants())) in said(find_superfluous([*granted, more], calls))


def test_the_endpoint_policies_allow_exactly_the_calls_that_are_made(recording: Recording) -> None:
    network = {
        "SecurityGroupIds": "",
        "VpcId": "vpc-0a",
        "DatabaseSecurityGroupIds": "sg-0b",
        "Endpoints": "all",
        "RouteTableIds": "rtb-0a",
    }
    made = deployed({**recording.deployment.parameters, **network}).stack
    let = {
        statement
        for endpoint in made.of("AWS::EC2::VPCEndpoint")
        if "PolicyDocument" in endpoint.properties
        for statement in parse_statements([endpoint.properties])
    }
    assert {action for one in let for action in one.actions} == {
        one.action
        for one in recording.reaper
        # DynamoDB's endpoint serves every stack, and creating a token sends nothing.
        if not one.action.startswith(("dynamodb:", "rds-db:"))
    }


# -- similar calls ---------------------------------------------------------------------------------

WHATEVER_ITS_NAME: Final = {"rds:DescribeDBClusters", "rds:DescribeDBInstances"}  # all, to find one


def _neighbours(one: Call) -> Iterator[Call]:
    """Yield the same calls in another region, in another account, and on similar names."""
    facts = dict(one.facts)
    for key, value in facts.items():
        # The region in a resource is the region of the call.
        beside = key == "aws:RequestedRegion" and one.resource == "*"
        if beside or key in ("kms:ViaService", "secretsmanager:ResourceTag/reap"):
            yield replace(one, facts=frozenset({**facts, key: f"{value}x"}.items()))
    if one.resource == "*":
        return
    _, _, service, region, account, rest = one.resource.split(":", 5)
    resources = [
        f"arn:aws:{service}:{OTHER_REGION}:{account}:{rest}",
        f"arn:aws:{service}:{region}:111111111111:{rest}",
    ]
    if one.action not in WHATEVER_ITS_NAME:
        names = _nearly(service, rest)
        resources += [f"arn:aws:{service}:{region}:{account}:{name}" for name in names]
    for resource in resources:
        others = call(one.action, resource).facts
        kept = {key: value for key, value in facts.items() if not key.startswith("aws:")}
        if service == "secretsmanager" and resource in resources[2:]:
            kept = {}  # it has not the tag
        yield Call(action=one.action, resource=resource, facts=frozenset(kept.items()) | others)


def _nearly(service: str, rest: str) -> Iterator[str]:
    if service == "secretsmanager":
        name, suffix = rest.removeprefix("secret:")[:-7], rest[-7:]
        for other in (f"{name}-archive", f"{name}-AbCdEf", f"{name}s", f"old/{name}", f"x{name}"):
            yield f"secret:{other}{suffix}"
    elif service == "logs":
        yield rest.replace(":shop", ":shopping", 1)
    else:
        yield f"{rest}s"


def test_the_role_allows_exactly_the_calls_that_are_made(recording: Recording) -> None:
    for function, role in ROLES.items():
        granted = recording.deployment.role(role)
        calls = recording.calls(recording.deployment, function)
        for one in calls:
            for other in _neighbours(one):
                assert find_refused(granted, [other]) == [other], f"{one} lets in {other}"


@pytest.mark.parametrize("name", ["orders", "prod/billing", "a+b=c.d@e!f_g"])
def test_a_grant_for_a_secret_does_not_cover_names_that_begin_alike(name: str, cloud: Aws) -> None:
    granted = deployed({"TargetSecrets": f"first,{name},last"}).role()

    def read(resource: str) -> list[Call]:
        return find_refused(granted, [call("secretsmanager:GetSecretValue", resource)])

    for ours in ("first", name, "last"):
        for other in (ours, f"{ours}-2", f"{ours}-AbCdEf", f"{ours}s", f"x/{ours}"):
            found = cloud.secrets.create_secret(Name=other, SecretString="{}")["ARN"]
            assert re.fullmatch(r".*-\w{6}", found)
            assert bool(read(found)) == (other != ours), found
    assert read(arn("secretsmanager", f"secret:{name}-AbCdEf", account=OTHER_ACCOUNT))
    assert read(arn("secretsmanager", f"secret:{name}"))


def test_only_lambda_and_not_the_code_may_manage_network_interfaces(recording: Recording) -> None:
    granted = recording.deployment.role()
    function = arn("lambda", "function:shop-SessionReaper")
    for action in ATTACHING:
        from_code = call(action, "*", **{"lambda:SourceFunctionArn": function})
        assert find_refused(granted, [from_code]) == [from_code]
