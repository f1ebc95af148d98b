"""A session that has changed since the snapshot is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.deadline import Deadline
from session_reaper.policy.enums import Action
from session_reaper.postgres.server import Server
from session_reaper.postgres.signals import Signal
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.sessions.session import Identity, State, WaitGuard
from session_reaper.sessions.snapshot import ALL_SESSIONS
from session_reaper.settings import read_settings
from session_reaper.targets.target import Target

from tests.integration.stage import ABORTED, ACTIVE, IDLE, LEAK, REAPER, until
from tests.integration.wire import Moment, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.stage import Stage, Victim

pytestmark = pytest.mark.every_major

SIGNALS = [Action.TERMINATE, Action.CANCEL]


def _statement(victim: Victim) -> None:
    victim.connection.run("SELECT 2")


def _next_transaction(victim: Victim) -> None:
    for statement in ("COMMIT", "BEGIN", "SELECT 1"):
        victim.connection.run(statement)


def _commit(victim: Victim) -> None:
    victim.connection.run("COMMIT")


def _work(victim: Victim) -> None:
    victim.start("SELECT pg_sleep(60)")


def _end(victim: Victim) -> None:
    victim.connection.close()
    until(lambda: not victim.is_there, "the session has ended")


_CHANGES = {
    "ran another statement of its transaction": _statement,
    "began the next transaction": _next_transaction,
    "committed": _commit,
    "became active": _work,
    "ended by itself": _end,
}


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES.keys())
def test_a_session_is_left_alone_if_it(stage: Stage, change: Callable[[Victim], None]) -> None:
    changing, leak = stage.session(LEAK), stage.session(LEAK)

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_TERMINATE:
            change(changing)

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert run.outcomes() == {changing.pid: "escaped", leak.pid: "terminated"}
    assert changing.is_there == (change is not _end)
    assert not leak.is_there
    assert run.document["totals"]["escaped"] == 1
    assert run.document["status"] == "ok"


def test_a_run_in_which_all_sessions_escape_sends_no_summary(stage: Stage) -> None:
    leak = stage.session(LEAK)

    def before(moment: Moment) -> None:
        if moment is Moment.PREPARE_TERMINATE:
            leak.connection.run("COMMIT")

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert run.outcomes() == {leak.pid: "escaped"}
    assert run.emails == []


def test_the_reaper_itself_is_never_in_a_transaction_block(stage: Stage) -> None:
    stage.session(LEAK)
    shown: set[tuple[str, object]] = set()

    def before(moment: Moment) -> None:
        if moment in {Moment.PREPARE_TERMINATE, Moment.TERMINATE, Moment.VERIFY}:
            rows = stage.root.run(
                "SELECT state, xact_start FROM pg_stat_activity WHERE usename = 'session_reaper'"
            )
            shown.update(tuple(row) for row in rows)

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        stage.reap()
    assert shown == {("idle", None)}


@pytest.fixture
def reaper(stage: Stage) -> Iterator[Server]:
    stage.target()
    (target,) = TargetDiscovery(read_settings(), bypass_cache=True).find([], Deadline(10))
    assert isinstance(target, Target)
    server = Server.connect(target, Deadline(10))
    yield server
    server.close()


def _identity_of(reaper: Server, victim: Victim) -> Identity:
    snapshot = reaper.take_snapshot(ALL_SESSIONS, Deadline(10))
    (identity,) = (s.identity for s in snapshot.sessions if s.identity.pid == victim.pid)
    return identity


def _signal(reaper: Server, identity: Identity, action: Action = Action.TERMINATE) -> Signal:
    (answer,) = reaper.signal([identity], action, Deadline(10))
    assert isinstance(answer, Signal)
    return answer


_MOMENT = "2020-01-01T00:00:00.000001+00:00"
_IN_ONE_FIELD: dict[str, dict[str, Any]] = {
    "reused pid": {"backend_start": _MOMENT},
    "xact_start": {"xact_start": _MOMENT},
    "no xact_start": {"xact_start": None},
    "state_change": {"state_change": _MOMENT},
    "no state_change": {"state_change": None},
    "query_start": {"query_start": _MOMENT},
    "no query_start": {"query_start": None},
    "state": {"state": State.IDLE_IN_TRANSACTION_ABORTED},
    "no such pid": {"pid": 2**31 - 1},
}


@pytest.mark.parametrize("action", SIGNALS)
@pytest.mark.parametrize("field", _IN_ONE_FIELD.values(), ids=_IN_ONE_FIELD.keys())
def test_a_session_that_changed_in_a_single_field_is_not_signalled(
    stage: Stage, reaper: Server, field: dict[str, Any], action: Action
) -> None:
    victim = stage.session(ACTIVE)
    other = replace(_identity_of(reaper, victim), **field)
    assert _signal(reaper, other, action) is Signal.ESCAPED
    assert victim.state == ACTIVE


@pytest.mark.parametrize("action", SIGNALS)
def test_the_pid_of_another_session_is_not_signalled(
    stage: Stage, reaper: Server, action: Action
) -> None:
    victim, other = stage.session(ACTIVE), stage.session(ACTIVE)
    identity = replace(_identity_of(reaper, victim), pid=other.pid)
    assert _signal(reaper, identity, action) is Signal.ESCAPED
    assert (victim.state, other.state) == (ACTIVE, ACTIVE)


@pytest.mark.parametrize("action", SIGNALS)
def test_a_walsender_is_not_signalled_even_if_every_field_matches(
    stage: Stage, reaper: Server, action: Action
) -> None:
    stage.role("copier", "REPLICATION")
    connection = stage.connect("copier", replication="database", tcp=True)
    stage.cleanup(connection.close)
    connection.run("IDENTIFY_SYSTEM")
    ((own,),) = stage.root.run(
        "SELECT json_build_object('pid', pid, 'backend_start', backend_start, 'xact_start',"
        " xact_start, 'state_change', state_change, 'query_start', query_start, 'state', state)"
        " FROM pg_stat_activity WHERE backend_type = 'walsender'"
    )
    identity = Identity(**own | {"state": State(own["state"])})
    assert _signal(reaper, identity, action) is Signal.ESCAPED
    connection.run("IDENTIFY_SYSTEM")


def test_a_reused_pid_does_not_count_as_the_signalled_session(stage: Stage, reaper: Server) -> None:
    victim = stage.session(LEAK)
    identity = _identity_of(reaper, victim)
    earlier = replace(identity, backend_start=_MOMENT)
    for action in SIGNALS:
        assert reaper.verify([(identity, action)], Deadline(10)).remaining == {victim.pid}
        assert reaper.verify([(earlier, action)], Deadline(10)).remaining == set()


def test_a_verification_counts_hidden_sessions_too(stage: Stage, reaper: Server) -> None:
    victims = stage.sessions(3)
    stage.root.run(f"REVOKE pg_read_all_stats FROM {REAPER}")
    stage.cleanup(stage.root.run, f"GRANT pg_read_all_stats TO {REAPER}")
    found = reaper.verify([], Deadline(10))
    assert (found.used, found.can_see) == (len(victims) + 1, False)  # and the superuser's own


def test_an_unchanged_session_is_signalled(stage: Stage, reaper: Server) -> None:
    victims = [stage.session(state) for state in (IDLE, LEAK, ABORTED, ACTIVE)]
    for victim in victims:
        assert _signal(reaper, _identity_of(reaper, victim)) is Signal.SENT
    until(lambda: stage.survivors(victims) == [], "all victims are gone")
    running = stage.session(ACTIVE)
    assert _signal(reaper, _identity_of(reaper, running), Action.CANCEL) is Signal.SENT
    until(lambda: running.state == IDLE, "its query is cancelled")


_SLEEPING = {"wait_event_type": "Timeout", "wait_event": "PgSleep"}


@pytest.mark.parametrize("action", SIGNALS)
@pytest.mark.parametrize(
    "guard",
    [
        {"wait_event_type": "Client"},
        {"wait_event": "ClientWrite"},
        {**_SLEEPING, "wait_event": "ClientWrite"},
        {**_SLEEPING, "wait_event_type": "Client"},
        {"other_than": "PgSleep"},
        {"waits_for_lock": True},
        {"none_of": ("Client:%", "Timeout:%")},
        {"none_of": ("%:PgS__ep",)},
    ],
    ids=str,
)
def test_a_session_that_waits_for_something_else_is_not_signalled(
    stage: Stage, reaper: Server, guard: dict[str, Any], action: Action
) -> None:
    victim = stage.session(ACTIVE)
    until(lambda: victim.read_column("wait_event") == "PgSleep", "it sleeps")
    identity = _identity_of(reaper, victim)
    guards = {victim.pid: WaitGuard(**guard)}
    assert list(reaper.signal([identity], action, Deadline(10), guards)) == [Signal.WAITING]
    assert victim.state == ACTIVE


@pytest.mark.parametrize(
    "guard",
    [
        {},
        _SLEEPING,
        {**_SLEEPING, "waits_for_lock": None},
        {"other_than": "ClientRead", "waits_for_lock": None},
        {"none_of": ("Client:%", "Timeout:PgS", "%:Pg\\_leep")},
    ],
    ids=str,
)
def test_a_session_that_waits_for_what_its_rule_says_is_signalled(
    stage: Stage, reaper: Server, guard: dict[str, Any]
) -> None:
    victim = stage.session(ACTIVE)
    until(lambda: victim.read_column("wait_event") == "PgSleep", "it sleeps")
    identity = _identity_of(reaper, victim)
    guards = {victim.pid: WaitGuard(**guard)}
    signals = list(reaper.signal([identity], Action.TERMINATE, Deadline(10), guards))
    assert signals == [Signal.SENT]


def test_a_session_that_does_not_wait_is_signalled(stage: Stage, reaper: Server) -> None:
    victim = stage.session(ACTIVE, query="DO $$ BEGIN LOOP END LOOP; END $$")
    identity = _identity_of(reaper, victim)
    guards = {victim.pid: WaitGuard(none_of=("%:%",), other_than="ClientRead")}
    signals = list(reaper.signal([identity], Action.TERMINATE, Deadline(10), guards))
    assert signals == [Signal.SENT]


def test_a_session_without_a_query_waits_for_no_lock(stage: Stage, reaper: Server) -> None:
    victim = stage.session(LEAK)
    identity = _identity_of(reaper, victim)
    guards = {victim.pid: WaitGuard(waits_for_lock=True)}
    signals = list(reaper.signal([identity], Action.TERMINATE, Deadline(10), guards))
    assert signals == [Signal.WAITING]
    assert victim.is_there


def test_a_difference_of_one_microsecond_prevents_the_signal(stage: Stage, reaper: Server) -> None:
    victim = stage.session(LEAK)
    identity = _identity_of(reaper, victim)
    for name in ("backend_start", "xact_start", "state_change", "query_start"):
        text = str(getattr(identity, name))
        ((later,),) = stage.root.run(
            "SELECT to_json(CAST(:at AS timestamptz) + interval '1 microsecond')::text", at=text
        )
        other = replace(identity, **{name: later.strip('"')})
        assert _signal(reaper, other) is Signal.ESCAPED
    assert victim.is_there


def test_the_role_s_date_and_number_formats_do_not_matter(stage: Stage) -> None:
    stage.root.run("ALTER ROLE session_reaper SET DateStyle = 'German, DMY'")
    stage.root.run("ALTER ROLE session_reaper SET TimeZone = 'Asia/Kathmandu'")
    stage.root.run("ALTER ROLE session_reaper SET IntervalStyle = 'sql_standard'")
    stage.root.run("ALTER ROLE session_reaper SET extra_float_digits = -15")
    stage.cleanup(_reset_settings, stage)
    leak = stage.session(LEAK)
    assert stage.reap().outcomes() == {leak.pid: "terminated"}


def _reset_settings(stage: Stage) -> None:
    for name in ("DateStyle", "TimeZone", "IntervalStyle", "extra_float_digits"):
        stage.root.run(f"ALTER ROLE session_reaper RESET {name}")


def test_an_active_session_does_not_match_and_is_not_signalled(stage: Stage) -> None:
    victim = stage.session(ACTIVE)
    run = stage.reap()
    assert run.outcomes() == {}
    assert victim.is_there
