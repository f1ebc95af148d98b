from __future__ import annotations

import json
import traceback
from typing import Any

import pytest
from session_reaper.targets.secret_document import SecretError
from session_reaper.targets.target import Auth, Secret, SslMode, Target

from tests.builders import PASSWORD, a_secret, read_target

NAME = "prod/orders"
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/orders-X1y2Z3"


def read(text: str) -> Target:
    return read_target(Secret(name=NAME, arn=ARN, text=text))


def target(**overrides: object) -> Target:
    return read(a_secret(**overrides))


def error_of(secret: str) -> SecretError:
    with pytest.raises(SecretError) as caught:
        read(secret)
    error = caught.value
    assert error.code == "secret"
    assert error.message.startswith(f"secret {NAME}: ")
    assert error.hint
    everything = "".join(traceback.format_exception(error)) + repr(error) + error.hint
    assert PASSWORD not in everything
    assert PASSWORD[:5] not in everything
    return error


# -- accepted ---------------------------------------------------------------------------------------


def test_reads_the_rds_shape() -> None:
    assert target() == Target(
        name="orders",
        group="orders",
        secret_arn=ARN,
        auth=Auth.PASSWORD,
        is_auth_given=False,
        fallback_secret=None,
        host="orders.abc.eu-west-1.rds.amazonaws.com",
        port=5433,
        role="reaper",
        password=PASSWORD,
        database="orders_db",
        sslmode=SslMode.VERIFY_FULL,
        sslrootcert=None,
    )


def test_a_minimal_secret_is_verified_in_full() -> None:
    least = json.dumps({"host": "db", "username": "u", "password": "p"})
    assert read(least) == Target(
        name=NAME,
        group=NAME,
        secret_arn=ARN,
        auth=Auth.PASSWORD,
        is_auth_given=False,
        fallback_secret=None,
        host="db",
        port=5432,
        role="u",
        password="p",  # noqa: S106 -- of nothing
        database="postgres",
        sslmode=SslMode.VERIFY_FULL,
        sslrootcert=None,
    )


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"name": "the-name"}, "the-name"),
        ({}, "orders"),
        ({"dbClusterIdentifier": "cluster"}, "orders"),
        ({"dbInstanceIdentifier": None, "dbClusterIdentifier": "cluster"}, "cluster"),
        ({"dbInstanceIdentifier": "", "dbClusterIdentifier": ""}, NAME),
        ({"dbInstanceIdentifier": None}, NAME),
        ({"name": ""}, "orders"),
        ({"name": " "}, "orders"),
    ],
)
def test_the_name_comes_from_the_first_key_that_has_one(keys: dict[str, Any], name: str) -> None:
    assert target(**keys).name == name


@pytest.mark.parametrize(
    "engine",
    [None, "", "postgres", "postgresql", "aurora-postgresql", "PostgreSQL", "Postgres"],
)
def test_every_spelling_of_postgresql_is_accepted(engine: str | None) -> None:
    assert target(engine=engine).host


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require", "disable"])
def test_sslmode_is_read(mode: str) -> None:
    assert target(sslmode=mode).sslmode.value == mode


@pytest.mark.parametrize("nothing", [None, ""])
def test_the_default_sslmode_is_verify_full(nothing: str | None) -> None:
    assert target(sslmode=nothing).sslmode is SslMode.VERIFY_FULL


@pytest.mark.parametrize(
    ("port", "read"),
    [(1, 1), (5432, 5432), (65_535, 65_535), ("6543", 6543), (None, 5432), ("", 5432)],
)
def test_a_port_is_a_number_or_text(port: object, read: int) -> None:
    assert target(port=port).port == read


def test_a_key_that_is_null_counts_as_absent() -> None:
    document = json.loads(a_secret())
    nulls = dict.fromkeys(("engine", "port", "dbname", "sslmode", "sslrootcert", "auth", "name"))
    assert read(json.dumps(document | nulls)).port == 5432


@pytest.mark.parametrize(
    "host", ["db", "db.example.com", "10.0.0.7", "::1", "fd00::7", "fe80::1%eth0", "my_db", "DB-1"]
)
def test_host_names_and_addresses_are_accepted(host: str) -> None:
    assert target(host=host).host == host


@pytest.mark.parametrize(
    "text", ["p@ss:w/rd?#[]%20&=+ ", "''", '"\\', "пароль", "😀", "\n", "\x7f", " ", "p" * 1000]
)
def test_password_role_and_database_may_contain_any_character(text: str) -> None:
    found = target(password=text, username=text, dbname=text)
    assert (found.password, found.role, found.database) == (text, text, text)


def test_unknown_keys_are_ignored() -> None:
    assert target(masterarn="arn:aws:…", rotation={"by": "lambda"}).name == "orders"


# -- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"host": None}, "host"),
        ({"host": ""}, "host"),
        ({"host": 5}, "host"),
        ({"host": ["db"]}, "host"),
        ({"host": f"postgres://reaper:{PASSWORD}@db/orders"}, "host"),
        ({"host": f"reaper:{PASSWORD}@db"}, "host"),
        ({"host": f"db password={PASSWORD}"}, "host"),
        ({"host": "/var/run/postgresql"}, "host"),
        ({"username": None}, "username"),
        ({"username": ""}, "username"),
        ({"username": 7}, "username"),
        ({"password": None, "auth": "password"}, "password"),
        ({"password": "", "auth": "password"}, "password"),
        ({"password": 31_337}, "password"),
        ({"password": [PASSWORD]}, "password"),
        ({"password": {"value": PASSWORD}}, "password"),
        ({"password": f"{PASSWORD}\0"}, "password"),
        ({"password": f"{PASSWORD}\ud800"}, "password"),
        ({"username": "r\0"}, "username"),
        ({"username": "\udfff"}, "username"),
        ({"name": "\ud800"}, "name"),
        ({"name": 1}, "name"),
        ({"dbInstanceIdentifier": ["orders"]}, "dbInstanceIdentifier"),
        ({"dbname": 1}, "dbname"),
        ({"dbname": "a\0b"}, "dbname"),
        *(
            ({"port": port}, "port")
            for port in (0, -1, 65_536, 5432.5, True, " 5432", "5432 ", "0x10", "٥٤٣٢", [5432])
        ),
        ({"port": "9" * 5000}, "port"),
        ({"port": PASSWORD}, "port"),
        ({"sslmode": "prefer"}, "sslmode"),
        ({"sslmode": "allow"}, "sslmode"),
        ({"sslmode": "VERIFY-FULL"}, "sslmode"),
        ({"sslmode": "verify_full"}, "sslmode"),
        ({"sslmode": False}, "sslmode"),
        ({"sslmode": PASSWORD}, "sslmode"),
        ({"sslrootcert": True}, "sslrootcert"),
        ({"auth": "iam", "sslmode": "disable"}, "auth iam"),
        ({"auth": "IAM"}, "auth"),
        ({"auth": PASSWORD}, "auth"),
        ({"engine": "mysql"}, "engine mysql"),
        ({"engine": "aurora"}, "engine aurora"),
        ({"engine": "mariadb"}, "engine mariadb"),
        ({"engine": 5}, "engine"),
    ],
    ids=repr,
)
def test_errors_name_the_secret_and_the_key(keys: dict[str, Any], key: str) -> None:
    assert error_of(a_secret(**keys)).message.startswith(f"secret {NAME}: {key} ")


@pytest.mark.parametrize(
    "secret",
    [
        "",
        PASSWORD,
        f"host=db password={PASSWORD}",
        '{"password": "' + PASSWORD,
        "{'host': 'db'}",
        "[" * 100_000,
        '{"port": ' + "9" * 5000 + "}",
    ],
)
def test_a_secret_that_is_not_json_is_refused(secret: str) -> None:
    assert "the text must be JSON" in error_of(secret).message


@pytest.mark.parametrize("secret", ["null", "[]", "5", "true", json.dumps(PASSWORD)])
def test_json_that_is_not_an_object_is_refused(secret: str) -> None:
    assert "the JSON must be an object" in error_of(secret).message


# -- hidden -----------------------------------------------------------------------------------------


def test_the_repr_of_a_target_contains_neither_password_nor_certificate() -> None:
    found = target(sslrootcert="-----BEGIN CERTIFICATE-----")
    for text in (repr(found), str(found), f"{found}", repr([found])):
        assert PASSWORD not in text
        assert "CERTIFICATE" not in text
