"""Our loader makes botocore read less, and does not change what is sent."""

from __future__ import annotations

import re
from typing import Any

import boto3
import botocore.session
import pytest
from session_reaper.aws import clients as aws

CALLS: dict[str, tuple[str, dict[str, str]]] = {
    "dynamodb": ("describe_table", {"TableName": "memory"}),
    "rds": ("describe_db_instances", {}),
    "secretsmanager": ("get_secret_value", {"SecretId": "orders"}),
    "sns": ("publish", {"TopicArn": "topic", "Message": "hello"}),
    "ssm": ("get_parameter", {"Name": "policy"}),
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
    signed = re.search(rb"Credential=key/\d+/([^,]+)", request.headers["Authorization"])
    raise Sent(request.url, signed and signed[1])


def make_client(session: boto3.Session, service: str, region: str) -> Any:  # noqa: ANN401 -- one of many types
    make: Any = session.client  # its stubs accept literal service names only
    return make(service, region, aws_access_key_id="key", aws_secret_access_key="secret")  # noqa: S106 -- nothing is sent


def sent(session: boto3.Session, service: str, region: str) -> tuple[object, ...]:
    operation, arguments = CALLS[service]
    client = make_client(session, service, region)
    client.meta.events.register_first("before-send", stop)
    with pytest.raises(Sent) as request:
        getattr(client, operation)(**arguments)
    return request.value.args


@pytest.mark.parametrize("service", SERVICES)
def test_requests_of_every_region_have_the_same_destination_as_with_plain_boto3(
    service: str,
) -> None:
    for region in [*REGIONS, UNKNOWN]:
        assert sent(OURS, service, region) == sent(PLAIN, service, region)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("variants", [{"FIPS"}, {"DUALSTACK"}, {"FIPS", "DUALSTACK"}])
def test_fips_and_dual_stack_requests_have_the_same_destination_as_with_plain_boto3(
    monkeypatch: pytest.MonkeyPatch, service: str, variants: set[str]
) -> None:
    for variant in variants:
        monkeypatch.setenv(f"AWS_USE_{variant}_ENDPOINT", "true")
    for region in OPEN:
        assert sent(OURS, service, region) == sent(PLAIN, service, region)


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
