"""Names, passwords and queries with any characters: none hides a session or breaks a statement."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from pg8000.native import identifier, literal

from tests.integration.stage import IDLE, LEAK, ROLE_FILE, policy, rule, until

if TYPE_CHECKING:
    from tests.integration.stage import Stage, Victim

NAMES = {
    "quotes": "o'br\"ien",
    "backslashes": "\\back\\\\slash\\'",
    "spaces": " a  b ",
    "percent": "100%(x)s %s",
    "unicode": "ünï-Ω-本",
    "emoji": "😀👍",
    "newline": "a\nb\r\nc",
    "tab": "a\tb",
    "escape": "\x1b[31mred\x07",
    "colon": ":pid ::text",
    "dollar": "$1 $$ $x$",
    "semicolon": "x; DROP TABLE y; --",
    "comment": "/* x */ -- y",
    "braces": "{0} {name}",
    "glob": "[*?]",
    "separators": "a,b=c&d;e|f",
    "at": "user@host:5432/db?x=y#z",
    "mixed-directions": "אa1",
    "zero-width": "a\u200bb\u00ad",
    "63-bytes": "é" * 31 + "x",
    "json": '{"a": "b\\u0000"}',
    "slack": "<!channel> & <https://example.com|x>",
}
every_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())


def test_a_session_with_any_names_is_selected_by_them_and_reported_with_them(
    stage: Stage, subtests: pytest.Subtests
) -> None:
    stage.database("renamed")
    database = "renamed"
    other = stage.session(LEAK)
    for kind, name in NAMES.items():
        stage.root.run(f"ALTER DATABASE {identifier(database)} RENAME TO {identifier(name)}")
        database = name
        with subtests.test(kind):
            stage.target(kind, dbname=name)
            stage.monkeypatch.setenv("TARGET_SECRETS", kind)
            leak = stage.session(LEAK, name, database=name, application_name=name)
            # The server replaces non-ASCII characters in an application's name.
            ((application,),) = stage.root.run(
                "SELECT application_name FROM pg_stat_activity WHERE pid = :pid", pid=leak.pid
            )
            glob = re.sub(r"([\[*?])", r"[\1]", name)
            rules = policy(rule(role=[glob], database=[glob]))
            run = stage.run({"policy": rules})
            reported = run.session(leak, kind)
            assert other.is_there
            assert reported["outcome"] == "terminated"
            assert (reported["role"], reported["database"]) == (name, name)
            assert reported["application"] == application
            assert re.fullmatch(r"[^\x00-\x1f\x7f]{1,99}", run.email.subject)
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", run.email.body)
        until(lambda: stage.clients == 2, "the sessions in the database are gone")
    stage.root.run(f"ALTER DATABASE {identifier(database)} RENAME TO renamed")


@every_name
def test_the_reaper_connects_with_any_role_name_and_password(stage: Stage, name: str) -> None:
    stage.role(name, "IN ROLE pg_read_all_stats, pg_signal_backend")
    stage.root.run(f"ALTER ROLE {identifier(name)} PASSWORD {literal(name)}")
    stage.target(username=name, password=name)
    leak = stage.session(LEAK)
    assert stage.reap().outcomes() == {leak.pid: "terminated"}


@pytest.mark.every_major
def test_an_application_without_a_name_is_found(stage: Stage) -> None:
    leaks = [stage.session(LEAK), stage.session(LEAK, query="SET application_name TO ''")]
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert {run.session(leak)["application"] for leak in leaks} == {""}
    assert "(no name)@local" in run.said


@pytest.mark.every_major
def test_a_session_on_a_unix_socket_has_no_client(stage: Stage) -> None:
    leak = stage.session(LEAK)
    run = stage.reap(protect={"clients": ["0.0.0.0/0", "::/0"]})
    assert run.session(leak)["client"] is None


# -- encodings -------------------------------------------------------------------------------------

TEXTS = {
    "UTF8": "Ёж 😀 本",
    "LATIN1": "é ÿ \x81",
    "WIN1252": "€ ž",
    "EUC_JP": "日本",
}


def _database(stage: Stage, encoding: str) -> str:
    locale = "LC_COLLATE 'C' LC_CTYPE 'C'"
    return stage.database(encoding, f"TEMPLATE template0 ENCODING '{encoding}' {locale}")


def _leak_with_query(stage: Stage, encoding: str, text: str) -> Victim:
    """A leaked session whose last query contains the text in the encoding of its database."""
    victim = stage.session(LEAK, database=encoding)
    if encoding != "SQL_ASCII":
        victim.connection.run(f"SET client_encoding TO {encoding}")
    else:
        victim.connection._client_encoding = "latin1"  # noqa: SLF001 -- to send any byte
    # The driver encodes by what the server says; an identifier stays in the shown query.
    victim.connection.run(f"SELECT 1 AS {identifier(text)}")
    return victim


@pytest.mark.every_major
def test_a_snapshot_may_contain_queries_in_any_encoding(stage: Stage) -> None:
    leaks = [stage.session(LEAK)]
    for encoding, text in TEXTS.items():
        leaks.append(_leak_with_query(stage, _database(stage, encoding), text))
    _database(stage, "SQL_ASCII")
    for octets in ("é" * 30, "\xff\xfe\xc3", "\xe2\x82", "\\xc3 \xed\xa0\x80"):
        leaks.append(_leak_with_query(stage, "SQL_ASCII", octets))  # noqa: PERF401 -- reads as the loop above
    until(lambda: all(leak.state == LEAK for leak in leaks), "all have leaked")
    for encoding in (*TEXTS, "SQL_ASCII"):
        stage.target(f"from-{encoding}", dbname=encoding)
        stage.monkeypatch.setenv("TARGET_SECRETS", f"from-{encoding}")
        run = stage.run({"mode": "observe", "policy": policy()})
        found = run.outcomes(f"from-{encoding}")
        assert found == {leak.pid: "would_terminate" for leak in leaks}, encoding
    assert stage.reap().outcomes("from-SQL_ASCII") == {leak.pid: "terminated" for leak in leaks}


@pytest.mark.every_major
def test_a_snapshot_may_contain_a_query_cut_within_a_character(stage: Stage) -> None:
    leaks = [stage.session(LEAK) for _ in range(4)]
    for padding, leak in enumerate(leaks):
        leak.connection.run("SELECT " + " " * padding + "'" + "😀" * 1000 + "'")
    assert set(stage.reap().outcomes().values()) == {"terminated"}


SETTINGS = [
    "bytea_output = 'escape'",
    "standard_conforming_strings = off",
    "DateStyle = 'SQL, DMY'",
    "TimeZone = 'America/St_Johns'",
    "search_path = 'evil'",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "client_encoding = 'LATIN1'",
    "xmlbinary = 'hex'",
    "quote_all_identifiers = on",
    "transform_null_equals = on",
    "array_nulls = off",
    "statement_timeout = '1ms'",
    "application_name = 'pg_dump'",
    "extra_float_digits = -15",
    "row_security = off",
    "jit_above_cost = 0",
    "client_min_messages = debug5",
    "plan_cache_mode = force_generic_plan",
    "enable_nestloop = off",
    "enable_material = on",
    "debug_print_plan = off",
]


@pytest.mark.every_major
def test_the_roles_settings_do_not_affect_snapshot_and_signals(stage: Stage) -> None:
    stage.cleanup(stage.root.run, ROLE_FILE.read_text())  # it sets some of them itself
    for setting in SETTINGS:
        stage.root.run(f"ALTER ROLE session_reaper SET {setting}")
        name = setting.split(" = ", maxsplit=1)[0]
        stage.cleanup(stage.root.run, f"ALTER ROLE session_reaper RESET {name}")
    leaks = stage.sessions(2)
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}


def test_a_leaked_serializable_transaction_does_not_delay_the_snapshot(stage: Stage) -> None:
    """Serializable, read only and deferrable would wait for it."""
    for name, value in (("isolation", "serializable"), ("deferrable", "on")):
        stage.root.run(f"ALTER ROLE session_reaper SET default_transaction_{name} = {value}")
        stage.cleanup(stage.root.run, f"ALTER ROLE session_reaper RESET default_transaction_{name}")
    leak = stage.session(LEAK, query="SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE")
    leak.connection.run("SELECT count(*) FROM pg_class")
    run = stage.reap(seconds=15)
    assert run.outcomes() == {leak.pid: "terminated"}


def test_views_that_shadow_the_catalog_are_not_used(stage: Stage) -> None:
    stage.database("trap")
    with stage.server.connect(unix_sock=stage.server.unix_sock, database="trap") as trap:
        trap.run("CREATE SCHEMA session_reaper")
        trap.run("GRANT USAGE ON SCHEMA session_reaper TO PUBLIC")
        nobody = "SELECT * FROM pg_catalog.pg_stat_activity WHERE false"
        trap.run("CREATE VIEW session_reaper.pg_stat_activity AS " + nobody)
        trap.run("CREATE VIEW public.pg_stat_activity AS " + nobody)
        trap.run("ALTER DATABASE trap SET search_path = session_reaper, public, pg_catalog")
    stage.target(dbname="trap")
    leak, idle = stage.session(LEAK), stage.session(IDLE)
    assert stage.reap().outcomes() == {leak.pid: "terminated"}
    assert idle.is_there
