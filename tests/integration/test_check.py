"""A check reports the server and what to fix, and signals no session."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from infra.local.certificates import make_tls
from tests.integration.stage import LEAK, PASSWORD, REAPER, Run, Stage
from tests.integration.wire import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.local.postgres import Build
    from tests.integration.conftest import Output

RESCUE = "rescue"  # a secret's name
pytestmark = pytest.mark.every_major


def check(stage: Stage, **event: object) -> Run:
    return stage.run({"check": True, **event})


def get_check(run: Run, name: str = "orders") -> dict[str, Any]:
    document = run.target(name)["check"]
    assert isinstance(document, dict)
    return document


def sql_by_code(run: Run, name: str = "orders") -> dict[str, str | None]:
    return {advice["code"]: advice["sql"] for advice in run.target(name)["advice"]}


def message(run: Run, code: str) -> str:
    (advice,) = [a for a in run.target()["advice"] if a["code"] == code]
    return str(advice["message"])


def test_check_reports_the_server_and_the_privileges_of_the_role(stage: Stage) -> None:
    leak = stage.session(LEAK)
    run = check(stage)
    document = get_check(run)
    ((version,),) = stage.root.run("SHOW server_version")
    assert document["version"] == version
    assert document["provider"] == "vanilla"
    assert document["tls"] is None
    assert document["in_recovery"] is False
    assert document["behind_pooler"] is False
    assert document["role"] == {
        "name": REAPER,
        "superuser": False,
        "connection_limit": 5,
        "sees": True,
        "signals": True,
        "reserved_slot": False,
    }
    assert run.target()["slots"]["used_before"] == 2
    assert run.target()["sessions"] == []
    assert leak.is_there


def test_a_check_is_published(stage: Stage) -> None:
    run = check(stage)
    assert "orders: checked vanilla PostgreSQL " in run.email.subject
    assert "cannot use a reserved slot." in run.said
    assert PASSWORD not in str(run.document) + run.email.body


def test_missing_privileges_are_reported_with_the_sql_that_grants_them(stage: Stage) -> None:
    """The reported SQL works."""
    stage.role("bare")
    stage.target(username="bare")
    run = check(stage)
    assert run.target()["status"] == "blind"
    assert get_check(run)["role"]["sees"] is False
    assert get_check(run)["role"]["signals"] is False
    stage.root.run(run.error()["hint"])
    stage.root.run(str(sql_by_code(run)["grant-signal-backend"]))
    run = check(stage)
    assert run.target()["status"] == "ok"
    assert get_check(run)["role"]["sees"] is True
    assert get_check(run)["role"]["signals"] is True
    assert "grant-signal-backend" not in sql_by_code(run)


def test_timeouts_of_the_server_each_role_and_each_database_are_reported(stage: Stage) -> None:
    stage.role("api")
    stage.database("orders")
    stage.root.run("ALTER ROLE api SET idle_in_transaction_session_timeout = '5min'")
    stage.root.run("ALTER DATABASE orders SET statement_timeout = '1h'")
    stage.root.run("ALTER ROLE api IN DATABASE orders SET statement_timeout = '2h'")
    stage.root.run("ALTER ROLE api SET work_mem = '8MB'")
    told = {
        (timeout["role"], timeout["database"], timeout["name"]): timeout["value"]
        for timeout in get_check(check(stage))["timeouts"]
    }
    assert told[None, None, "idle_in_transaction_session_timeout"] == "0"
    assert told["api", None, "idle_in_transaction_session_timeout"] == "5min"
    assert told[None, "orders", "statement_timeout"] == "1h"
    assert told["api", "orders", "statement_timeout"] == "2h"
    assert told[REAPER, None, "statement_timeout"] == "10s"
    assert told[None, None, "statement_timeout"] is None  # our own hides it
    assert "work_mem" not in {name for _, _, name in told}


def test_settings_for_all_roles_are_reported_as_the_servers_own(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server()
    stage.root.run("ALTER ROLE ALL SET idle_in_transaction_session_timeout = '1min'")
    timeouts = get_check(check(stage))["timeouts"]
    assert [
        (timeout["role"], timeout["database"], timeout["value"])
        for timeout in timeouts
        if timeout["name"] == "idle_in_transaction_session_timeout"
    ] == [(None, None, "60000ms")]


def test_settings_of_our_connection_are_not_reported_as_the_servers_own(stage: Stage) -> None:
    stage.role("bare", "IN ROLE pg_read_all_stats")
    stage.target(username="bare")
    told = {
        timeout["name"]: timeout["value"]
        for timeout in get_check(check(stage))["timeouts"]
        if timeout["role"] is None
    }
    assert told["statement_timeout"] is None


def test_a_database_without_a_timeout_against_leaks_is_reported_with_the_sql(stage: Stage) -> None:
    stage.database('odd "name"')
    run = check(stage)
    sql = sql_by_code(run)["set-idle-in-transaction-timeout"]
    assert sql is not None
    for statement in re.findall("ALTER.*?;", sql):
        stage.root.run(statement)
    try:
        assert "set-idle-in-transaction-timeout" not in sql_by_code(check(stage))
    finally:
        stage.root.run("ALTER DATABASE postgres RESET idle_in_transaction_session_timeout")


@pytest.mark.parametrize("reserved", [0, 2])
@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.majors(16, 99)
def test_a_reserved_slot_needs_a_setting_and_a_grant(
    own_server: Callable[..., Stage], reserved: int, *, granted: bool
) -> None:
    stage = own_server({"reserved_connections": str(reserved)})
    if not granted:
        stage.root.run(f"REVOKE pg_use_reserved_connections FROM {REAPER}")
    run = check(stage)
    sql = sql_by_code(run)
    assert get_check(run)["role"]["reserved_slot"] is (granted and reserved > 0)
    if not reserved:
        assert sql["set-reserved-connections"] == "ALTER SYSTEM SET reserved_connections = 2;"
        stage.root.run(sql["set-reserved-connections"])
    elif not granted:
        stage.root.run(str(sql["grant-reserved-connections"]))
        assert get_check(check(stage))["role"]["reserved_slot"] is True
    else:
        assert not {code for code in sql if "reserved" in code}


@pytest.mark.majors(13, 15)
def test_before_16_a_fallback_secret_is_advised(stage: Stage) -> None:
    run = check(stage)
    assert get_check(run)["role"]["reserved_slot"] is False
    assert "fallback_secret" in message(run, "add-fallback-secret")


def test_a_usable_fallback_secret_needs_no_action(stage: Stage) -> None:
    stage.role("rescuer", "SUPERUSER")
    stage.aws.put_secret(RESCUE, stage.secret(username="rescuer"))
    stage.target(fallback_secret=RESCUE)
    assert not {
        code for code in sql_by_code(check(stage)) if "fallback" in code or "reserved" in code
    }


@pytest.mark.parametrize("fault", ["missing", "password", "ordinary"])
def test_a_useless_fallback_secret_is_reported_before_it_is_needed(
    stage: Stage, fault: str
) -> None:
    stage.role("rescuer", "IN ROLE pg_read_all_stats")
    password = "no" if fault == "password" else PASSWORD
    if fault != "missing":
        stage.aws.put_secret(RESCUE, stage.secret(username="rescuer", password=password))
    stage.target(fallback_secret=RESCUE)
    expected = {
        "missing": "secret rescue cannot be read",
        "password": "password authentication failed",
        "ordinary": "role rescuer has no reserved slot",
    }[fault]
    assert expected in message(check(stage), "mend-fallback-secret")


def test_the_fallback_secret_of_another_secret_of_the_server_is_checked_too(stage: Stage) -> None:
    """A run uses it where the first secret has none."""
    elsewhere = stage.secret(username="rescuer", port=1)
    stage.aws.put_secret(RESCUE, elsewhere)
    stage.target()
    stage.target("billing", fallback_secret=RESCUE)
    told = message(check(stage), "mend-fallback-secret")
    assert "it is for another server" in told
    assert RESCUE in told


def test_a_check_lists_ignored_parameters_without_their_values(
    stage: Stage, output: Output
) -> None:
    uri = f"postgres://{REAPER}:{PASSWORD}@{stage.server.host}:{stage.server.port}/postgres"
    query = "sslmode=disable&application_name=api&pgbouncer=true&schema=s3cret&connection_limit=5"
    stage.aws.put_secret("orders", {"uri": f"{uri}?{query}"})
    stage.listed("orders")
    run = check(stage)
    assert run.target()["status"] == "ok"
    listed = message(run, "remove-ignored-options")
    assert listed.endswith(": pgbouncer, schema, connection_limit.")
    assert "pgbouncer, schema, connection_limit" in run.said
    assert "s3cret" not in output.readouterr().out + str(run.document) + run.email.body
    assert "remove-ignored-options" not in sql_by_code(stage.run())


def test_a_pooler_is_recognised_by_its_greeting(stage: Stage) -> None:
    """PgBouncer sends its own backend key; observed with PgBouncer 1.18."""

    def replace_greeting(data: bytes) -> bytes:
        return re.sub(rb"K\0\0\0\x0c....", b"K\0\0\0\x0c\x7f\x01\x02\x03", data, flags=re.DOTALL)

    with Proxy(stage.server.port, says=replace_greeting) as proxy:
        stage.target(port=proxy.port)
        run = check(stage)
        assert get_check(run)["behind_pooler"] is True
        assert "bypass-pooler" in sql_by_code(run)
        run = stage.reap()
        assert "bypass-pooler" in sql_by_code(run)


def test_a_pooler_that_refuses_our_settings_is_reported(stage: Stage) -> None:
    def refusal(_: bytes) -> bytes:
        fields = b"SFATAL\0C08P01\0Munsupported startup parameter: search_path\0\0"
        return b"E" + (len(fields) + 4).to_bytes(4) + fields

    with Proxy(stage.server.port, says=refusal) as proxy:
        stage.target(port=proxy.port)
        run = check(stage)
    assert run.error()["code"] == "08P01"
    assert "pooler" in run.error()["hint"]


def test_providers_are_recognised_by_objects_that_only_they_have(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server()
    stage.target()
    for provider, sql in {
        "Aiven": "CREATE DATABASE _aiven",
        "RDS": "CREATE ROLE rds_superuser",
        "Aurora": "CREATE FUNCTION aurora_version() RETURNS text LANGUAGE sql AS $$SELECT '1'$$",
    }.items():
        stage.root.run(sql)
        assert get_check(check(stage))["provider"] == provider


def test_an_unreachable_server_does_not_hide_the_others(stage: Stage) -> None:
    stage.target("away", port=1)
    stage.target()
    run = check(stage)
    assert run.document["status"] == "partial"
    assert run.error("away")["hint"]
    assert get_check(run)["version"]


@pytest.mark.tls
@pytest.mark.parametrize("sslmode", ["verify-full", "require"])
def test_a_certificates_expiry_is_reported_whether_or_not_it_is_verified(
    own_server: Callable[..., Stage], build: Build, tmp_path: Path, sslmode: str
) -> None:
    assert build.tls
    tls = make_tls(tmp_path)
    stage = own_server(tls=tls)
    authority = tls.authority.read_text() if sslmode == "verify-full" else None
    stage.target(sslmode=sslmode, sslrootcert=authority)
    run = check(stage)
    document = get_check(run)["tls"]
    assert document["version"] == "TLSv1.3"
    assert document["verified"] is (sslmode == "verify-full")
    assert document["certificate_until"] == _read_expiry(tls.certificate.read_bytes())
    assert document["certificate_until"] in message(run, "renew-certificate")
    assert ("verify-certificate" in sql_by_code(run)) is (sslmode == "require")


def _read_expiry(pem: bytes) -> str:
    from cryptography import x509  # noqa: PLC0415 -- only here

    end = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    return f"{end:%Y-%m-%dT%H:%M:%SZ}"
