"""Missing privileges of the reaper's role, and full servers."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.integration.stage import ACTIVE, IDLE, LEAK, assert_true_to, policy, rule, until
from tests.integration.wire import Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Stage

pytestmark = pytest.mark.every_major


# -- grants ----------------------------------------------------------------------------------------


def test_a_role_that_cannot_see_other_sessions_makes_the_target_blind(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.role("peeper", "IN ROLE pg_signal_backend")
    stage.target(username="peeper")
    run = stage.reap()
    assert run.target()["status"] == "blind"
    assert run.error()["code"] == "42501"
    inherit = " WITH INHERIT TRUE" if stage.server.major >= 16 else ""
    grant = f'GRANT pg_read_all_stats TO "peeper"{inherit};'
    assert run.error()["hint"] == grant
    assert run.document["status"] == "failed"
    assert run.document["totals"]["failed"] == 1
    assert grant in run.said
    assert leak.is_there


def test_the_target_is_blind_even_without_other_sessions(stage: Stage) -> None:
    stage.role("peeper")
    stage.target(username="peeper")
    assert stage.reap().target()["status"] == "blind"


def test_the_hint_fixes_a_noinherit_role(stage: Stage) -> None:
    stage.session(LEAK)
    stage.role("peeper", "NOINHERIT IN ROLE pg_read_all_stats, pg_signal_backend")
    stage.target(username="peeper")
    blind = stage.reap()
    assert blind.target()["status"] == "blind"
    stage.root.run(blind.error()["hint"])
    seeing = stage.run({"mode": "observe", "policy": policy()})
    assert seeing.target()["status"] == "ok"
    for advice in seeing.target()["advice"]:
        if advice["code"] == "grant-signal-backend":
            stage.root.run(advice["sql"])
    assert list(stage.reap().outcomes().values()) == ["terminated"]


@pytest.mark.majors(16, 99)
def test_the_hint_fixes_a_grant_without_inheritance(stage: Stage) -> None:
    stage.role("peeper")
    stage.root.run("GRANT pg_read_all_stats, pg_signal_backend TO peeper WITH INHERIT FALSE")
    stage.target(username="peeper")
    blind = stage.reap()
    assert blind.target()["status"] == "blind"
    stage.root.run(blind.error()["hint"])
    assert stage.reap().target()["status"] == "ok"


@pytest.mark.parametrize(
    "function",
    ["pg_stat_get_activity(integer)", "pg_postmaster_start_time()", "pg_is_in_recovery()"],
)
def test_the_hint_fixes_a_revoked_function(stage: Stage, function: str) -> None:
    leak = stage.session(LEAK)
    stage.root.run(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    stage.cleanup(stage.root.run, f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC")
    run = stage.reap()
    assert (run.target()["status"], run.error()["code"]) == ("failed", "42501")
    assert run.emails
    where, grants = run.error()["hint"].split(": ", 1)
    assert where == "In database postgres, as a superuser or the master user"
    for grant in grants.split("; "):
        stage.root.run(grant)
    assert stage.reap().outcomes() == {leak.pid: "terminated"}


@pytest.mark.parametrize("name", ["pg_terminate_backend", "pg_cancel_backend"])
def test_the_advice_fixes_a_revoked_signal_function(stage: Stage, name: str) -> None:
    cancels = name == "pg_cancel_backend"
    victim = stage.session(ACTIVE if cancels else LEAK)
    rules = rule(state=[ACTIVE], role=["app"], action="cancel") if cancels else rule()
    ((arguments,),) = stage.root.run(
        "SELECT pg_get_function_identity_arguments(CAST(:name AS regproc))", name=name
    )
    stage.root.run(f"REVOKE EXECUTE ON FUNCTION {name}({arguments}) FROM PUBLIC")
    stage.cleanup(stage.root.run, f"GRANT EXECUTE ON FUNCTION {name}({arguments}) TO PUBLIC")
    run = stage.reap(rules)
    assert run.outcomes() == {victim.pid: "denied"}
    assert run.emails
    (advice,) = (a for a in run.target()["advice"] if a["code"] == "grant-functions")
    checked = stage.run({"check": True})
    assert advice in checked.target()["advice"]
    stage.root.run(advice["sql"])
    done = "cancelled" if cancels else "terminated"
    assert stage.reap(rules).outcomes() == {victim.pid: done}


def test_a_privilege_that_is_revoked_after_the_snapshot_is_reported(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.role("peeper", "IN ROLE pg_read_all_stats, pg_signal_backend")

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_TERMINATE:
            stage.root.run("REVOKE pg_read_all_stats FROM peeper")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port, username="peeper")
        run = stage.reap()
        assert leak.is_there
        assert run.outcomes() == {leak.pid: "denied"}
        assert "hidden" in run.session(leak)["reason"]
        assert run.target()["status"] == "blind"
        assert run.emails
        stage.root.run(run.error()["hint"])
    stage.aws.put_secret("again", stage.secret(username="peeper"))
    stage.listed("again")
    assert stage.run({"policy": policy(), "targets": ["again"]}).target("again")["status"] == "ok"


def test_the_hint_quotes_the_role_s_name(stage: Stage) -> None:
    name = 'o\'brien "the peeper"'
    stage.role(name)
    stage.target(username=name)
    run = stage.reap()
    stage.root.run(run.error()["hint"])
    assert stage.reap().target()["status"] == "ok"


def test_a_denied_signal_is_reported_for_each_session(stage: Stage) -> None:
    inherit = " WITH INHERIT TRUE" if stage.server.major >= 16 else ""
    leaks = stage.sessions(3)
    stage.role("watcher", "IN ROLE pg_read_all_stats")
    stage.target(username="watcher")
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "denied" for leak in leaks}
    assert stage.survivors(leaks) == leaks
    assert run.document["totals"]["denied"] == 3
    slots = run.target()["slots"]
    assert slots["used_after"] == slots["used_before"]  # no signal was sent
    assert "3 sessions denied" in run.email.subject
    (advice,) = (a for a in run.target()["advice"] if a["code"] == "grant-signal-backend")
    assert advice["sql"] == f'GRANT pg_signal_backend TO "watcher"{inherit};'
    assert advice["sql"] in run.email.body


@pytest.mark.parametrize("order", [("app", "other"), ("other", "app")], ids=" then ".join)
def test_a_denied_signal_does_not_hide_the_others(stage: Stage, order: tuple[str, str]) -> None:
    """In one statement for all sessions, a denied signal would hide the ones before it."""
    stage.role("app")
    stage.role("other")
    stage.role("boss", "SUPERUSER")
    leaks = []
    for _ in range(3):
        leaks += [stage.session(LEAK, role) for role in order]
        stage.session(LEAK, "boss")
    stage.role("watcher", "IN ROLE pg_read_all_stats, app")
    stage.target(username="watcher")
    run = stage.reap()
    mine, others = leaks[order.index("app") :: 2], leaks[order.index("other") :: 2]
    assert run.outcomes() == {
        **{leak.pid: "terminated" for leak in mine},
        **{leak.pid: "denied" for leak in others},
    }
    assert stage.survivors(leaks) == others
    assert run.document["status"] == "ok"


def test_a_session_escapes_beside_a_denied_one(stage: Stage) -> None:
    stage.role("watcher", "IN ROLE pg_read_all_stats")
    escaping, mine, denied = (stage.session(LEAK, role) for role in ("app", "app", "other"))
    stage.root.run("GRANT app TO watcher")

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_TERMINATE:
            escaping.connection.run("COMMIT")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(username="watcher", port=proxy.port)
        run = stage.reap()
    assert run.outcomes() == {
        escaping.pid: "escaped",
        mine.pid: "terminated",
        denied.pid: "denied",
    }
    assert escaping.is_there


@pytest.mark.thorough
def test_the_report_is_true_if_the_time_ends_between_two_signals(stage: Stage) -> None:
    stage.role("watcher", "IN ROLE pg_read_all_stats")
    leaks = [stage.session(LEAK, role) for role in ("app", "other", "app", "other")]
    stage.root.run("GRANT app TO watcher")
    signals = 0

    def before(moment: Moment) -> None:
        nonlocal signals
        signals += moment is Moment.TERMINATE
        if signals == 2 and moment is Moment.TERMINATE:
            end = _clock(stage) + 3
            until(lambda: _clock(stage) > end, "half of the remaining time is over")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(username="watcher", port=proxy.port)
        run = stage.reap(seconds=6)
    assert_true_to(run, leaks)


def _clock(stage: Stage) -> float:
    ((now,),) = stage.root.run("SELECT extract(epoch FROM clock_timestamp())::float8")
    return float(now)


def test_a_wrong_password_is_reported_with_a_hint(stage: Stage) -> None:
    stage.target(password="wrong")  # noqa: S106 -- a wrong one
    run = stage.reap()
    assert run.error()["code"] == "28P01"
    assert "password" in run.error()["hint"]


def test_an_unknown_database_fails_the_target(stage: Stage) -> None:
    stage.target(dbname="nowhere")
    assert stage.reap().error()["code"] == "3D000"


def test_a_database_that_accepts_no_connections_fails_the_target(stage: Stage) -> None:
    stage.database("closed", "ALLOW_CONNECTIONS false")
    stage.target(dbname="closed")
    assert stage.reap().error()["code"] == "55000"


def test_a_database_without_connect_privilege_fails_the_target(stage: Stage) -> None:
    stage.database("private")
    stage.root.run("REVOKE CONNECT ON DATABASE private FROM PUBLIC")
    stage.target(dbname="private")
    run = stage.reap()
    assert run.error()["code"] == "42501"
    assert run.target()["status"] == "failed"


# -- slots -----------------------------------------------------------------------------------------


def test_a_server_without_a_free_slot_is_full(own_server: Callable[..., Stage]) -> None:
    stage = own_server({"max_connections": "10"})
    stage.role("boss", "SUPERUSER")
    leaks = stage.fill()  # every ordinary slot
    run = stage.reap(seconds=8)
    assert run.target()["status"] == "full"
    assert run.error()["code"] == "53300"
    assert "reserved_connections" in run.error()["hint"]
    assert run.document["status"] == "failed"
    assert "orders: full, " in run.email.subject
    assert stage.survivors(leaks) == leaks
    stage.fill("boss")  # every slot
    run = stage.reap(seconds=8)
    assert (run.target()["status"], run.error()["code"]) == ("full", "53300")


def test_a_server_full_of_connections_that_never_logged_in_is_full(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": "6", "superuser_reserved_connections": "2"})
    parameters = b"user\0session_reaper\0database\0postgres\0\0"
    with ExitStack() as stack:

        def begin_login() -> bool:
            raw = socket.create_connection((stage.server.host, stage.server.port), timeout=5)
            stack.enter_context(raw)
            raw.sendall(struct.pack("!ii", len(parameters) + 8, 196608) + parameters)
            return raw.recv(1) == b"R"  # it requests a password

        for _ in range(5):  # the sixth slot is the superuser's
            until(begin_login, "a slot is free: sessions of the set-up exit")
        run = stage.reap(seconds=8)
    assert (run.target()["status"], run.error()["code"]) == ("full", "53300")


def test_a_role_at_its_connection_limit_fails_the_target(stage: Stage) -> None:
    stage.role("limited", "CONNECTION LIMIT 1 IN ROLE pg_read_all_stats")
    stage.cleanup(stage.connect("limited").close)
    stage.target(username="limited")
    run = stage.reap()
    assert (run.target()["status"], run.error()["code"]) == ("failed", "53300")
    assert "limited" in run.error()["message"]


@pytest.mark.majors(16, 99)
def test_a_full_server_is_reaped_through_a_reserved_slot(
    own_server: Callable[..., Stage],
) -> None:
    stage = own_server({"max_connections": "10", "reserved_connections": "2"})
    healthy = stage.session(IDLE)
    leaks = stage.fill()
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated" for leak in leaks}
    assert run.target()["slots"] == {
        "max": 10,
        "reserved": 5,
        "usable": 5,
        "used_before": 5,
        "used_after": 2,
    }
    assert stage.session(IDLE).is_there  # the application can connect again
    assert healthy.is_there


def test_every_kind_of_reserved_slot_counts(own_server: Callable[..., Stage]) -> None:
    settings = {
        "max_connections": "20",
        "superuser_reserved_connections": "4",
        "rds.rds_reserved_connections": "2",
        "rds.rds_superuser_reserved_connections": "3",
    }
    stage = own_server(settings)
    reserved = 6 if stage.server.major >= 16 else 9
    slots = stage.reap().target()["slots"]
    assert (slots["max"], slots["reserved"], slots["usable"]) == (20, reserved, 20 - reserved)


def test_used_slots_count_client_sessions_except_our_own(stage: Stage) -> None:
    stage.role("copier", "REPLICATION")
    walsender = stage.connect("copier", replication="database", tcp=True)
    stage.cleanup(walsender.close)
    stage.sessions(2, IDLE)
    slots = stage.reap(rule()).target()["slots"]
    assert (slots["used_before"], slots["used_after"]) == (3, 3)
