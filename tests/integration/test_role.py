"""The role's file, run by each provider's admin: the privileges that the role then has."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from pg8000.native import DatabaseError, literal

from tests.integration.stage import IDLE, LEAK, PASSWORD, REAPER, ROLE_FILE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.integration.stage import Run, Stage

    OwnServer = Callable[..., Stage]

pytestmark = pytest.mark.every_major

# Since 16, granting a role needs ADMIN OPTION on it; before, CREATEROLE is enough.
up_to_15 = pytest.mark.majors(13, 15)
from_16 = pytest.mark.majors(16, 99)


def _bare(own_server: OwnServer, settings: Mapping[str, str] | None = None) -> Stage:
    """Start a server without the reaper's role."""
    stage = own_server(settings)
    stage.root.run(f"DROP ROLE {REAPER}")
    return stage


def _master(stage: Stage) -> str:
    """Create the master user of RDS and Aurora, as a dump of their roles shows it."""
    stage.root.run("CREATE ROLE rds_superuser NOLOGIN")
    held = ["pg_monitor", "pg_signal_backend"]
    if stage.server.major >= 16:
        held.append("pg_use_reserved_connections")
    stage.root.run(f"GRANT {', '.join(held)} TO rds_superuser WITH ADMIN OPTION")
    return stage.role("master", "CREATEROLE CREATEDB IN ROLE rds_superuser")


def _avnadmin(stage: Stage, option: str = "") -> str:
    """Create Aiven's admin. Whether it holds its roles `WITH ADMIN OPTION` is not documented."""
    stage.role("avnadmin", "CREATEROLE CREATEDB REPLICATION")
    stage.root.run(f"GRANT pg_read_all_stats, pg_stat_scan_tables TO avnadmin {option}")
    return "avnadmin"


def _app_of(stage: Stage, admin: str) -> None:
    """Create an application's role with the grant that 16 gives to the CREATEROLE role that created it."""
    stage.role("app")
    if stage.server.major >= 16:
        stage.root.run(f"GRANT app TO {admin} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")


def _run_as(stage: Stage, admin: str, sql: str) -> tuple[list[list[Any]], list[dict[str, str]]]:
    """Run SQL as the admin over TCP; return the rows and the server's notices."""
    with closing(stage.connect(admin, tcp=True)) as connection:
        rows = connection.run(sql)
        told = [{k.decode(): v.decode() for k, v in n.items()} for n in connection.notices]
    until(lambda: not _sessions_of(stage, admin), "the admin's session is gone")
    return rows, told


def _sessions_of(stage: Stage, role: str) -> int:
    ((number,),) = stage.root.run(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = :role", role=role
    )
    return int(number)


def _make(stage: Stage, admin: str) -> list[dict[str, str]]:
    """Create the reaper's role by its file; return the server's notices."""
    ((name, *_),), told = _run_as(stage, admin, ROLE_FILE.read_text())
    assert name == REAPER
    _run_as(stage, admin, f"ALTER ROLE {REAPER} PASSWORD {literal(PASSWORD)}")
    return told


def _role(stage: Stage) -> object:
    """Return the role's attributes, its memberships and their options."""
    roles = "SELECT to_jsonb(r) FROM pg_roles AS r WHERE rolname = 'session_reaper'"
    held = "SELECT to_jsonb(m) FROM pg_auth_members AS m WHERE member = 'session_reaper'::regrole"
    return stage.root.run(roles), stage.root.run(f"{held} ORDER BY m")


def _memberships(stage: Stage) -> set[str]:
    rows = stage.root.run(
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = 'session_reaper'::regrole"
    )
    return {name for (name,) in rows}


def _grant_in(hint: str) -> str:
    (grant,) = re.findall(r"GRANT app TO [^;]+;", hint)
    return str(grant)


def _advice(run: Run) -> set[str]:
    return {advice["code"] for advice in run.target()["advice"]}


# -- the admins of the providers -------------------------------------------------------------------


def test_running_the_role_file_twice_changes_nothing(own_server: OwnServer) -> None:
    stage = _bare(own_server)
    master = _master(stage)
    first, _ = _run_as(stage, master, ROLE_FILE.read_text())
    made = _role(stage)
    assert _run_as(stage, master, ROLE_FILE.read_text()) == (first, [])
    assert _role(stage) == made
    assert stage.root.run(ROLE_FILE.read_text()) == first
    assert _role(stage) == made


def test_a_role_created_by_the_rds_master_user_sees_and_terminates(own_server: OwnServer) -> None:
    stage = _bare(own_server)
    told = _make(stage, _master(stage))
    if stage.server.major < 16:
        assert not told
        assert _memberships(stage) == {"pg_read_all_stats", "pg_signal_backend"}
    else:  # the master user may not pass on less than pg_monitor
        ((severity, message),) = [(notice["S"], notice["M"]) for notice in told]
        assert severity == "NOTICE"
        assert "pg_monitor" in message
        assert _memberships(stage) == {
            "pg_monitor",
            "pg_signal_backend",
            "pg_use_reserved_connections",
        }
    leaks = [stage.session(LEAK, role) for role in ("app", "other", "master")]
    stage.target()
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert "grant-signal-backend" not in _advice(run)


@from_16
def test_a_role_created_by_the_rds_master_user_connects_to_a_full_server(
    own_server: OwnServer,
) -> None:
    stage = _bare(own_server, {"max_connections": "10", "reserved_connections": "2"})
    _make(stage, _master(stage))
    leaks = stage.sessions(4)  # the root's own makes five
    with pytest.raises(DatabaseError, match="pg_use_reserved_connections"):
        stage.connect()
    stage.target()
    assert stage.reap().outcomes() == {leak.pid: "terminated" for leak in leaks}


@up_to_15
def test_up_to_15_avnadmin_grants_what_it_does_not_hold(own_server: OwnServer) -> None:
    stage = _bare(own_server)
    assert not _make(stage, _avnadmin(stage))
    leak = stage.session(LEAK)
    stage.target()
    assert stage.reap().outcomes() == {leak.pid: "terminated"}


@from_16
def test_what_avnadmin_may_not_grant_is_reported_with_an_alternative(own_server: OwnServer) -> None:
    stage = _bare(own_server)
    told = _make(stage, _avnadmin(stage, "WITH ADMIN OPTION"))
    assert _make(stage, "avnadmin") == told  # as long as it is amiss
    signal, slots = told
    assert {signal["S"], slots["S"]} == {"WARNING"}
    assert "terminates only those of roles that it is a member of" in signal["M"]
    assert 'permission denied to grant role "pg_signal_backend"' in signal["M"]
    assert "cannot connect to a server that is full" in slots["M"]
    assert "fallback_secret" in slots["H"]

    _app_of(stage, "avnadmin")
    mine, other = stage.session(LEAK, "app"), stage.session(LEAK, "other")
    stage.target()
    run = stage.reap()
    assert run.outcomes() == {mine.pid: "denied", other.pid: "denied"}
    assert "grant-signal-backend" in _advice(run)

    _run_as(stage, "avnadmin", _grant_in(signal["H"]))
    assert stage.reap().outcomes() == {mine.pid: "terminated", other.pid: "denied"}
    assert not mine.is_there
    assert other.is_there


@from_16
def test_no_role_is_created_without_visibility_and_the_admin_can_be_used(
    own_server: OwnServer,
) -> None:
    stage = _bare(own_server)
    _avnadmin(stage)
    with pytest.raises(DatabaseError, match="would see no session") as refused:
        _run_as(stage, "avnadmin", ROLE_FILE.read_text())
    error = refused.value.args[0]
    assert error["C"] == "42501"
    assert "permission denied to grant role" in error["M"]
    assert not stage.root.run("SELECT FROM pg_roles WHERE rolname = 'session_reaper'")

    _app_of(stage, "avnadmin")
    leak = stage.session(LEAK, "app")
    assert "the secret name avnadmin" in error["H"]
    stage.target(username="avnadmin")
    assert stage.reap().outcomes() == {leak.pid: "denied"}
    _run_as(stage, "avnadmin", _grant_in(error["H"]))
    assert stage.reap().outcomes() == {leak.pid: "terminated"}


def test_existing_memberships_without_inherit_are_repaired(own_server: OwnServer) -> None:
    stage = _bare(own_server)
    stage.root.run(
        f"CREATE ROLE {REAPER} NOINHERIT IN ROLE pg_read_all_stats, pg_signal_backend"
        f" PASSWORD {literal(PASSWORD)}"
    )
    ((_, _, sees, signals, *_),) = stage.root.run(ROLE_FILE.read_text())
    assert (sees, signals) == (True, True)
    leak = stage.session(LEAK)
    stage.target()
    assert stage.reap().outcomes() == {leak.pid: "terminated"}


# -- the limits of the role ------------------------------------------------------------------------


@pytest.fixture
def reaper(stage: Stage) -> Iterator[Any]:
    with closing(stage.connect(REAPER, tcp=True)) as connection:
        yield connection


_FORBIDDEN = (
    "SELECT * FROM public.orders",
    "DELETE FROM public.orders",
    "SELECT rolpassword FROM pg_authid",
    "SELECT pg_read_file('postgresql.conf')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "ALTER ROLE app PASSWORD 'mine'",
    "ALTER ROLE session_reaper SUPERUSER",
    "ALTER ROLE session_reaper CONNECTION LIMIT -1",
    "SET ROLE app",
    "GRANT app TO session_reaper",
    "GRANT pg_signal_backend TO app",
)


def test_the_role_can_neither_read_nor_create_nor_grant_anything(
    stage: Stage,
    reaper: Any,  # noqa: ANN401 -- untyped
) -> None:
    stage.role("app")
    stage.root.run("CREATE TABLE public.orders (id integer)")
    stage.cleanup(stage.root.run, "DROP TABLE public.orders")

    def refusal(sql: str) -> str | None:
        try:
            reaper.run(sql)
        except DatabaseError as error:
            return str(error.args[0]["C"])
        return None

    assert {sql: refusal(sql) for sql in _FORBIDDEN} == dict.fromkeys(_FORBIDDEN, "42501")


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_the_role_cannot_terminate_a_superusers_session(
    stage: Stage,
    reaper: Any,  # noqa: ANN401 -- untyped
    function: str,
) -> None:
    stage.role("boss", "SUPERUSER")
    session = stage.session(IDLE, "boss")
    with pytest.raises(DatabaseError) as refused:
        reaper.run(f"SELECT {function}(:pid)", pid=session.pid)
    assert refused.value.args[0]["C"] == "42501"
    assert session.is_there


def test_the_role_can_use_five_slots_at_most(stage: Stage) -> None:
    for _ in range(5):
        stage.cleanup(stage.connect(REAPER, tcp=True).close)
    with pytest.raises(DatabaseError) as refused:
        stage.connect(REAPER, tcp=True)
    error = refused.value.args[0]
    # The role's own limit, checked before the server's slots.
    assert (error["C"], error["R"]) == ("53300", "InitializeSessionUserId")


def test_the_role_has_a_statement_timeout_and_hides_no_timeout_of_the_server(stage: Stage) -> None:
    stage.root.run(ROLE_FILE.read_text())  # another test may have taken a setting away
    reaper = stage.connect(REAPER, tcp=True)
    stage.cleanup(reaper.close)
    settings = {
        "statement_timeout": "10s",
        "lock_timeout": "2s",
        "search_path": "pg_catalog",
    }
    for name, value in settings.items():
        assert reaper.run(f"SHOW {name}") == [[value]], name
    ((config,),) = stage.root.run(f"SELECT rolconfig FROM pg_roles WHERE rolname = '{REAPER}'")  # noqa: S608 -- a name
    assert {setting.partition("=")[0] for setting in config} == set(settings)
