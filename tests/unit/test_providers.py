from __future__ import annotations

import pytest
from session_reaper.targets.providers import (
    Provider,
    emergency_instructions,
    explain_unknown_authority,
    find_provider,
    find_rds_region,
    is_proxy,
    reserved_slot_instructions,
)

RDS = "orders.abc123.eu-west-1.rds.amazonaws.com"
WRITER = "orders.cluster-abc123.eu-west-1.rds.amazonaws.com"
AIVEN = "pg-1-project.aivencloud.com"


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        (RDS, Provider.RDS),
        (RDS.upper() + ".", Provider.RDS),
        ("orders.abc.cn-north-1.rds.amazonaws.com.cn", Provider.RDS),
        ("orders.abc.us-gov-west-1.rds.amazonaws.com", Provider.RDS),
        (WRITER, Provider.AURORA),
        (WRITER.replace("cluster-", "cluster-ro-"), Provider.AURORA),
        (WRITER.replace("cluster-", "cluster-custom-"), Provider.AURORA),
        (AIVEN, Provider.AIVEN),
        ("db.example.com", Provider.VANILLA),
        ("rds.amazonaws.com.example.com", Provider.VANILLA),
        ("evil-rds.amazonaws.com", Provider.VANILLA),
        ("notaivencloud.com", Provider.VANILLA),
        ("10.0.0.7", Provider.VANILLA),
        ("::1", Provider.VANILLA),
    ],
)
def test_a_host_name_indicates_the_provider(host: str, provider: Provider) -> None:
    assert find_provider(host) is provider


def test_an_rds_endpoint_contains_its_region() -> None:
    assert find_rds_region(RDS) == "eu-west-1"
    assert find_rds_region("x.abc.us-gov-west-1.rds.amazonaws.com") == "us-gov-west-1"
    assert find_rds_region("x.abc.cn-north-1.rds.amazonaws.com.cn") == "cn-north-1"
    assert find_rds_region("x.eu-west-1.rds.amazonaws.com.example") is None


def test_rds_proxy_is_recognised_by_its_name() -> None:
    assert is_proxy("orders.proxy-abc123.eu-west-1.rds.amazonaws.com")
    assert is_proxy("Orders.PROXY-abc123.EU-WEST-1.rds.amazonaws.com")
    assert not is_proxy(RDS)
    assert not is_proxy("orders.proxy-1.example.com")


@pytest.mark.parametrize(
    ("host", "now", "later"),
    [
        ("db.example.com", "as a superuser", "fallback_secret"),
        (RDS, "as the master user", "parameter group"),
        (WRITER, "as the master user", "parameter group"),
        (AIVEN, "in the Aiven console", "PgBouncer pool"),
    ],
)
def test_instructions_for_a_full_server_depend_on_the_provider(
    host: str, now: str, later: str
) -> None:
    first = emergency_instructions(host, "SELECT 1;")
    second = reserved_slot_instructions(host, 'odd "role"')
    assert now in first
    assert "SELECT 1;" in first
    assert later in second
    assert 'TO "odd ""role"""' in second


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("db.example.com", "PEM text of the server's CA"),
        (RDS, "make certs"),
        (WRITER, "make certs"),
        (AIVEN, "avn project ca-get"),
    ],
)
def test_instructions_for_an_unknown_ca_depend_on_the_provider(host: str, remedy: str) -> None:
    assert remedy in explain_unknown_authority(host)
    assert "sslrootcert" in explain_unknown_authority(host)
