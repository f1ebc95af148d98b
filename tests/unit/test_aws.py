"""Our loader makes botocore read less, and does not change what is sent; errors show no credential."""

from __future__ import annotations

import re
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from session_reaper.aws import clients as aws
from session_reaper.aws.clients import describe_error, explain_error

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "cloudwatch": ("describe_alarms", {}),
    "dynamodb": ("describe_table", {"TableName": "memory"}),
    "rds": ("describe_db_instances", {}),
    "secretsmanager": ("get_secret_value", {"SecretId": "orders"}),
    "sns": ("publish", {"TopicArn": "topic", "Message": "hello"}),
    "sqs": ("receive_message", {"QueueUrl": "https://sqs.example/1/queue"}),
    "ssm": ("get_parameter", {"Name": "policy"}),
    # From which a profile on a laptop gets its credentials.
    "signin": (
        "create_o_auth2_token",
        {"tokenInput": {"clientId": "x", "grantType": "refresh_token", "refreshToken": "x"}},
    ),
    "sso": ("get_role_credentials", {"roleName": "r", "accountId": "1", "accessToken": "x"}),
    "sso-oidc": ("create_token", {"clientId": "x", "clientSecret": "x", "grantType": "x"}),
    "sts": ("get_caller_identity", {}),
}
OURS, PLAIN = aws.get_session(), boto3.Session()
SERVICES = OURS.get_available_services()
PARTITIONS = botocore.session.get_session().get_component("data_loader").load_data("endpoints")
REGIONS = [region for each in PARTITIONS["partitions"] for region in each["regions"]]
# For isolated regions, botocore refuses dual stack, which the services' own rules allow.
OPEN = [region for region in REGIONS if "-iso" not in region]
UNKNOWN = "eu-nowhere-9"  # a region that is newer than this version of botocore


class Sent(Exception):  # noqa: N818 -- not an error: it ends a call before anything is sent
    """The URL of a request, and the region and service that it is signed for."""


def stop(request: Any, **_: object) -> None:  # noqa: ANN401 -- botocore's type
    # The calls that get credentials are not signed.
    authorization = request.headers.get("Authorization", b"")
    signed = re.search(rb"Credential=key/\d+/([^,]+)", authorization)
    raise Sent(request.url, signed and signed[1])


def make_client(session: boto3.Session, service: str, region: str) -> Any:  # noqa: ANN401 -- one of many types
    make: Any = session.client  # its stubs accept literal service names only
    return make(service, region, aws_access_key_id="key", aws_secret_access_key="secret")  # noqa: S106 -- nothing is sent


def list_sent(session: boto3.Session, service: str, region: str) -> tuple[object, ...]:
    operation, arguments = CALLS[service]
    client = make_client(session, service, region)
    client.meta.events.register_first("before-send", stop)
    with pytest.raises(Sent) as request:
        getattr(client, operation)(**arguments)
    return request.value.args


@pytest.mark.parametrize("service", SERVICES)
def test_requests_of_every_region_have_the_same_destination_as_with_plain_boto3(
    service: str, *, is_thorough: bool
) -> None:
    for region in [*REGIONS[:: 1 if is_thorough else 10], UNKNOWN]:
        assert list_sent(OURS, service, region) == list_sent(PLAIN, service, region)


SWITCHES = [
    {"FIPS", "DUALSTACK"},
    pytest.param({"FIPS"}, marks=pytest.mark.thorough),
    pytest.param({"DUALSTACK"}, marks=pytest.mark.thorough),
]


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("variants", SWITCHES)
def test_fips_and_dual_stack_requests_have_the_same_destination_as_with_plain_boto3(
    monkeypatch: pytest.MonkeyPatch, service: str, variants: set[str], *, is_thorough: bool
) -> None:
    for variant in variants:
        monkeypatch.setenv(f"AWS_USE_{variant}_ENDPOINT", "true")
    for region in OPEN[:: 1 if is_thorough else 10]:
        assert list_sent(OURS, service, region) == list_sent(PLAIN, service, region)


def token(session: boto3.Session, region: str) -> str:
    client = make_client(session, "rds", "eu-west-1")
    made = client.generate_db_auth_token("orders.example", 5432, "reaper", Region=region)
    return re.sub(r"X-Amz-(Date|Signature)=\w+", "", made)  # they change every second


@pytest.mark.parametrize("region", [*REGIONS, UNKNOWN])
def test_an_iam_token_is_signed_for_the_region_of_its_instance(region: str) -> None:
    assert token(OURS, region) == token(PLAIN, region)
    assert f"%2F{region}%2Frds-db%2F" in token(OURS, region)


def test_a_client_is_made_once_for_each_service_and_timeout() -> None:
    assert aws.get_client("sns") is aws.get_client("sns")
    assert aws.get_client("sns") is not aws.get_client("sns", seconds=1)


PAGE = "<html><pre>POST / HTTP/1.1 X-Amz-Security-Token: TOKEN</pre></html>"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("403", PAGE),
        ("AccessDenied", PAGE),
        ("AccessDenied", "x-amz-security-token: TOKEN"),
        ("AccessDenied", '{"Authorization": "TOKEN"}'),
        ("AccessDenied", "first line\nTOKEN"),
        ("AccessDenied", "TOKEN " * 1000),
        ("TOKEN x-amz", "denied"),
    ],
)
def test_an_error_that_may_repeat_the_request_is_not_shown(code: str, text: str) -> None:
    error = ClientError({"Error": {"Code": code, "Message": text}}, "GetSecretValue")
    assert "TOKEN" not in explain_error(error)
    assert "not from AWS" in explain_error(error)
    assert "TOKEN" not in describe_error(error)


def test_the_page_of_a_proxy_is_not_shown() -> None:
    assert "TOKEN" not in explain_error(ResponseParserError(PAGE))


def test_an_error_of_aws_is_shown_with_its_message() -> None:
    text = (
        "User: arn:aws:sts::123456789012:assumed-role/reaper/reaper is not authorized to perform:"
        " secretsmanager:ListSecrets because no identity-based policy allows the action"
    )
    error = ClientError(
        {"Error": {"Code": "AccessDeniedException", "Message": text}}, "ListSecrets"
    )
    assert explain_error(error) == f"AccessDeniedException: {text}"
