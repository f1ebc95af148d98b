"""Connection options in a secret: each of libpq's is honoured, accepted or refused."""

from __future__ import annotations

import ctypes
import json
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from session_reaper.targets.connection_options import OPTIONS, find_unsupported
from session_reaper.targets.secret_document import SecretError
from session_reaper.targets.target import (
    ANY_AUTH,
    Auth,
    AuthMethod,
    ChannelBinding,
    Secret,
    SslMode,
    Target,
    is_secret_id,
)

from infra.local.postgres import bundled_builds
from tests.builders import PASSWORD, a_secret, read_target

NAME = "prod/orders"
ARN = f"arn:aws:secretsmanager:eu-west-1:123456789012:secret:{NAME}-X1y2Z3"
PEM = "-----BEGIN CERTIFICATE-----\nMIIB+/=\n-----END CERTIFICATE-----\n"
URI = f"postgres://reaper:{quote(PASSWORD, safe='')}@db.example:5432/orders"
VALUE = "v4lue-CANARY"


def read(text: str) -> Target:
    return read_target(Secret(name=NAME, arn=ARN, text=text))


def with_option(name: str, value: object) -> list[str]:
    """Secrets of every shape with this option."""
    parts = {"host": "db.example", "username": "reaper", "password": PASSWORD}
    flat: list[dict[str, Any]] = [
        {**parts, name: value},
        {"service_uri_params": {**parts, name: value}},
        {"pg_params": [{**parts, name: value}]},
        {"uri": URI, name: value},
    ]
    uri = f"{URI}?{name}={quote(str(value), safe='')}"
    return [json.dumps(each) for each in flat] + [uri, json.dumps({"uri": uri})]


def error_of(text: str) -> SecretError:
    with pytest.raises(SecretError) as caught:
        read(text)
    error = caught.value
    assert error.hint
    everything = "".join(traceback.format_exception(error)) + repr(error) + error.hint
    for hidden in (PASSWORD, VALUE, quote(PASSWORD, safe="")):
        assert hidden not in everything
    return error


# -- the table ----------------------------------------------------------------------------------


class _Parameter(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("keyword", "envvar", "compiled", "val", "label")),
        ("dispchar", ctypes.c_char_p),
        ("dispsize", ctypes.c_int),
    )


def parameters_of_libpq() -> dict[str, str]:
    """The parameters of the newest bundled libpq, and their compiled-in defaults."""
    builds = bundled_builds()
    libpq = ctypes.CDLL(str(builds[max(builds)].bin.parent / "lib" / "libpq.so.5"))
    libpq.PQconndefaults.restype = ctypes.POINTER(_Parameter)
    found: dict[str, str] = {}
    for parameter in libpq.PQconndefaults():
        if parameter.keyword is None:
            break
        found[parameter.keyword.decode()] = (parameter.compiled or b"").decode()
    return found


def test_every_parameter_of_libpq_is_listed() -> None:
    found = parameters_of_libpq()
    assert len(found) > 45
    assert set(found) == set(OPTIONS) - {
        "ssl",
        "requiressl",
    }  # libpq accepts these in a URI, or used to


def test_the_only_refused_default_of_libpq_is_for_kerberos() -> None:
    by_default = {
        name
        for name, value in parameters_of_libpq().items()
        if value and find_unsupported({name: value}) is not None
    }
    assert by_default == {"krbsrvname"}


def test_every_refusal_has_a_hint() -> None:
    for name, option in OPTIONS.items():
        assert bool(option.hint) == (option.accepted is not None), name


def test_every_option_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs" / "databases.md").read_text()
    for name in OPTIONS:
        assert f"`{name}`" in document, name


# -- accepted and refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, one) for name, option in OPTIONS.items() for one in sorted(option.accepted or ())),
        *((name, "") for name, option in OPTIONS.items() if option.accepted is not None),
        ("application_name", "billing"),
        ("connect_timeout", 10),
        ("keepalives_idle", "30"),
        ("client_encoding", "auto"),
        ("ssl", True),
        ("replication", False),
    ],
)
def test_options_that_match_the_reapers_behaviour_are_accepted(name: str, value: object) -> None:
    for text in with_option(name, value)[:4]:
        assert read(text).sslmode is SslMode.VERIFY_FULL
    written = str(value).lower() if isinstance(value, bool) else str(value)
    found = read(f"{URI}?{name}={quote(written)}")
    assert (found.sslmode, found.ignored_options) == (SslMode.VERIFY_FULL, ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, VALUE) for name, option in OPTIONS.items() if option.accepted is not None),
        ("target_session_attrs", "read-write"),
        ("options", "-c statement_timeout=0"),
        ("sslnegotiation", "direct"),
        ("gssencmode", "require"),
        ("ssl_min_protocol_version", "TLSv1.3"),
        ("load_balance_hosts", "random"),
        ("replication", "database"),
        ("sslcertmode", "require"),
        ("min_protocol_version", "3.2"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(name: str, value: str) -> None:
    for text in with_option(name, value):
        found = error_of(text)
        assert f"connection option {name} " in found.message
        assert found.hint == OPTIONS[name].hint


@pytest.mark.parametrize("value", [["-c", "x"], {"a": VALUE}, 7, True])
def test_an_option_that_is_not_text_is_refused_too(value: object) -> None:
    for text in with_option("options", value)[:4]:
        error_of(text)


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_an_option_without_a_value_is_unset(value: object) -> None:
    for text in with_option("options", value)[:4]:
        assert read(text).host == "db.example"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sslmode", "prefer"),
        ("sslmode", "allow"),
        ("sslmode", VALUE),
        ("sslrootcert", "system"),
        ("sslrootcert", f"/etc/{VALUE}.pem"),
        ("channel_binding", VALUE),
        ("channel_binding", "Require"),
        ("require_auth", VALUE),
        ("require_auth", "password,!md5"),
        ("require_auth", "gss"),
        ("require_auth", "sspi,oauth"),
        ("require_auth", "!password,!md5,!scram-sha-256,!none"),
        ("require_auth", ","),
    ],
)
def test_unsupported_values_of_honoured_options_are_refused(name: str, value: str) -> None:
    for text in with_option(name, value):
        assert f": {name} " in error_of(text).message


@pytest.mark.parametrize("name", ["host", "port", "user", "password", "dbname"])
def test_a_part_of_the_uri_is_refused_as_a_parameter(name: str) -> None:
    assert f"must not have {name} as" in error_of(f"{URI}?{name}={VALUE}").message


@pytest.mark.parametrize("name", ["sslmode", "application_name", "channel_binding", "options"])
def test_a_libpq_parameter_that_occurs_twice_is_refused(name: str) -> None:
    for value in ("disable", ""):
        found = error_of(f"{URI}?{name}={value}&{name}={VALUE}")
        assert f"{name} twice" in found.message


def test_a_key_beside_the_uri_overrides_its_parameter() -> None:
    uri = f"{URI}?target_session_attrs=read-write&channel_binding=disable"
    beside = {"target_session_attrs": "any", "channel_binding": "require"}
    found = read(json.dumps({"uri": uri, **beside}))
    assert found.channel_binding is ChannelBinding.REQUIRE


# -- honoured -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["disable", "prefer", "require"])
def test_channel_binding_is_honoured(value: str) -> None:
    for text in with_option("channel_binding", value):
        assert read(text).channel_binding is ChannelBinding(value)


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ("", ANY_AUTH),
        ("scram-sha-256", {AuthMethod.SCRAM_SHA_256}),
        ("password,md5", {AuthMethod.PASSWORD, AuthMethod.MD5}),
        (" md5 , none ", {AuthMethod.MD5, AuthMethod.NONE}),
        ("gss,scram-sha-256", {AuthMethod.SCRAM_SHA_256}),
        ("!password", ANY_AUTH - {AuthMethod.PASSWORD}),
        ("!password,!md5,!gss", {AuthMethod.SCRAM_SHA_256, AuthMethod.NONE}),
        ("!oauth", ANY_AUTH),
    ],
)
def test_require_auth_is_honoured(written: str, allowed: set[AuthMethod]) -> None:
    for text in with_option("require_auth", written):
        assert read(text).allowed_auth == allowed


def test_a_uri_may_contain_a_certificate() -> None:
    for text in with_option("sslrootcert", PEM):
        assert read(text).sslrootcert == PEM


def test_by_default_every_method_is_allowed_and_channel_binding_preferred() -> None:
    found = read(a_secret())
    assert (found.channel_binding, found.allowed_auth) == (ChannelBinding.PREFER, ANY_AUTH)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"channel_binding": "require", "sslmode": "disable"}, "channel_binding require needs TLS"),
        (
            {"channel_binding": "require", "require_auth": "md5"},
            "channel_binding require needs scr",
        ),
        ({"ssl": True, "sslmode": "disable"}, "ssl requests TLS"),
        ({"ssl": "true", "sslmode": "disable"}, "ssl requests TLS"),
        ({"auth": "iam", "channel_binding": "require"}, "channel_binding does not allow auth iam"),
        ({"auth": "iam", "require_auth": "!password"}, "require_auth does not allow auth iam"),
        ({"password": None, "require_auth": "scram-sha-256"}, "password is missing"),
    ],
)
def test_contradictory_options_are_refused(keys: dict[str, Any], problem: str) -> None:
    assert problem in error_of(a_secret(**keys)).message


# -- ignored ------------------------------------------------------------------------------------


def test_an_orms_parameters_are_ignored_and_their_names_kept() -> None:
    query = (
        "pgbouncer=true&schema=public&sslaccept=strict&connection_limit=5&schema=x&sslmode=require"
    )
    found = read(f"{URI}?{query}&SSLMODE=disable&=x&{quote('p w')}=1")
    assert found.sslmode is SslMode.REQUIRE
    assert found.ignored_options == (
        "pgbouncer",
        "schema",
        "sslaccept",
        "connection_limit",
        "SSLMODE",
        "(name not shown)",
    )


def test_a_key_that_is_not_a_connection_option_is_accepted_silently() -> None:
    keys = {"description": "x", "masterarn": "arn", "pgbouncer": "true", "schema": "public"}
    assert read(a_secret(**keys)).ignored_options == ()


def test_a_plus_in_a_uri_is_literal() -> None:
    body = PEM.replace("\n", "%0A").replace("=", "%3D").replace(" ", "%20")
    assert read(f"{URI}?sslrootcert={body}").sslrootcert == PEM


# -- verified -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sslmode", "sslrootcert", "verified"),
    [
        ("verify-full", None, True),
        ("verify-full", PEM, True),
        ("verify-ca", PEM, True),
        ("verify-ca", None, False),
        ("require", None, False),
        ("require", PEM, False),
        ("disable", None, False),
    ],
)
def test_verified_means_verify_full_or_verify_ca_with_an_own_ca(
    sslmode: str, sslrootcert: str | None, *, verified: bool
) -> None:
    found = read(a_secret(sslmode=sslmode, sslrootcert=sslrootcert))
    assert found.is_verified is verified
    assert found.sslmode == sslmode


@pytest.mark.parametrize("sslmode", ["require", "verify-ca"])
@pytest.mark.parametrize("auth", ["iam", None])
def test_iam_on_an_endpoint_of_rds_is_verified_in_full(sslmode: str, auth: str | None) -> None:
    found = read(a_secret(password=None, auth=auth, sslmode=sslmode))
    assert (found.auth, found.sslmode) == (Auth.IAM, SslMode.VERIFY_FULL)


def test_iam_with_the_secrets_own_ca_keeps_its_tls_mode() -> None:
    found = read(a_secret(auth="iam", sslmode="verify-ca", sslrootcert=PEM))
    assert found.sslmode is SslMode.VERIFY_CA


@pytest.mark.parametrize("keys", [{"sslmode": "require"}, {"sslmode": "verify-ca"}])
def test_iam_outside_rds_needs_a_verified_connection(keys: dict[str, str]) -> None:
    found = error_of(a_secret(auth="iam", host="db.example", **keys))
    assert (
        f"auth iam needs a verified connection, but sslmode is {keys['sslmode']}" in found.message
    )
    assert "verify-full" in found.hint
    assert "sslrootcert" in found.hint
    found = error_of(a_secret(password=None, host="db.example", **keys))
    assert "password is missing" in found.message


# -- hidden -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["name", "dbInstanceIdentifier", "dbClusterIdentifier", "host"])
@pytest.mark.parametrize(
    "value",
    [
        f"postgres://reaper:{VALUE}@db/orders",
        f"reaper:{VALUE}@db",
        f"host=db password={VALUE}",
        f"Password: {VALUE}",
        PASSWORD,
        f"the {PASSWORD}!",
    ],
)
def test_a_text_with_credentials_is_refused_as_a_name(key: str, value: str) -> None:
    found = error_of(a_secret(**{key: value}))
    assert found.message.startswith(f"secret {NAME}: {key} ")
    assert VALUE not in found.target


@pytest.mark.parametrize("key", ["username", "dbname"])
def test_a_uri_is_refused_as_role_and_database(key: str) -> None:
    error_of(a_secret(**{key: f"postgres://reaper:{VALUE}@db/orders"}))


@pytest.mark.parametrize("value", [f"mysql://u:{VALUE}@h", PASSWORD, f"{VALUE} {PASSWORD}"])
def test_an_engine_that_may_contain_a_password_is_not_shown(value: str) -> None:
    assert error_of(a_secret(engine=value)).message == f"secret {NAME}: engine is not PostgreSQL"


@pytest.mark.parametrize(
    "value", [f"postgres://reaper:{VALUE}@db/orders", f"u:{VALUE}", "a b", "arn:aws:iam::1:role/x"]
)
def test_a_fallback_secret_without_the_form_of_a_secret_id_is_not_shown(value: str) -> None:
    assert "fallback_secret must be" in error_of(a_secret(fallback_secret=value)).message


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("prod/orders", True),
        ("a_b+c=d.e@f-g", True),
        ("rds!db-1b2c", True),
        (ARN, True),
        (f"arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:{NAME}", True),
        ("arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:rds!cluster-1-AbCdEf", True),
        ("x" * 512, True),
        ("x" * 513, False),
        ("", False),
        ("a b", False),
        ("a:b", False),
        ("prod/orders\n", False),
        ("postgres://u:p@h/d", False),
        ("host=db password=p", False),
        ("arn:aws:ssm:eu-west-1:123456789012:parameter/x", False),
        ("passwörd", False),
        ("p!ssword!", False),
    ],
)
def test_secret_ids_are_recognised_by_their_form(text: str, *, is_one: bool) -> None:
    assert is_secret_id(text) is is_one
