"""Our loader makes botocore read fewer files; requests stay the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
from botocore.session import Session, get_session
from session_reaper.aws import clients as aws

CALLS: dict[str, tuple[str, dict[str, str]]] = {
    "dynamodb": ("describe_table", {"TableName": "memory"}),
    "rds": ("describe_db_instances", {}),
    "secretsmanager": ("get_secret_value", {"SecretId": "orders"}),
    "sns": ("publish", {"TopicArn": "topic", "Message": "hello"}),
    "ssm": ("get_parameter", {"Name": "policy"}),
}
OURS, PLAIN = aws._session(), get_session()  # noqa: SLF001 -- what `client` makes them with
SERVICES = OURS.get_component("data_loader").list_available_services("service-2")
PARTITIONS = PLAIN.get_component("data_loader").load_data("endpoints")["partitions"]
REGIONS = [region for each in PARTITIONS for region in each["regions"]]
# botocore refuses dual stack in the isolated regions, although the endpoint rules know it.
OPEN = [region for region in REGIONS if "-iso" not in region]
ENDS = [region for each in PARTITIONS for region in (min(each["regions"]), max(each["regions"]))]
SOME = [region for region in dict.fromkeys(ENDS) if region in OPEN]
UNKNOWN = "eu-nowhere-9"  # in no list: it comes after this version of botocore


class Sent(Exception):  # noqa: N818 -- no error: it ends a call before anything goes out
    """Where a request goes, and for which region and service it is signed."""


def stop(request: Any, **_: object) -> None:  # noqa: ANN401 -- botocore's own
    signed = re.search(rb"Credential=key/\d+/([^,]+)", request.headers["Authorization"])
    raise Sent(request.url, signed and signed[1])


def sent(session: Session, service: str, region: str) -> tuple[object, ...]:
    operation, arguments = CALLS[service]
    make: Any = session.create_client  # its stubs want to see the service's name
    client = make(service, region, aws_access_key_id="key", aws_secret_access_key="secret")  # noqa: S106 -- nothing is sent
    client.meta.events.register_first("before-send", stop)
    with pytest.raises(Sent) as request:
        getattr(client, operation)(**arguments)
    return request.value.args


@pytest.mark.parametrize("service", SERVICES)
def test_requests_go_to_the_same_endpoint_as_botocores_own_in_every_region(service: str) -> None:
    for region in [*REGIONS, UNKNOWN]:
        assert sent(OURS, service, region) == sent(PLAIN, service, region)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("variants", [{"FIPS"}, {"DUALSTACK"}, {"FIPS", "DUALSTACK"}])
def test_requests_go_to_the_same_fips_and_dual_stack_endpoints(
    monkeypatch: pytest.MonkeyPatch, service: str, variants: set[str], *, is_thorough: bool
) -> None:
    for variant in variants:
        monkeypatch.setenv(f"AWS_USE_{variant}_ENDPOINT", "true")
    for region in OPEN if is_thorough else SOME:
        assert sent(OURS, service, region) == sent(PLAIN, service, region)


def test_iam_tokens_are_signed_for_the_region_of_the_database() -> None:
    def token(session: Session, region: str) -> str:
        make: Any = session.create_client  # as above
        client = make(
            "rds",
            "eu-west-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",  # noqa: S106 -- nothing is sent
        )
        made = client.generate_db_auth_token("orders.example", 5432, "reaper", Region=region)
        return re.sub(r"X-Amz-(Date|Signature)=\w+", "", made)  # those are of this second

    for region in [*REGIONS, UNKNOWN]:
        assert token(OURS, region) == token(PLAIN, region)
        assert f"%2F{region}%2Frds-db%2F" in token(OURS, region)
