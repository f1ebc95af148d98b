"""Servers that refuse, hang, drip, reset or lie: the run ends in time and reports the truth."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.integration.stage import ACTIVE, IDLE, LEAK, PATIENCE, assert_true_to, rule, until
from tests.integration.wire import (
    Action,
    FailSignal,
    Fault,
    Impostor,
    Moment,
    Proxy,
    drip,
    hang,
    hang_up,
    say,
    say_and_hang,
    unused_port,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Stage

SIGNED_IN = b"R\0\0\0\x08\0\0\0\0"
NOTICE = b"N\0\0\x10\0" + b"x" * 4091
HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad"

BEFORE_ANY_SIGNAL = (Moment.STARTUP, Moment.LOGIN, Moment.SNAPSHOT, Moment.PREPARE_TERMINATE)


# -- before the login ------------------------------------------------------------------------------

_IMPOSTORS: dict[str, tuple[Callable[..., None], str, set[str]]] = {
    "resets at once": (hang_up, "disable", {"connection"}),
    "resets when asked for TLS": (hang_up, "require", {"connection", "protocol"}),
    "closes at once": (say(b""), "disable", {"connection"}),
    "closes when asked for TLS": (say(b""), "require", {"connection", "protocol"}),
    "says no to TLS": (say(b"N"), "require", {"tls"}),
    "speaks HTTP": (say(HTTP), "disable", {"protocol", "connection"}),
    "speaks HTTP when asked for TLS": (say(HTTP), "require", {"protocol"}),
    "says yes to TLS and then HTTP": (say(b"S" + HTTP), "require", {"connection", "tls"}),
    "sends a message that does not exist": (
        say(b"~\0\0\0\x04"),
        "disable",
        {"connection", "protocol"},
    ),
    "sends a negative length": (say(b"R\xff\xff\xff\xff"), "disable", {"connection", "protocol"}),
    "wants Kerberos": (say(b"R\0\0\0\x08\0\0\0\x07"), "disable", {"auth"}),
    "sends half a message": (say(b"R\0\0"), "disable", {"connection"}),
    "sends garbage SCRAM": (
        say(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0" + b"R\0\0\0\x0c\0\0\0\x0b\xff\xfe\xfd\xfc"),
        "disable",
        {"connection", "protocol"},
    ),
}


@pytest.mark.parametrize("name", _IMPOSTORS)
def test_a_misbehaving_server_fails_alone_and_in_time(stage: Stage, name: str) -> None:
    answer, sslmode, codes = _IMPOSTORS[name]
    stage.target("healthy", name="healthy")
    leak = stage.session(LEAK)
    with Impostor(answer) as impostor:
        stage.target("broken", port=impostor.port, sslmode=sslmode)
        run = stage.reap()
    assert run.seconds < PATIENCE
    assert run.target("broken")["status"] == "failed"
    error = run.error("broken")
    assert error["code"] in codes, error
    assert error["hint"]
    assert run.outcomes("healthy") == {leak.pid: "terminated"}
    assert run.document["status"] == "partial"
    assert "broken: failed, " in run.email.subject
    assert error["hint"][:40] in run.email.body


def test_a_server_that_refuses_the_connection_has_its_own_error(stage: Stage) -> None:
    stage.target("broken", port=unused_port())
    run = stage.reap()
    assert run.error("broken")["code"] == "connection"
    assert "refused" in run.error("broken")["message"]
    assert run.document["status"] == "failed"


def test_an_unknown_host_is_an_error_of_its_target(stage: Stage) -> None:
    stage.target("broken", host="no-such-host.invalid")
    run = stage.reap(seconds=5)
    assert run.error("broken")["code"] == "dns"


@pytest.mark.parametrize("host", ["db..example.com", ".example.com", "x" * 64 + ".example.com"])
def test_an_invalid_host_name_is_an_error_of_its_target(stage: Stage, host: str) -> None:
    stage.target("broken", host=host)
    run = stage.reap(seconds=5)
    assert run.error("broken")["code"] in {"dns", "secret"}


def test_hostile_servers_of_every_kind_do_not_affect_a_healthy_one(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target("healthy", name="healthy")
    answers = [hang, hang, hang_up, say(HTTP), say(b""), say_and_hang(SIGNED_IN)]
    answers += [drip(SIGNED_IN + NOTICE), drip(b"S", 1), drip(b"E\0\0\0\xff" + b"x" * 200)] * 4
    with ExitStack() as stack:
        for number, answer in enumerate(answers):
            impostor = stack.enter_context(Impostor(answer))
            stage.target(f"hostile-{number}", port=impostor.port)
        run = stage.reap(seconds=3)
        assert run.seconds < 3 + PATIENCE
        assert len(run.emails) == 1
    assert run.outcomes("healthy") == {leak.pid: "terminated"}
    assert run.document["totals"]["failed"] == len(answers)
    for number in range(len(answers)):
        assert run.target(f"hostile-{number}")["status"] == "failed"
        assert run.error(f"hostile-{number}")["code"] != "internal"


def test_many_hanging_servers_take_no_longer_than_one(stage: Stage) -> None:
    with Impostor() as silent, Impostor(say_and_hang(b"S")) as tls, ExitStack() as stack:
        stage.target("before-sign-in", port=silent.port)
        stage.target("before-sign-in-too", port=silent.port)
        stage.target("asked-for-TLS", port=silent.port, sslmode="verify-full")
        stage.target("said-yes-to-TLS", port=tls.port, sslmode="require")
        signed_in = stack.enter_context(Impostor(say_and_hang(SIGNED_IN)))
        stage.target("after-sign-in", port=signed_in.port)
        run = stage.reap(seconds=3)
    assert run.seconds < 3 + PATIENCE
    codes = {target["name"]: target["error"]["code"] for target in run.document["targets"]}
    assert codes == dict.fromkeys(codes, "timeout")


def test_a_server_that_drips_leaves_no_thread_and_no_connection(stage: Stage) -> None:
    before = threading.active_count()
    with Impostor(drip(SIGNED_IN + NOTICE)) as impostor:
        threads = threading.active_count() - before
        stage.target("dripping", port=impostor.port)
        run = stage.reap(seconds=1)
        assert run.target("dripping")["status"] == "failed"
        until(
            lambda: threading.active_count() <= before + threads,
            "the thread that listened to the drips has ended",
        )


# -- after the login: every termination is reported ------------------------------------------------

# A hang takes the whole time of the run; the tests above have one at the login.
_CANCELS = [Moment.PREPARE_CANCEL, Moment.CANCEL]
_RESETS = [m for m in Moment if m is not Moment.DISCONNECT and m not in _CANCELS]
_HANGS = [Moment.SNAPSHOT, Moment.TERMINATE, Moment.VERIFY]
_TROUBLES = {
    f"{action.name.lower()}s at {moment.name.lower()}{', its answer lost' if lost else ''}": Fault(
        action=action, moment=moment, lost=lost
    )
    for action, moments in ((Action.RESET, _RESETS), (Action.HANG, _HANGS))
    for moment in moments
    for lost in (False, True)
    if moment is not Moment.SNAPSHOT or not lost
}


@pytest.mark.parametrize("trouble", _TROUBLES.values(), ids=_TROUBLES.keys())
def test_reported_outcomes_are_true_if_every_connection_fails(stage: Stage, trouble: Fault) -> None:
    victims = stage.sessions(3)
    with Proxy(stage.server.port, trouble, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=3 if trouble.action is Action.HANG else 60)
    assert run.seconds < 3 + PATIENCE
    assert len(run.emails) == 1
    assert run.target()["status"] == "failed"
    expected = {"timeout", "deadline"} if trouble.action is Action.HANG else {"connection"}
    assert run.error()["code"] in expected
    assert_true_to(run, victims)
    if trouble.moment in BEFORE_ANY_SIGNAL:
        assert stage.survivors(victims) == victims
    if trouble.moment in {Moment.PREPARE_VERIFY, Moment.VERIFY}:
        assert set(run.outcomes()) == {victim.pid for victim in victims}
        assert stage.survivors(victims) == []


@pytest.mark.parametrize("moment", _CANCELS)
@pytest.mark.parametrize("lost", [False, True])
def test_reported_outcomes_are_true_if_the_connection_is_reset_at_a_cancel(
    stage: Stage, moment: Moment, *, lost: bool
) -> None:
    running = stage.sessions(3, ACTIVE)
    slow = rule("slow", state=[ACTIVE], role=["app"], action="cancel")
    trouble = Fault(action=Action.RESET, moment=moment, lost=lost)
    with Proxy(stage.server.port, trouble) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(slow)
    assert (run.target()["status"], run.error()["code"]) == ("failed", "connection")
    assert stage.survivors(running) == running
    assert set(run.outcomes()) == {session.pid for session in running}
    for session in running:
        outcome = run.outcomes()[session.pid]
        still_at_it = {"lingering", "spared"}
        assert (outcome == "cancelled") == (session.state == IDLE), outcome
        assert outcome in {"cancelled"} | still_at_it


@pytest.mark.parametrize("nth", [1, 2])
def test_a_lost_answer_does_not_hide_terminated_sessions(stage: Stage, nth: int) -> None:
    victims = stage.sessions(30)  # more than one statement signals
    trouble = Fault(action=Action.RESET, moment=Moment.TERMINATE, nth=nth, lost=True)
    with Proxy(stage.server.port, trouble) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert_true_to(run, victims)
    assert run.target()["status"] == "failed"
    assert run.error()["code"] == "connection"
    survivors = stage.survivors(victims)
    assert len(survivors) < 30
    # A second connection verified it.
    assert list(run.outcomes().values()).count("terminated") == 30 - len(survivors)
    assert run.target()["slots"]["used_after"] == 1 + len(survivors)


@pytest.mark.parametrize("sqlstate", ["57014", "XX000"])
def test_an_error_for_one_signal_does_not_hide_other_answers(stage: Stage, sqlstate: str) -> None:
    """The connection still works, so no second one is opened: a second login might be refused."""
    victims = stage.sessions(5)
    with Proxy(stage.server.port, says=FailSignal(2, sqlstate)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
        assert proxy.connections == 1
    assert run.outcomes() == {victim.pid: "terminated" for victim in victims}
    assert run.error()["code"] == sqlstate
    assert run.target()["slots"]["used_after"] == 1  # ours is not counted, the superuser's is


def test_a_session_not_signalled_because_of_an_error_reports_that_error(stage: Stage) -> None:
    victim = stage.session()
    confirmed = {**rule(), "confirm_after": "100ms"}
    trouble = Fault(action=Action.RESET, moment=Moment.SNAPSHOT, nth=2)
    with Proxy(stage.server.port, trouble) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(confirmed)
    assert run.outcomes() == {victim.pid: "spared"}
    assert run.error()["message"] in run.session(victim)["reason"]


def test_slots_not_counted_after_the_signals_are_unknown(stage: Stage) -> None:
    stage.sessions(2)
    terminate = Fault(action=Action.HANG, moment=Moment.TERMINATE, lost=True)
    again = Fault(action=Action.HANG, moment=Moment.VERIFY)
    with Proxy(stage.server.port, terminate, again, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=3)
    assert set(run.outcomes().values()) == {"lingering"}
    assert run.target()["slots"]["used_after"] is None


def test_a_connection_lost_before_a_signal_terminates_no_further_session(stage: Stage) -> None:
    victims = stage.sessions(30)
    trouble = Fault(action=Action.RESET, moment=Moment.TERMINATE, nth=2)
    with Proxy(stage.server.port, trouble) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=2)
    assert_true_to(run, victims)
    assert run.error()["code"] == "connection"
    survivors = stage.survivors(victims)
    assert 0 < len(survivors) < 30
    assert list(run.outcomes().values()).count("terminated") == 30 - len(survivors)


@pytest.mark.parametrize("moment", [Moment.PREPARE_VERIFY, Moment.VERIFY])
def test_a_connection_lost_at_the_verification_does_not_hide_terminations(
    stage: Stage, moment: Moment
) -> None:
    victims = stage.sessions(3)
    with Proxy(stage.server.port, Fault(action=Action.RESET, moment=moment)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert stage.survivors(victims) == []
    assert set(run.outcomes()) == {victim.pid for victim in victims}
    assert set(run.outcomes().values()) <= {"terminated", "lingering"}


@pytest.mark.parametrize("moment", [Moment.TERMINATE, Moment.VERIFY])
def test_reported_outcomes_are_true_if_the_server_drips(stage: Stage, moment: Moment) -> None:
    victims = stage.sessions(3)
    trouble = Fault(action=Action.DRIP, moment=moment, lost=True)
    with Proxy(stage.server.port, trouble, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=2)
    assert run.seconds < 2 + PATIENCE
    assert run.target()["status"] == "failed"
    assert len(run.emails) == 1
    assert_true_to(run, victims)


def test_a_session_verified_as_gone_stays_terminated_if_the_server_then_drips(stage: Stage) -> None:
    victims = stage.sessions(3)
    os.kill(victims[0].pid, signal.SIGSTOP)
    stage.cleanup(os.kill, victims[0].pid, signal.SIGCONT)
    trouble = Fault(action=Action.DRIP, moment=Moment.VERIFY, nth=5, lost=True)
    with Proxy(stage.server.port, trouble, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=3)
    assert list(run.outcomes().values()) == ["lingering", "terminated", "terminated"]
    assert run.target()["status"] == "failed"


def test_a_server_shut_down_during_the_run_is_reported_truthfully(stage: Stage) -> None:
    """An administrator ends our session between snapshot and signal."""
    victims = stage.sessions(2)

    def before(moment: Moment) -> None:
        if moment is Moment.TERMINATE:
            stage.root.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'session_reaper'"
            )

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=2)
    assert run.target()["status"] == "failed"
    assert run.error()["code"] in {"57P01", "connection"}
    assert_true_to(run, victims)
    assert stage.survivors(victims) == victims
