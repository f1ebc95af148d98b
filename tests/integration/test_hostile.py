"""Servers that refuse, hang, reset, lie or send byte by byte: the run ends in time, with a true report."""

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

LOGIN_OK = b"R\0\0\0\x08\0\0\0\0"
NOTICE = b"N\0\0\x10\0" + b"x" * 4091
HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad"

BEFORE_ANY_SIGNAL = (Moment.STARTUP, Moment.LOGIN, Moment.SNAPSHOT, Moment.PREPARE_TERMINATE)


# -- before the login ------------------------------------------------------------------------------

_IMPOSTORS: dict[str, tuple[Callable[..., None], str, set[str]]] = {
    "resets at once": (hang_up, "disable", {"connection"}),
    "resets at the TLS request": (hang_up, "require", {"connection", "protocol"}),
    "closes at once": (say(b""), "disable", {"connection"}),
    "closes at the TLS request": (say(b""), "require", {"connection", "protocol"}),
    "refuses TLS": (say(b"N"), "require", {"tls"}),
    "speaks HTTP": (say(HTTP), "disable", {"protocol", "connection"}),
    "answers the TLS request with HTTP": (say(HTTP), "require", {"protocol"}),
    "accepts TLS and then speaks HTTP": (say(b"S" + HTTP), "require", {"connection", "tls"}),
    "sends an unknown message": (
        say(b"~\0\0\0\x04"),
        "disable",
        {"connection", "protocol"},
    ),
    "sends a negative length": (say(b"R\xff\xff\xff\xff"), "disable", {"connection", "protocol"}),
    "requests Kerberos": (say(b"R\0\0\0\x08\0\0\0\x07"), "disable", {"auth"}),
    "sends half a message": (say(b"R\0\0"), "disable", {"connection"}),
    "sends garbage SCRAM": (
        say(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0" + b"R\0\0\0\x0c\0\0\0\x0b\xff\xfe\xfd\xfc"),
        "disable",
        {"connection", "protocol"},
    ),
}


@pytest.mark.parametrize("name", _IMPOSTORS)
def test_the_target_fails_with_a_hint_if_its_server(stage: Stage, name: str) -> None:
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


def test_a_refused_connection_fails_the_target(stage: Stage) -> None:
    stage.target("broken", port=unused_port())
    run = stage.reap()
    assert run.error("broken")["code"] == "connection"
    assert "refused" in run.error("broken")["message"]
    assert run.document["status"] == "failed"


def test_an_unknown_host_fails_the_target(stage: Stage) -> None:
    stage.target("broken", host="no-such-host.invalid")
    run = stage.reap(seconds=5)
    assert run.error("broken")["code"] == "dns"


@pytest.mark.parametrize("host", ["db..example.com", ".example.com", "x" * 64 + ".example.com"])
def test_an_invalid_host_name_fails_the_target(stage: Stage, host: str) -> None:
    stage.target("broken", host=host)
    run = stage.reap(seconds=5)
    assert run.error("broken")["code"] in {"dns", "secret"}


def test_a_healthy_target_is_reaped_among_many_hostile_servers(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target("healthy", name="healthy")
    answers = [hang, hang, hang_up, say(HTTP), say(b""), say_and_hang(LOGIN_OK)]
    answers += [drip(LOGIN_OK + NOTICE), drip(b"S", 1), drip(b"E\0\0\0\xff" + b"x" * 200)] * 4
    with ExitStack() as stack:
        for number, answer in enumerate(answers):
            impostor = stack.enter_context(Impostor(answer))
            stage.target(f"hostile-{number}", port=impostor.port)
        run = stage.reap(seconds=8)
        assert run.seconds < 8 + PATIENCE
        assert len(run.emails) == 1
    assert run.outcomes("healthy") == {leak.pid: "terminated"}
    assert run.document["totals"]["failed"] == len(answers)
    for number in range(len(answers)):
        assert run.target(f"hostile-{number}")["status"] == "failed"
        assert run.error(f"hostile-{number}")["code"] != "internal"


def test_several_hanging_servers_take_no_longer_than_one(stage: Stage) -> None:
    with Impostor() as silent, Impostor(say_and_hang(b"S")) as tls, ExitStack() as stack:
        stage.target("before-login", port=silent.port)
        stage.target("before-login-too", port=silent.port)
        stage.target("at-the-TLS-request", port=silent.port, sslmode="verify-full")
        stage.target("after-TLS", port=tls.port, sslmode="require")
        logged_in = stack.enter_context(Impostor(say_and_hang(LOGIN_OK)))
        stage.target("after-login", port=logged_in.port)
        run = stage.reap(seconds=6)
    assert run.seconds < 6 + PATIENCE
    codes = {target["name"]: target["error"]["code"] for target in run.document["targets"]}
    assert codes == dict.fromkeys(codes, "timeout")


@pytest.mark.thorough
def test_a_server_that_sends_byte_by_byte_leaves_no_thread_behind(stage: Stage) -> None:
    before = threading.active_count()
    with Impostor(drip(LOGIN_OK + NOTICE)) as impostor:
        threads = threading.active_count() - before
        stage.target("dripping", port=impostor.port)
        run = stage.reap(seconds=5)
        assert run.target("dripping")["status"] == "failed"
        until(
            lambda: threading.active_count() <= before + threads,
            "the thread that read from the server has ended",
        )


# -- after the login: the report must be true ------------------------------------------------------

# A hang takes the whole time of the run; logins that hang are tested above.
_CANCELS = [Moment.PREPARE_CANCEL, Moment.CANCEL]
_RESETS = [m for m in Moment if m is not Moment.DISCONNECT and m not in _CANCELS]
_HANGS = [Moment.SNAPSHOT, Moment.TERMINATE, Moment.VERIFY]
_FAULTS = {
    f"{action.name.lower()}s at {moment.name.lower()}{', its answer lost' if lost else ''}": Fault(
        action=action, moment=moment, lost=lost
    )
    for action, moments in ((Action.RESET, _RESETS), (Action.HANG, _HANGS))
    for moment in moments
    for lost in (False, True)
    if moment is not Moment.SNAPSHOT or not lost
}
_LONGEST = {
    name
    for name, fault in _FAULTS.items()
    if fault.action is Action.HANG and (fault.lost or fault.moment is Moment.SNAPSHOT)
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            id=name,
            marks=[pytest.mark.thorough] if name in _LONGEST else [],
        )
        for name, fault in _FAULTS.items()
    ],
)
def test_the_report_is_true_if_the_server_always(stage: Stage, fault: Fault) -> None:
    victims = stage.sessions(3)
    with Proxy(stage.server.port, fault, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=6 if fault.action is Action.HANG else 60)
    assert run.seconds < 6 + PATIENCE
    assert len(run.emails) == 1
    assert run.target()["status"] == "failed"
    expected = {"timeout", "deadline"} if fault.action is Action.HANG else {"connection"}
    assert run.error()["code"] in expected
    assert_true_to(run, victims)
    if fault.moment in BEFORE_ANY_SIGNAL:
        assert stage.survivors(victims) == victims
    if fault.moment in {Moment.PREPARE_VERIFY, Moment.VERIFY}:
        assert set(run.outcomes()) == {victim.pid for victim in victims}
        assert stage.survivors(victims) == []


@pytest.mark.thorough
@pytest.mark.parametrize("moment", _CANCELS)
@pytest.mark.parametrize("lost", [False, True])
def test_the_report_is_true_if_the_server_resets_at_a_cancel(
    stage: Stage, moment: Moment, *, lost: bool
) -> None:
    running = stage.sessions(3, ACTIVE)
    slow = rule("slow", state=[ACTIVE], role=["app"], action="cancel")
    fault = Fault(action=Action.RESET, moment=moment, lost=lost)
    with Proxy(stage.server.port, fault) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(slow)
    assert (run.target()["status"], run.error()["code"]) == ("failed", "connection")
    assert stage.survivors(running) == running
    assert set(run.outcomes()) == {session.pid for session in running}
    for session in running:
        outcome = run.outcomes()[session.pid]
        assert (outcome == "cancelled") == (session.state == IDLE), outcome
        assert outcome in {"cancelled", "lingering", "spared"}


@pytest.mark.parametrize("nth", [1, 2])
def test_a_lost_answer_does_not_hide_the_terminated_sessions(stage: Stage, nth: int) -> None:
    victims = stage.sessions(30)  # more than one statement signals
    fault = Fault(action=Action.RESET, moment=Moment.TERMINATE, nth=nth, lost=True)
    with Proxy(stage.server.port, fault) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert_true_to(run, victims)
    assert run.target()["status"] == "failed"
    assert run.error()["code"] == "connection"
    survivors = stage.survivors(victims)
    assert len(survivors) < 30
    # A second connection verified them.
    assert list(run.outcomes().values()).count("terminated") == 30 - len(survivors)
    assert run.target()["slots"]["used_after"] == 1 + len(survivors)


@pytest.mark.parametrize("sqlstate", ["57014", "XX000", "53300"])
def test_an_error_for_one_signal_does_not_hide_the_other_answers(
    stage: Stage, sqlstate: str
) -> None:
    """The connection still works, so no second one is made, for which a slot may be missing."""
    victims = stage.sessions(5)
    with Proxy(stage.server.port, says=FailSignal(2, sqlstate)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
        assert proxy.connections == 1
    assert run.outcomes() == {victim.pid: "terminated" for victim in victims}
    assert (run.target()["status"], run.error()["code"]) == ("failed", sqlstate)
    assert run.target()["slots"]["used_after"] == 1  # ours is not counted, the superuser's is


@pytest.mark.thorough
def test_slots_that_were_not_counted_after_the_signals_are_unknown(stage: Stage) -> None:
    stage.sessions(2)
    terminate = Fault(action=Action.HANG, moment=Moment.TERMINATE, lost=True)
    again = Fault(action=Action.HANG, moment=Moment.VERIFY)
    with Proxy(stage.server.port, terminate, again, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=6)
    assert set(run.outcomes().values()) == {"lingering"}
    assert run.target()["slots"]["used_after"] is None


def test_a_connection_lost_before_a_signal_terminates_no_more_sessions(stage: Stage) -> None:
    victims = stage.sessions(30)
    fault = Fault(action=Action.RESET, moment=Moment.TERMINATE, nth=2)
    with Proxy(stage.server.port, fault) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=10)
    assert_true_to(run, victims)
    assert run.error()["code"] == "connection"
    survivors = stage.survivors(victims)
    assert 0 < len(survivors) < 30
    assert list(run.outcomes().values()).count("terminated") == 30 - len(survivors)


@pytest.mark.parametrize("moment", [Moment.PREPARE_VERIFY, Moment.VERIFY])
def test_a_connection_lost_at_verify_does_not_hide_the_terminated_sessions(
    stage: Stage, moment: Moment
) -> None:
    victims = stage.sessions(3)
    with Proxy(stage.server.port, Fault(action=Action.RESET, moment=moment)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert stage.survivors(victims) == []
    assert set(run.outcomes()) == {victim.pid for victim in victims}
    assert set(run.outcomes().values()) <= {"terminated", "lingering"}


@pytest.mark.thorough
@pytest.mark.parametrize("moment", [Moment.TERMINATE, Moment.VERIFY])
def test_the_report_is_true_if_the_server_sends_byte_by_byte_at(
    stage: Stage, moment: Moment
) -> None:
    victims = stage.sessions(3)
    fault = Fault(action=Action.DRIP, moment=moment, lost=True)
    with Proxy(stage.server.port, fault, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=6)
    assert run.seconds < 6 + PATIENCE
    assert run.target()["status"] == "failed"
    assert len(run.emails) == 1
    assert_true_to(run, victims)


@pytest.mark.thorough
def test_a_verified_session_stays_terminated_if_a_later_verify_fails(stage: Stage) -> None:
    victims = stage.sessions(3)
    os.kill(victims[0].pid, signal.SIGSTOP)
    stage.cleanup(os.kill, victims[0].pid, signal.SIGCONT)
    fault = Fault(action=Action.DRIP, moment=Moment.VERIFY, nth=5, lost=True)
    with Proxy(stage.server.port, fault, every=True) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=6)
    assert list(run.outcomes().values()) == ["lingering", "terminated", "terminated"]
    assert run.target()["status"] == "failed"


def test_the_report_is_true_if_the_reaper_s_own_session_is_terminated(stage: Stage) -> None:
    """By an administrator, between snapshot and signal."""
    victims = stage.sessions(2)

    def before(moment: Moment) -> None:
        if moment is Moment.TERMINATE:
            stage.root.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'session_reaper'"
            )

    with Proxy(stage.server.port, before=before) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap(seconds=10)
    assert run.target()["status"] == "failed"
    assert run.error()["code"] in {"57P01", "connection"}
    assert_true_to(run, victims)
    assert stage.survivors(victims) == victims
