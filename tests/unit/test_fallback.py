"""A fallback secret is used only on the server that it is for."""

from __future__ import annotations

import json
import traceback
from typing import Any

import pytest
from session_reaper.errors import TargetError
from session_reaper.targets.fallback import use_fallback
from session_reaper.targets.secret_document import SecretError, parse_secret, resolve_targets
from session_reaper.targets.target import (
    ANY_AUTH,
    Auth,
    AuthMethod,
    ChannelBinding,
    Instance,
    RdsListing,
    Secret,
    SslMode,
    Target,
)

from tests.builders import PASSWORD, a_secret, read_target

PEM = "-----BEGIN CERTIFICATE-----"
HOST = "orders.abc.eu-west-1.rds.amazonaws.com"  # of `a_secret`
WRITER = "shop.cluster-abc.eu-west-1.rds.amazonaws.com"
READER = "shop.cluster-ro-abc.eu-west-1.rds.amazonaws.com"
CUSTOM = "reports.cluster-custom-abc.eu-west-1.rds.amazonaws.com"
PREFIX = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"
MASTER = f"{PREFIX}rds!cluster-1-AbCdEf"


def an_instance(identifier: str, cluster: str = "shop", **overrides: object) -> Instance:
    values: dict[str, Any] = {
        "identifier": identifier,
        "cluster": cluster,
        "engine": "aurora-postgresql",
        "host": f"{identifier}.abc.eu-west-1.rds.amazonaws.com",
        "port": 5433,
        "is_reader": identifier.endswith("2"),
        "secret_arns": (MASTER,),
        "cluster_hosts": (WRITER, READER, CUSTOM),
        "cluster_port": 5433,
    }
    return Instance(**values | overrides)


SHOP = (an_instance("shop-1"), an_instance("shop-2"))
OTHERS = an_instance("evil-1", "evil", secret_arns=(), cluster_hosts=("evil.cluster-x",))
LISTED = RdsListing(instances=(OTHERS, *SHOP))


def a_target(**keys: object) -> Target:
    document = a_secret(fallback_secret="admin", **keys)  # noqa: S106 -- its name
    secret = Secret(name="prod/orders", arn=f"{PREFIX}prod/orders-X1y2Z3", text=document)
    return read_target(secret)


def of_cluster(**keys: object) -> tuple[Target, ...]:
    document = a_secret(dbInstanceIdentifier=None, dbClusterIdentifier="shop", **keys)
    secret = Secret(name="shop", arn=f"{PREFIX}shop-X1y2Z3", text=document)
    parsed = parse_secret(secret, whole_clusters=True)
    return resolve_targets(parsed, RdsListing(instances=SHOP))


def a_fallback(name: str = "admin", arn: str = f"{PREFIX}admin-X1y2Z3", **keys: object) -> Secret:
    document = {"username": "root", "password": "r00t", "host": HOST, "port": 5433} | keys
    given = {key: value for key, value in document.items() if value is not None}
    return Secret(name=name, arn=arn, text=json.dumps(given))


def make_managed(**keys: object) -> Secret:
    return a_fallback("rds!cluster-1", MASTER, **{"host": None, "port": None} | keys)


def refuse_to_list() -> RdsListing:
    raise AssertionError("RDS was listed")


def decide(target: Target, fallback: Secret, listing: RdsListing = LISTED) -> Target:
    return use_fallback(target, fallback, lambda: listing)


def get_refusal(target: Target, fallback: Secret, listing: RdsListing = LISTED) -> TargetError:
    with pytest.raises(TargetError) as raised:
        use_fallback(target, fallback, lambda: listing)
    error = raised.value
    assert error.code == "fallback"
    assert error.cause
    assert error.hint
    assert "r00t" not in error.cause + error.hint
    return error


# -- the same endpoint --------------------------------------------------------------------------


@pytest.mark.parametrize("host", [HOST, HOST.upper(), f"{HOST}.", f"Orders{HOST[6:]}."])
def test_a_fallback_with_the_targets_endpoint_connects_with_its_own_settings(host: str) -> None:
    fallback = a_fallback(
        host=host,
        sslmode="verify-ca",
        sslrootcert=PEM,
        dbname="admin",
        channel_binding="require",
        require_auth="scram-sha-256",
        name="ignored",
        fallback_secret="another",  # noqa: S106 -- its name
    )
    target = a_target(sslmode="disable")
    assert use_fallback(target, fallback, refuse_to_list) == Target(
        name="orders",
        group="orders",
        secret_arn=target.secret_arn,
        host=host,
        port=5433,
        role="root",
        auth=Auth.PASSWORD,
        is_auth_given=False,
        password="r00t",  # noqa: S106 -- of nothing
        database="admin",
        sslmode=SslMode.VERIFY_CA,
        sslrootcert=PEM,
        fallback_secret="admin",  # noqa: S106 -- its name
        instead_of="reaper",
        channel_binding=ChannelBinding.REQUIRE,
        allowed_auth=frozenset({AuthMethod.SCRAM_SHA_256}),
    )


def test_the_targets_connection_settings_are_not_used() -> None:
    target = a_target(
        sslmode="disable",
        sslrootcert=PEM,
        dbname="theirs",
        require_auth="password",
        auth="password",
    )
    found = decide(target, a_fallback())
    assert (found.sslmode, found.sslrootcert) == (SslMode.VERIFY_FULL, None)
    assert (found.database, found.allowed_auth) == ("postgres", ANY_AUTH)


@pytest.mark.parametrize(
    "keys",
    [
        {"host": "attacker.example"},
        {"host": "attacker.example", "sslmode": "disable"},
        {"port": 5432},
        {"host": "10.0.0.7"},
        {"host": f"{HOST}.attacker.example"},
        {"host": f"{HOST}.."},
        {"host": "attacker.example", "dbInstanceIdentifier": "shop-1"},
        {"host": "attacker.example", "dbClusterIdentifier": "shop"},
    ],
    ids=repr,
)
def test_a_fallback_for_another_endpoint_is_refused(keys: dict[str, Any]) -> None:
    for fallback in (a_fallback(), make_managed()):
        target = a_target(**keys)
        with pytest.raises(AssertionError, match="listed"):
            use_fallback(target, fallback, refuse_to_list)
        found = get_refusal(target, fallback)
        assert "same host and port" in found.hint
        assert "read replica" in found.hint


def test_a_fallback_without_a_host_is_refused() -> None:
    for host in (None, ""):
        found = get_refusal(a_target(), a_fallback(host=host))
        assert "host is missing" in found.cause
        assert found.hint.startswith("Add host and port")


def test_a_secret_that_is_its_own_fallback_is_refused() -> None:
    target = a_target()
    assert "its own fallback_secret" in get_refusal(target, a_fallback(arn=target.secret_arn)).cause


# -- clusters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [WRITER, READER.upper(), f"{CUSTOM}."])
def test_a_clusters_endpoint_is_accepted_for_each_of_its_instances(host: str) -> None:
    for target, instance in zip(of_cluster(), SHOP, strict=True):
        found = decide(target, a_fallback(host=host))
        assert (found.host, found.port) == (instance.host, 5433)
        assert (found.name, found.group, found.is_reader) == (
            target.name,
            target.group,
            target.is_reader,
        )
        assert found.key == target.key
        assert found.sslmode is SslMode.VERIFY_FULL


@pytest.mark.parametrize(
    "keys", [{"port": 5432}, {"host": "evil.cluster-x"}, {"host": SHOP[0].host}], ids=repr
)
def test_the_endpoint_of_another_cluster_or_instance_is_refused(
    keys: dict[str, Any],
) -> None:
    reader = of_cluster()[1]
    get_refusal(reader, a_fallback(**{"host": WRITER} | keys))


def test_an_alias_of_a_cluster_is_refused_for_instances_that_the_target_claims() -> None:
    """The target's secret chooses the cluster, so an equal alias does not prove which one it is."""
    for target in of_cluster(host="db.internal", port=5433):
        get_refusal(target, a_fallback(host="db.internal"))


def test_a_clusters_endpoint_is_refused_for_an_instance_that_is_not_a_member() -> None:
    reader = of_cluster()[1]
    without = RdsListing(instances=(SHOP[0], an_instance("shop-2", cluster_hosts=())))
    get_refusal(reader, a_fallback(host=WRITER), without)


def test_without_a_listing_only_an_equal_endpoint_is_accepted() -> None:
    denied = RdsListing(problem="RDS instances cannot be listed: AccessDenied")
    target = of_cluster()[0]
    assert decide(target, a_fallback(host=target.host), denied).host == target.host
    for fallback in (a_fallback(host=WRITER), make_managed()):
        assert "AccessDenied" in get_refusal(target, fallback, denied).cause


# -- managed by RDS -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", [SHOP[1].host.upper(), f"{WRITER}.", READER, CUSTOM])
@pytest.mark.parametrize(
    "keys",
    [{}, {"sslmode": "disable", "sslrootcert": PEM}, {"host": "elsewhere.example"}],
    ids=repr,
)
def test_the_master_secret_that_rds_lists_connects_verified_to_an_rds_endpoint(
    keys: dict[str, Any], host: str
) -> None:
    target = a_target(host=host, sslmode="disable")
    found = decide(target, make_managed(**keys))
    assert found.host == host.lower().rstrip(".")
    assert (found.port, found.sslmode, found.sslrootcert) == (5433, SslMode.VERIFY_FULL, None)
    assert (found.role, found.instead_of) == ("root", "reaper")


def test_a_managed_secret_that_names_the_host_connects_verified() -> None:
    fallback = make_managed(host=HOST, port=5433, sslmode="disable", sslrootcert=PEM)
    found = decide(a_target(), fallback, RdsListing())
    assert (found.host, found.sslmode, found.sslrootcert) == (HOST, SslMode.VERIFY_FULL, None)


def test_the_master_secret_of_another_instance_is_refused() -> None:
    found = get_refusal(a_target(host=OTHERS.host), make_managed())
    assert "master secret" in found.cause


# -- IAM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", None])
@pytest.mark.parametrize("auth", ["iam", None])
def test_a_token_is_sent_verified_to_the_fallbacks_own_destination(
    sslmode: str | None, auth: str | None
) -> None:
    fallback = a_fallback(password=None, auth=auth, sslmode=sslmode, host=WRITER)
    found = decide(of_cluster()[1], fallback)
    assert (found.auth, found.host) == (Auth.IAM, SHOP[1].host)
    assert found.sslmode is SslMode.VERIFY_FULL


def test_a_token_is_never_sent_over_an_unverified_connection() -> None:
    fallback = a_fallback(password=None, auth="iam", sslmode="require", host="db.example")
    found = get_refusal(a_target(host="db.example"), fallback)
    assert "verified" in found.cause
    assert "sslrootcert" in found.hint


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ({"password": PASSWORD}, "username is missing"),
        ({"username": "root", "auth": "password"}, "password is missing"),
        ({"username": "root", "password": 5}, "password must be text"),
        ({"username": "root", "password": PASSWORD, "host": f"u:{PASSWORD}@h"}, "host"),
        ({"username": "root", "password": PASSWORD, "engine": "mysql"}, "engine mysql"),
        ({"username": "root", "auth": "iam", "sslmode": "disable"}, "auth iam needs TLS"),
        ({"username": "root", "sslmode": "disable"}, "password is missing"),
        ({"username": "root", "password": PASSWORD, "options": PASSWORD}, "options"),
        ([], "the JSON must be an object"),
    ],
)
def test_errors_in_a_fallback_name_its_secret(text: object, problem: str) -> None:
    secret = Secret(name="admin", arn=f"{PREFIX}admin-X1y2Z3", text=json.dumps(text))
    with pytest.raises(SecretError) as caught:
        use_fallback(a_target(), secret, refuse_to_list)
    assert "secret admin" in caught.value.message
    assert problem in caught.value.message
    everything = "".join(traceback.format_exception(caught.value)) + caught.value.hint
    assert PASSWORD not in everything
