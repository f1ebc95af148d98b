"""Secrets that are not in RDS's shape: service URIs, Aiven's JSON, managed secrets, clusters, IAM."""

from __future__ import annotations

import json
import string
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from session_reaper.targets.secret_document import SecretError, parse_secret, resolve_targets
from session_reaper.targets.target import Auth, Instance, RdsListing, Secret, SslMode, Target

from tests.builders import PASSWORD, a_secret, read_target

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "prod/orders"
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/orders-X1y2Z3"
PEM = "-----BEGIN CERTIFICATE-----"
HOST = "pg-shop.aivencloud.com"
URI = f"postgres://avnadmin:{quote(PASSWORD, safe='')}@{HOST}:21699/defaultdb?sslmode=require"
PARTS = {
    "host": HOST,
    "port": "21699",
    "user": "avnadmin",
    "password": PASSWORD,
    "dbname": "defaultdb",
    "sslmode": "require",
}


def secret(text: str | dict[str, Any], name: str = NAME, arn: str = ARN) -> Secret:
    return Secret(name=name, arn=arn, text=text if isinstance(text, str) else json.dumps(text))


def read(text: str | dict[str, Any]) -> Target:
    return read_target(secret(text), whole_clusters=True)


def assert_hidden(error: SecretError, *passwords: str) -> None:
    everything = "".join(traceback.format_exception(error)) + repr(error) + error.hint
    for password in passwords:
        assert password not in everything


def error_of(text: str | dict[str, Any], *passwords: str) -> SecretError:
    with pytest.raises(SecretError) as caught:
        read(text)
    error = caught.value
    assert error.code == "secret"
    assert NAME in error.message
    assert error.hint
    assert_hidden(error, PASSWORD, quote(PASSWORD, safe=""), *passwords)
    return error


# -- service URIs and Aiven's JSON ------------------------------------------------------------------


SHAPES: dict[str, Any] = {
    "plain": URI,
    "postgresql": URI.replace("postgres:", "postgresql:"),
    "with blanks around it": f" \n{URI}\n",
    "a JSON string": json.dumps(URI),
    "uri": json.dumps({"uri": URI}),
    "service_uri": json.dumps({"service_uri": URI}),
    "service_uri with blanks": json.dumps({"service_uri": f" {URI}\n"}),
    "Aiven's API": json.dumps(
        {
            "service_name": "shop",
            "service_uri": URI,
            "service_uri_params": PARTS,
            "state": "RUNNING",
        }
    ),
    "the parts alone": json.dumps({"service_uri_params": PARTS}),
    "Terraform": json.dumps({"pg_params": [PARTS], "service_uri": URI}),
    "Terraform, the parts alone": json.dumps({"pg_params": [PARTS]}),
    "flat": json.dumps(PARTS),
    "flat, a number as port": json.dumps(PARTS | {"port": 21699}),
    "flat, database in place of dbname": json.dumps(
        {k: v for k, v in PARTS.items() if k != "dbname"} | {"database": "defaultdb"}
    ),
    "a uri, and nothing known beside it": json.dumps({"uri": URI, "name": None, "sslmode": None}),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_of_aivens_credentials_describes_the_same_target(shape: str) -> None:
    assert read(shape) == Target(
        name=NAME,
        group=NAME,
        secret_arn=ARN,
        host=HOST,
        port=21699,
        role="avnadmin",
        auth=Auth.PASSWORD,
        is_auth_given=False,
        password=PASSWORD,
        database="defaultdb",
        sslmode=SslMode.REQUIRE,
        sslrootcert=None,
        fallback_secret=None,
    )


@pytest.mark.parametrize("character", sorted({*string.printable, "é", "☃", "😀", "\x7f"} - {"\0"}))
def test_percent_encoded_characters_are_decoded(character: str) -> None:
    text = f"{character}a{character}{character}b{character}"
    coded = quote(text, safe="")
    found = read(f"postgres://{coded}:{coded}@db.example/{coded}")
    assert (found.role, found.password, found.database) == (text, text, text)
    assert (found.host, found.port) == ("db.example", 5432)


SENDABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(SENDABLE, SENDABLE, SENDABLE)
@example(":/?#[]@!$&'()*+,;=%", "%25%2F+ ", "a/b")
@example("100%", "%zz", "?sslmode=disable")
@example("p@evil.example:1/x#", "u:v@w", "..")
def test_percent_encoded_parts_are_decoded_and_do_not_change_other_parts(
    password: str, role: str, database: str
) -> None:
    user, word, name = (quote(text, safe="") for text in (role, password, database))
    uri = f"postgres://{user}:{word}@db.example:6543/{name}?sslmode=verify-ca"
    for text in (uri, json.dumps(uri), json.dumps({"uri": uri}), json.dumps({"service_uri": uri})):
        found = read(text)
        assert (found.role, found.password, found.database) == (role, password, database)
        assert (found.host, found.port) == ("db.example", 6543)
        assert found.sslmode is SslMode.VERIFY_CA
        assert found.auth is Auth.PASSWORD


def test_unreserved_characters_of_a_password_need_no_encoding() -> None:
    plain = "Az09-._~!$&'()*+,;=@+"
    assert read(f"postgres://u:{plain}@h/d").password == plain


@pytest.mark.parametrize(
    ("place", "host", "port", "database"),
    [
        ("h", "h", 5432, "postgres"),
        ("h/", "h", 5432, "postgres"),
        ("h:6543", "h", 6543, "postgres"),
        ("h:/d", "h", 5432, "d"),
        ("[::1]:6543/d", "::1", 6543, "d"),
        ("[fd00::7]/d", "fd00::7", 5432, "d"),
        ("10.0.0.7/d?application_name=x&sslmode=&connect_timeout=3", "10.0.0.7", 5432, "d"),
    ],
)
def test_missing_parts_of_a_uri_have_postgresqls_defaults(
    place: str, host: str, port: int, database: str
) -> None:
    found = read(f"postgres://u:p@{place}")
    assert (found.host, found.port, found.database) == (host, port, database)
    assert found.sslmode is SslMode.VERIFY_FULL


@pytest.mark.parametrize(
    "uri",
    [
        f"postgres://u:{PASSWORD}@h/d",  # its / and ? and # not encoded
        "postgres://u:CANARY/CANARY@h/d",
        "postgres://u:CANARY?CANARY@h/d",
        "postgres://u:CANARY#CANARY@h/d",
        "postgres://u:CANARY[CANARY@h/d",
        "postgres://u:CANARY]CANARY@h/d",
        "postgres://u:12/CANARY@h/d",  # which has u as host and 12 as port
        "postgres://u:12?CANARY@h/d",
        "postgres://u:12#CANARY@h/d",
        "postgres://u:CANARY%00@h/d",
        "postgres://u:CANARY%FF@h/d",
        "postgres://u:CANARY\ud800@h/d",
        "postgres://u:CANARY@h:port/d",
        "postgres://u:CANARY@h:99999/d",
        "postgres://u:CANARY@h:0/d",
        "postgres://u:CANARY@h:-1/d",
        "postgres://u:CANARY@h1:5432,h2:5432/d",
        "postgres://u:CANARY@h1,h2/d",
        "postgres://u:CANARY@/d",
        "postgres://u:CANARY@:5432/d",
        "postgres://:CANARY@h/d",
        "postgres://u:CANARY@[::1/d",
        "postgres://u:CANARY@h/d%FF",
        "postgres://u:CANARY@h/d?sslmode=prefer",
        "postgres://u:CANARY@h/d?sslmode=CANARY",
        "postgres://u:CANARY℀@h/d",  # which the standard library takes for a/c
        "postgres://CANARY",
        "postgres://",
        "postgres:///d?host=h&user=u&password=CANARY",
        "postgres://u:CANARY@h o s t/d",
        *(f"postgres://u:CANARY@h{gap}.example/d" for gap in "\t\r\n"),
        "postgres://u:CANARY\nCANARY@h/d",
    ],
)
def test_the_error_of_a_malformed_uri_does_not_show_the_password(uri: str) -> None:
    for text in (uri, json.dumps({"uri": uri}), json.dumps(uri)):
        error_of(text, "CANARY@", "CANARY?", "CANARYC", ":CANARY", "=CANARY", "h/d")


@pytest.mark.parametrize("uri", [5, [URI], {"uri": URI}, "mysql://u:CANARY@h/d", f"x{URI}"])
@pytest.mark.parametrize("key", ["uri", "service_uri"])
def test_an_invalid_uri_is_refused_and_its_key_named(key: str, uri: object) -> None:
    error = error_of({key: uri}, "CANARY")
    assert error.message == f"secret {NAME}: {key} must be a URI that begins with postgres://"


@pytest.mark.parametrize(
    "text", ["mysql://u:CANARY@h/d", "https://CANARY", "POSTGRES://u:CANARY@h"]
)
def test_another_scheme_is_refused(text: str) -> None:
    error_of(text, "CANARY")


# -- precedence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["uri", "service_uri"])
def test_a_key_beside_the_uri_overrides_its_part(key: str) -> None:
    beside = {"username": "reaper", "password": "p", "host": "h", "port": 1, "dbname": "d"}
    found = read({key: URI, "sslmode": "verify-full", **beside})
    assert (found.role, found.password, found.host) == ("reaper", "p", "h")
    assert (found.port, found.database) == (1, "d")
    assert found.sslmode is SslMode.VERIFY_FULL


def test_aivens_name_of_a_key_overrides_the_uris_part_too() -> None:
    """Otherwise one role would connect with another's password."""
    found = read({"uri": URI, "user": "reaper", "password": "p", "database": "d"})
    assert (found.role, found.password, found.database) == ("reaper", "p", "d")


@pytest.mark.parametrize("key", ["password", "host", "username", "dbname", "sslmode", "port"])
def test_an_empty_or_null_key_beside_the_uri_has_no_effect(key: str) -> None:
    """An empty password would mean IAM, and a token would go to the URI's host."""
    assert read({"uri": URI, key: None}) == read(URI)
    assert read({"uri": URI, key: ""}) == read(URI)


@pytest.mark.parametrize("key", ["sslmode", "dbname", "port"])
@pytest.mark.parametrize("place", ["service_uri_params", "pg_params"])
def test_a_key_that_is_null_among_the_parts_counts_as_absent(place: str, key: str) -> None:
    parts = PARTS | {key: None}
    assert read({place: [parts] if place == "pg_params" else parts}).host == HOST


@pytest.mark.parametrize(
    ("document", "sslmode"),
    [
        ({"uri": URI}, SslMode.REQUIRE),
        ({"uri": URI, "sslmode": "verify-ca"}, SslMode.VERIFY_CA),
        ({"uri": URI, "sslmode": "disable"}, SslMode.DISABLE),
        ({"uri": URI.partition("?")[0], "sslmode": "require"}, SslMode.REQUIRE),
        ({"uri": URI.partition("?")[0]}, SslMode.VERIFY_FULL),
        ({"service_uri_params": PARTS, "sslmode": "verify-ca"}, SslMode.VERIFY_CA),
        ({"service_uri_params": PARTS}, SslMode.REQUIRE),
        ({"pg_params": [PARTS | {"sslmode": "verify-ca"}], "service_uri": URI}, SslMode.VERIFY_CA),
        ({"pg_params": [], "service_uri": URI}, SslMode.REQUIRE),
    ],
)
def test_the_outermost_sslmode_applies(document: dict[str, Any], sslmode: SslMode) -> None:
    assert read(document).sslmode is sslmode


def test_optional_keys_may_stand_beside_a_uri() -> None:
    found = read({"uri": URI, "name": "shop", "sslrootcert": PEM, "fallback_secret": " admin "})
    assert (found.name, found.group) == ("shop", "shop")
    assert (found.sslrootcert, found.fallback_secret) == (PEM, "admin")


def test_a_fallback_secret_that_is_the_password_is_refused_and_not_shown() -> None:
    text = {"host": "db", "username": "reaper", "password": "sw0rdfish"}
    error = error_of(text | {"fallback_secret": "sw0rdfish"}, "sw0rdfish")
    assert "fallback_secret" in error.message


# -- IAM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "auth", "is_auth_given", "password"),
    [
        ({"auth": "iam", "password": None}, Auth.IAM, True, ""),
        ({"auth": "iam", "password": PASSWORD}, Auth.IAM, True, ""),
        ({"auth": "password", "password": PASSWORD}, Auth.PASSWORD, True, PASSWORD),
        ({"password": None}, Auth.IAM, False, ""),
        ({"password": ""}, Auth.IAM, False, ""),
        ({"auth": "", "password": PASSWORD}, Auth.PASSWORD, False, PASSWORD),
    ],
)
def test_iam_is_used_if_the_secret_says_so_or_has_no_password(
    keys: dict[str, Any], auth: Auth, password: str, *, is_auth_given: bool
) -> None:
    found = read(a_secret(**keys))
    assert (found.auth, found.is_auth_given, found.password) == (auth, is_auth_given, password)


def test_a_uri_without_a_password_means_iam() -> None:
    assert read(f"postgres://reaper@{HOST}/d").auth is Auth.IAM
    assert read(f"postgres://reaper:@{HOST}/d").auth is Auth.IAM


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require"])
def test_iam_is_accepted_with_every_tls_mode(sslmode: str) -> None:
    assert read(a_secret(auth="iam", sslmode=sslmode)).auth is Auth.IAM


def test_iam_in_plaintext_is_refused() -> None:
    asked = error_of(a_secret(auth="iam", sslmode="disable"))
    assert asked.message == (
        f"secret {NAME}: auth iam needs TLS: with sslmode disable the token would be sent in plaintext"
    )
    forgotten = error_of(a_secret(password=None, sslmode="disable"))
    assert forgotten.message == f"secret {NAME}: password is missing"
    error_of("postgres://reaper@h/d?sslmode=disable")


# -- engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["mysql", "aurora-mysql", "mariadb", "sqlserver-ex", "redis"])
@pytest.mark.parametrize("more", [{}, {"dbClusterIdentifier": "c", "dbInstanceIdentifier": None}])
def test_another_engine_is_refused_without_rds(engine: str, more: dict[str, Any]) -> None:
    error = error_of(a_secret(engine=engine, **more))
    assert error.message == f"secret {NAME}: engine {engine} is not PostgreSQL"


# -- clusters and managed secrets ---------------------------------------------------------------


MANAGED_ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds!cluster-1-AbCdEf"


def an_instance(identifier: str, **overrides: object) -> Instance:
    values = {
        "identifier": identifier,
        "cluster": "shop",
        "engine": "aurora-postgresql",
        "host": f"{identifier}.abc.eu-west-1.rds.amazonaws.com",
        "port": 5433,
        "is_reader": not identifier.endswith("1"),
        "secret_arns": (),
    }
    return Instance(**values | overrides)  # type: ignore[arg-type] # a table of defaults


CLUSTER = (an_instance("shop-1"), an_instance("shop-2"), an_instance("shop-auto-3"))
SOLO = an_instance("solo", cluster="", engine="postgres", is_reader=False)
OTHER = an_instance("other-1", cluster="other")


def make_listing(*instances: Instance) -> RdsListing:
    return RdsListing(instances=instances)


def of_cluster(instances: RdsListing, **keys: object) -> tuple[Target, ...]:
    document = a_secret(dbInstanceIdentifier=None, dbClusterIdentifier="shop", **keys)
    parsed = parse_secret(secret(document), whole_clusters=True)
    assert parsed.needs_rds
    return resolve_targets(parsed, instances)


def of_managed(
    *instances: Instance, whole: bool = True, kind: str = "cluster", **keys: object
) -> tuple[Target, ...]:
    mine = [
        each._replace(secret_arns=(MANAGED_ARN,))
        if each.cluster == "shop" or each is SOLO
        else each
        for each in instances
    ]
    document = {"username": "postgres", "password": PASSWORD, **keys}
    managed = secret(document, f"rds!{kind}-1", MANAGED_ARN)
    parsed = parse_secret(managed, whole_clusters=whole)
    assert parsed.needs_rds
    return resolve_targets(parsed, make_listing(*mine))


def list_names(targets: Iterable[Target]) -> list[tuple[str, str, bool]]:
    return [(each.name, each.group, each.is_reader) for each in targets]


@pytest.mark.parametrize("managed", [True, False])
def test_a_clusters_secret_covers_each_of_its_instances(*, managed: bool) -> None:
    everything = (OTHER, *CLUSTER, SOLO if not managed else OTHER)
    found = of_managed(*everything) if managed else of_cluster(make_listing(*everything))
    assert list_names(found) == [
        ("shop-1", "shop", False),
        ("shop-2", "shop", True),
        ("shop-auto-3", "shop", True),
    ]
    assert [each.host for each in found] == [each.host for each in CLUSTER]
    assert {(each.password, each.unlisted, each.port) for each in found} == {(PASSWORD, "", 5433)}


def test_the_name_in_the_secret_is_the_groups_and_prefixes_each_instances() -> None:
    assert list_names(of_cluster(make_listing(*CLUSTER[:2]), name="S")) == [
        ("S/shop-1", "S", False),
        ("S/shop-2", "S", True),
    ]


def test_two_secrets_of_one_cluster_have_targets_with_different_names() -> None:
    named_one = {each.name for each in of_cluster(make_listing(*CLUSTER), name="S")}
    assert not named_one & {each.name for each in of_cluster(make_listing(*CLUSTER))}


@pytest.mark.parametrize("managed", [True, False])
def test_without_whole_clusters_a_cluster_is_one_target(*, managed: bool) -> None:
    if managed:
        assert list_names(of_managed(*CLUSTER, whole=False)) == [("shop", "shop", False)]
    else:
        found = read_target(secret(a_secret(dbInstanceIdentifier=None, dbClusterIdentifier="shop")))
        assert found.host == "orders.abc.eu-west-1.rds.amazonaws.com"
        assert list_names([found]) == [("shop", "shop", False)]


def test_an_instances_secret_covers_only_that_instance() -> None:
    assert read(a_secret(dbClusterIdentifier="shop")).name == "orders"


def test_a_managed_secret_of_an_instance_is_one_target() -> None:
    (found,) = of_managed(OTHER, SOLO, kind="db")
    assert list_names([found]) == [("solo", "solo", False)]
    assert (found.host, found.port, found.role) == (SOLO.host, SOLO.port, "postgres")
    assert (found.database, found.sslmode) == ("postgres", SslMode.VERIFY_FULL)


def test_a_managed_secret_with_a_host_does_not_need_rds() -> None:
    document = {"username": "u", "password": "p", "host": "h"}
    found = read_target(secret(document, "rds!db-1"), whole_clusters=True)
    assert (found.host, found.port) == ("h", 5432)


def test_only_a_managed_secret_may_lack_a_host() -> None:
    assert "host is missing" in error_of({"username": "u", "password": PASSWORD}).message


@pytest.mark.parametrize("instances", [(), (OTHER,)])
def test_a_managed_secret_without_an_instance_is_refused(
    instances: tuple[Instance, ...],
) -> None:
    with pytest.raises(SecretError, match=r"^secret rds!cluster-1: host is missing") as caught:
        of_managed(*instances)
    assert caught.value.hint
    assert_hidden(caught.value, PASSWORD)


def test_running_readers_are_targets_even_if_the_writer_is_not_running() -> None:
    """The writer may be starting, or about to be replaced."""
    expected = [("shop-2", "shop", True), ("shop-auto-3", "shop", True)]
    assert list_names(of_cluster(make_listing(*CLUSTER[1:]))) == expected
    assert list_names(of_managed(*CLUSTER[1:])) == expected


@pytest.mark.parametrize("whole", [True, False])
def test_a_managed_secret_of_another_engine_is_refused(*, whole: bool) -> None:
    mysql = CLUSTER[0]._replace(engine="aurora-mysql")
    with pytest.raises(SecretError, match=r"^secret rds!cluster-1: engine aurora-mysql is not"):
        of_managed(mysql, whole=whole)


def test_a_cluster_of_another_engine_by_rdss_listing_is_refused() -> None:
    mysql = [each._replace(engine="aurora-mysql") for each in CLUSTER]
    with pytest.raises(SecretError, match="engine aurora-mysql is not PostgreSQL"):
        of_cluster(make_listing(*mysql), engine=None)


DENIED = RdsListing(problem="RDS instances cannot be listed: AccessDenied", hint="Allow it.")


def test_without_listed_instances_the_secrets_own_host_is_the_target() -> None:
    for instances, why in (
        (DENIED, "AccessDenied"),
        (make_listing(), "no running instance of shop"),
    ):
        (found,) = of_cluster(instances)
        assert found.host == "orders.abc.eu-west-1.rds.amazonaws.com"
        assert list_names([found]) == [("shop", "shop", False)]
        assert why in found.unlisted
        assert found.unlisted.endswith(".")


def test_a_managed_secret_is_refused_if_rds_cannot_be_listed() -> None:
    managed = secret({"username": "u", "password": PASSWORD}, "rds!db-1", MANAGED_ARN)
    parsed = parse_secret(managed, whole_clusters=True)
    with pytest.raises(SecretError) as caught:
        resolve_targets(parsed, DENIED)
    assert "AccessDenied" in caught.value.message
    assert caught.value.message.startswith("secret rds!db-1: host is missing")
    assert caught.value.hint == "Allow it."
    assert_hidden(caught.value, PASSWORD)


def test_no_repr_contains_a_password() -> None:
    for found in (*of_cluster(make_listing(*CLUSTER)), *of_managed(*CLUSTER), read(URI)):
        assert PASSWORD not in repr(found)
    for text in (URI, json.dumps(PARTS)):
        assert PASSWORD not in repr(secret(text))
        assert quote(PASSWORD, safe="") not in repr(secret(text))
