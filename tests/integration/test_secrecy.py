"""Neither a password nor a literal of a query leaves the function."""

from __future__ import annotations

import json
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from pg8000.native import DatabaseError
from session_reaper.errors import ReaperError

from tests.integration.stage import ABORTED, ACTIVE, LEAK, rule
from tests.integration.wire import Action, Fault, Impostor, Moment, Proxy

if TYPE_CHECKING:
    import socket
    from threading import Event

    from tests.integration.conftest import Output
    from tests.integration.stage import Run, Stage

CANARY = "cAnArY"
SECRET = f"{CANARY}-pass'w\"ord\\"


def assert_kept(output: Output, run: Run) -> None:
    """Assert that the canary is not in logs, metrics, return value and emails."""
    logged = output.readouterr()
    assert '"message":"run"' in logged.out
    emails = [f"{e.subject}\n{e.body}\n{e.chat}\n{e.webhook}" for e in run.emails]
    everything = "\n".join([logged.out, logged.err, json.dumps(run.document), *emails])
    assert "run_id" in everything
    assert CANARY.lower() not in everything.lower()


QUERIES = [
    f"SELECT '{CANARY}'",
    f"SELECT 'it''s {CANARY}'",
    f"SELECT E'\\'{CANARY}'",
    f"SELECT E'\\\\' || '{CANARY}'",
    f"SELECT $${CANARY}$$",
    f"SELECT $x$ $$ {CANARY} $x$",
    f"SELECT U&'{CANARY}'",
    f"SELECT N'{CANARY}', B'01', X'CA'",
    f"SELECT 1 -- {CANARY}",
    f"SELECT 1 /* {CANARY} /* nested {CANARY} */ {CANARY} */",
    f"/* {CANARY} */ SELECT 1",
    f"SELECT 'a'\n'{CANARY}'",
    f"SELECT date'2020-01-01', text '{CANARY}'",
    f"SELECT CAST('{CANARY}' AS text), '{CANARY}'::text",
    f"SELECT ARRAY['{CANARY}'], '{{\"k\": \"{CANARY}\"}}'::json",
    f"DO $do$ BEGIN PERFORM '{CANARY}'; END $do$",
    f"PREPARE p AS SELECT '{CANARY}'",
    f"SET application_name = '{CANARY[:3]}x'; SELECT '{CANARY}'",
    f"SELECT '{'x' * 1010}{CANARY}'",  # cut off by track_activity_query_size
    f"SELECT '{'x' * 100}', '{CANARY * 300}'",
    f"SELECT $tag${'x' * 1005} {CANARY}",
    f"SELECT '\u00e9\U0001f600{CANARY}'",
    f"SELECT\r--{CANARY}\r1",
    f"SELECT 1 AS a --\\\n, '{CANARY}' AS b",
    f"SELECT 5--{CANARY}\n",
    f"SELECT 'a\\' || '{CANARY}'",
    f"SET standard_conforming_strings = off; SELECT 'a\\' {CANARY} ', 1",
]


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_no_literal_of_a_query_is_in_any_output(stage: Stage, output: Output, mode: str) -> None:
    stage.target(username="reaper", password=SECRET)
    stage.role("reaper", "IN ROLE pg_read_all_stats, pg_signal_backend")
    stage.root.run(f"ALTER ROLE reaper PASSWORD $p${SECRET}$p$")
    leaks = []
    for query in QUERIES:
        leak = stage.session(LEAK)
        with suppress(DatabaseError):  # a query that is wrong is shown too
            leak.connection.run(query)
        leaks.append(leak)
    stage.session(ACTIVE, query=f"SELECT pg_sleep(60), '{CANARY}'")
    stage.monkeypatch.setenv("MODE", mode)
    run = stage.reap(rule(state=[LEAK, ABORTED, ACTIVE]))
    assert len(run.outcomes()) == len(QUERIES) + 1
    assert_kept(output, run)


def test_no_password_of_a_failed_target_is_in_any_output(stage: Stage, output: Output) -> None:
    fault = [Fault(action=Action.RESET, moment=moment) for moment in (Moment.LOGIN,)]
    with Impostor() as silent, Proxy(stage.server.port, *fault) as broken:
        stage.target("wrong", password=SECRET)
        stage.target("silent", password=SECRET, port=silent.port)
        stage.target("broken", password=SECRET, port=broken.port)
        stage.target("tls", password=SECRET, sslmode="require")
        stage.target("nowhere", password=SECRET, host="no-such-host.invalid")
        stage.target("surrogate", password=SECRET + "\ud800")
        stage.target("control", password=SECRET + "\n")
        stage.target("emoji", password=SECRET + "\U0001f600")
        stage.target("nul", password=SECRET + "\0")
        stage.target("list", password=[SECRET])
        run = stage.reap(seconds=6)
    assert run.document["totals"]["failed"] == len(run.document["targets"])
    assert_kept(output, run)


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"postgres://app:{SECRET}@/db",
        f"postgres://app:{SECRET}#@host/db",
        f"postgres://app:{SECRET}@[host/db",
        f"postgres://app:{SECRET}%ff@host/db",
        f"postgresql://app:{SECRET}@host:x/db",
        f"postgres://{SECRET}",
        f'{{"password": "{CANARY}"',
        f'["{CANARY}"]',
        f'"{CANARY}"',
        f'{{"host": "h", "username": "u", "password": "{CANARY}", "engine": "mysql"}}',
        f'{{"host": "h", "username": "u", "password": {{"x": "{CANARY}"}}}}',
        f'{{"username": "u", "password": "{CANARY}"}}',
        f'{{"host": "h", "password": "{CANARY}"}}',
        f'{{"host": "h", "username": "u", "password": "{CANARY}", "port": "x"}}',
        f'{{"host": "h", "username": "u", "password": "{CANARY}", "sslmode": "x"}}',
        f'{{"host": "h", "username": "u", "password": "{CANARY}", "auth": "x"}}',
        f'{{"host": "h", "username": "u", "passwrd": "{CANARY}"}}',
        '{"a":' * 100_000 + f'"{CANARY}"',
    ],
)
def test_no_part_of_an_invalid_secret_is_in_any_output(
    stage: Stage, output: Output, text: str
) -> None:
    if len(text) > 65536:
        text = text[-60000:]
    stage.aws.put_secret("odd", text)
    stage.listed("odd")
    run = stage.reap()
    assert run.error("odd")["code"] == "secret"
    assert_kept(output, run)


def test_no_password_sent_back_by_a_server_is_in_any_output(stage: Stage, output: Output) -> None:
    """A server that asks for the password in cleartext, as PAM and LDAP do, and repeats it in an error."""

    def echo(connection: socket.socket, _: Event) -> None:
        connection.recv(65536)
        connection.sendall(b"R\0\0\0\x08\0\0\0\x03")
        password = connection.recv(65536)[5:].rstrip(b"\0")
        fields = b"SFATAL\0C28P01\0Mno entry for " + password + b"\0\0"
        connection.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    with Impostor(echo) as impostor:
        stage.target(password=SECRET, port=impostor.port)
        run = stage.reap(seconds=4)
    assert run.target()["status"] == "failed"
    assert_kept(output, run)


def test_no_password_in_an_exception_is_in_any_output(stage: Stage) -> None:
    stage.target(password=SECRET)
    with pytest.raises(ReaperError) as raised:
        stage.run({"targets": ["nobody"]})
    assert CANARY not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full", None])
def test_nothing_is_sent_in_plaintext_unless_the_secret_allows_it(
    stage: Stage, sslmode: str | None
) -> None:
    heard = b""

    def refuse(connection: socket.socket, _: Event) -> None:
        nonlocal heard
        heard += connection.recv(65536)
        connection.sendall(b"N")
        connection.settimeout(1)
        heard += connection.recv(65536)

    with Impostor(refuse) as impostor:
        stage.target(port=impostor.port, sslmode=sslmode)
        run = stage.reap(seconds=4)
    assert run.error()["code"] == "tls"
    assert heard == b"\0\0\0\x08\x04\xd2\x16\x2f"  # the request for TLS, and no more


def test_a_server_without_tls_is_refused(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target(sslmode=None)
    run = stage.reap()
    assert run.error()["code"] == "tls"
    assert leak.is_there


def test_every_report_advises_against_plaintext(
    stage: Stage,
) -> None:
    stage.monkeypatch.setenv("NOTIFY", "always")
    run = stage.reap()
    assert [advice["code"] for advice in run.target()["advice"]] == ["encrypt-connection"]
    assert "plaintext" in run.email.body
