"""The command on a terminal: questions, Ctrl-C in every phase, colours, refreshes in place."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

import pytest

from tests.integration.cli import finish, on_terminal, press_ctrl_c, uri
from tests.integration.stage import IDLE, LEAK, PASSWORD, REAPER, Stage, policy, rule, until

if TYPE_CHECKING:
    from collections.abc import Callable

    import pexpect

pytestmark = pytest.mark.every_major
STOPS = pytest.mark.parametrize(
    "number", [Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP], ids=lambda number: number.name
)
COLOUR = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def write_rules(home: Path, **keys: object) -> str:
    path = home / "policy.json"
    path.write_text(json.dumps(policy(rule(idle_for="1ms") | keys)))
    return str(path)


def ask(stage: Stage, home: Path, *arguments: str) -> pexpect.spawn[str]:
    """Start to enforce, and return at the question."""
    terminal = on_terminal(home, "reap", uri(stage), *arguments, "--enforce")
    terminal.expect_exact("[y/N]: ")
    return terminal


# -- the question ----------------------------------------------------------------------------------


def test_the_victims_are_shown_before_they_are_terminated(stage: Stage, home: Path) -> None:
    leaks = stage.sessions(2, LEAK, application_name="nightly")
    terminal = ask(stage, home, "--policy", write_rules(home))
    shown = terminal.before or ""
    assert "nightly@local" in shown
    assert all(str(leak.pid) in shown for leak in leaks)
    assert "Terminate 2 sessions?" in shown
    assert len(stage.survivors(leaks)) == 2
    terminal.sendline("y")
    printed, status = finish(terminal)
    assert "RESOLVED: 2 sessions were terminated and verified gone." in printed
    assert status == 0
    assert stage.survivors(leaks) == []


def test_no_is_the_default_answer(stage: Stage, home: Path) -> None:
    leak = stage.session(LEAK)
    terminal = ask(stage, home, "--policy", write_rules(home))
    terminal.sendline("")
    printed, status = finish(terminal)
    assert "Nothing was signalled." in printed
    assert (status, leak.is_there) == (1, True)


def test_the_end_of_the_input_means_no(stage: Stage, home: Path) -> None:
    leak = stage.session(LEAK)
    terminal = ask(stage, home, "--policy", write_rules(home))
    terminal.sendeof()
    printed, status = finish(terminal)
    assert "Nothing was signalled." in printed
    assert (status, leak.is_there) == (1, True)


def test_only_the_sessions_that_were_shown_are_terminated(stage: Stage, home: Path) -> None:
    shown, changed = stage.session(LEAK), stage.session(LEAK)
    terminal = ask(stage, home, "--policy", write_rules(home))
    later = stage.session(LEAK)
    changed.connection.run("SELECT 2")
    terminal.sendline("y")
    printed, status = finish(terminal)
    assert "1 session was terminated" in printed
    assert status == 1  # the others are left for the next time
    assert not shown.is_there
    assert changed.is_there
    assert later.is_there


def test_a_connection_that_is_lost_at_the_question_is_replaced(stage: Stage, home: Path) -> None:
    leak = stage.session(LEAK)
    terminal = ask(stage, home, "--policy", write_rules(home))
    stage.root.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'session-reaper'"
    )
    terminal.sendline("y")
    _, status = finish(terminal)
    assert (status, leak.is_there) == (0, False)


# -- the password ----------------------------------------------------------------------------------


def test_a_missing_password_is_asked_for_and_not_echoed(stage: Stage, home: Path) -> None:
    without = uri(stage).replace(f":{PASSWORD}@", "@")
    terminal = on_terminal(home, "top", without)
    terminal.expect_exact(f"Password of {REAPER} on ")
    terminal.expect_exact(": ")
    terminal.sendline(PASSWORD)
    printed, status = finish(terminal)
    assert status == 0, printed
    assert "slots" in printed
    assert PASSWORD not in printed


def test_the_end_of_the_input_at_the_password_ends_quietly(stage: Stage, home: Path) -> None:
    terminal = on_terminal(home, "top", uri(stage).replace(f":{PASSWORD}@", "@"))
    terminal.expect_exact("Password of ")
    until(lambda: not terminal.getecho(), "the echo is off")
    terminal.sendeof()
    printed, status = finish(terminal)
    assert "Stopped." in printed
    assert "bug" not in printed
    assert status == status_of(Signals.SIGINT)


# -- Ctrl-C, SIGTERM and SIGHUP --------------------------------------------------------------------


def stop(terminal: pexpect.spawn[str], number: Signals) -> None:
    """Send a signal to a command; SIGINT as Ctrl-C does."""
    if number is Signals.SIGINT:
        terminal.sendintr()
    else:
        terminal.kill(number)


def status_of(number: Signals) -> int:
    """Return the exit status that shells report for a signal."""
    return 128 + number


def assert_clean(stage: Stage, printed: str) -> None:
    """Assert that no session of the command is left, and no traceback was shown."""
    assert "Traceback" not in printed
    until(
        lambda: (
            not stage.root.run(
                "SELECT FROM pg_stat_activity WHERE application_name = 'session-reaper'"
            )
        ),
        "the command's session has ended",
    )


def wait_for_snapshot(stage: Stage) -> None:
    until(
        lambda: stage.root.run(
            "SELECT FROM pg_stat_activity"
            " WHERE application_name = 'session-reaper' AND query LIKE '%json_build_object%'"
        ),
        "the snapshot has been taken",
    )


def test_a_terminal_that_closes_before_a_signal_spares_the_sessions(
    stage: Stage, home: Path
) -> None:
    leak = stage.session(LEAK)
    rules = write_rules(home, confirm_after="30s")
    terminal = on_terminal(home, "reap", uri(stage), "--policy", rules, "--enforce", "--yes")
    wait_for_snapshot(stage)
    os.close(terminal.child_fd)
    until(lambda: not terminal.isalive(), "the command has ended")
    assert (terminal.exitstatus, leak.is_there) == (status_of(Signals.SIGHUP), True)
    assert_clean(stage, "")


@STOPS
def test_a_signal_at_the_question_ends_it_and_signals_nothing(
    stage: Stage, home: Path, number: Signals
) -> None:
    leak = stage.session(LEAK)
    terminal = ask(stage, home, "--policy", write_rules(home))
    stop(terminal, number)
    printed, status = finish(terminal)
    assert "Nothing was signalled." in printed
    assert (status, leak.is_there) == (status_of(number), True)
    assert_clean(stage, printed)


@STOPS
def test_a_signal_while_sessions_are_confirmed_spares_them(
    stage: Stage, home: Path, number: Signals
) -> None:
    leak = stage.session(LEAK)
    rules = write_rules(home, confirm_after="30s")
    terminal = on_terminal(home, "reap", uri(stage), "--policy", rules, "--enforce", "--yes")
    wait_for_snapshot(stage)
    stop(terminal, number)
    printed, status = finish(terminal)
    assert "no further session is signalled" in printed
    assert "1 session spared" in printed
    assert (status, leak.is_there) == (status_of(number), True)
    assert_clean(stage, printed)


@STOPS
def test_a_signal_ends_the_wait_for_a_slot(
    own_server: Callable[..., Stage], home: Path, number: Signals
) -> None:
    stage = own_server({"max_connections": "8", "superuser_reserved_connections": "2"})
    stage.role("app")
    stage.fill()
    terminal = on_terminal(home, "top", uri(stage, "app"), "--wait", "10m")
    terminal.expect_exact("Trying again for 10m")
    stop(terminal, number)
    printed, status = finish(terminal)
    assert status == status_of(number)
    assert_clean(stage, printed)


@pytest.mark.parametrize(
    ("command", "remark"),
    [
        ("top", "Nothing was changed."),
        ("explain", "Nothing was changed."),
        ("check", "Nothing was changed."),
        ("record", "Nothing was changed."),
        ("reap", "Nothing was signalled."),
    ],
)
def test_ctrl_c_at_the_password_says_that_nothing_was_done(
    stage: Stage, home: Path, command: str, remark: str
) -> None:
    terminal = on_terminal(home, command, uri(stage).replace(f":{PASSWORD}@", "@"))
    terminal.expect_exact("Password of ")
    press_ctrl_c(terminal)
    assert (terminal.before or "").rstrip().endswith(f"Stopped. {remark}")


@pytest.mark.parametrize(
    "command",
    ["explain", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("check", "record"))],
)
def test_ctrl_c_stops_a_command_that_only_reads_at_once(
    own_server: Callable[..., Stage], home: Path, command: str
) -> None:
    stage = own_server({})
    stage.root.run("BEGIN")
    stage.root.run("LOCK pg_catalog.pg_proc IN ACCESS EXCLUSIVE MODE")
    terminal = on_terminal(home, command, uri(stage))
    until(lambda: stage.root.run("SELECT FROM pg_locks WHERE NOT granted"), "the command waits")
    terminal.sendintr()
    printed, status = finish(terminal)
    assert printed.split("^C")[-1].split() == ["Stopped.", "Nothing", "was", "changed."]
    assert status == status_of(Signals.SIGINT)
    stage.root.run("ROLLBACK")
    assert_clean(stage, printed)


def test_a_slot_that_becomes_free_is_taken(own_server: Callable[..., Stage], home: Path) -> None:
    """An application's own login frees a full server as soon as it can connect."""
    stage = own_server({"max_connections": "8", "superuser_reserved_connections": "2"})
    stage.role("app")
    leaks = stage.fill()
    rules = write_rules(home)
    arguments = ("--role", "app", "--policy", rules, "--wait", "10m", "--enforce")
    terminal = on_terminal(home, "reap", uri(stage, "app"), *arguments)
    terminal.expect_exact("Trying again for 10m")
    leaks[0].close()
    terminal.expect_exact("[y/N]: ")
    terminal.sendline("y")
    printed, status = finish(terminal)
    assert status == 0, printed
    assert stage.survivors(leaks) == []


@pytest.mark.parametrize("number", [Signals.SIGTERM, Signals.SIGHUP], ids=lambda n: n.name)
def test_a_signal_during_watch_gives_the_terminal_back(
    stage: Stage, home: Path, number: Signals
) -> None:
    terminal = on_terminal(home, "top", uri(stage), "--watch", "100ms")
    terminal.expect_exact("\x1b[?1049h")
    terminal.expect_exact("slots")
    terminal.kill(number)
    printed, status = finish(terminal)
    assert "\x1b[?1049l" in printed
    assert "\x1b[?25h" in printed
    assert status == status_of(number)
    assert_clean(stage, printed)


def test_a_terminal_that_closes_leaves_no_session(stage: Stage, home: Path) -> None:
    terminal = on_terminal(home, "top", uri(stage), "--watch", "100ms")
    terminal.expect_exact("slots")
    os.close(terminal.child_fd)
    until(lambda: not terminal.isalive(), "the command has ended")
    assert terminal.exitstatus == status_of(Signals.SIGHUP)
    assert_clean(stage, "")


@STOPS
def test_a_signal_at_the_password_switches_the_echo_on_again(
    stage: Stage, home: Path, number: Signals
) -> None:
    terminal = on_terminal(home, "top", uri(stage).replace(f":{PASSWORD}@", "@"))
    terminal.expect_exact("Password of ")
    until(lambda: not terminal.getecho(), "the echo is off")
    stop(terminal, number)
    terminal.expect_exact("Stopped.")
    assert terminal.getecho()
    printed, status = finish(terminal)
    assert status == status_of(number)
    assert_clean(stage, printed)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@STOPS
def test_what_was_signalled_before_the_signal_is_reported(
    stage: Stage, home: Path, number: Signals
) -> None:
    leak = stage.session(LEAK)
    os.kill(leak.pid, Signals.SIGSTOP)  # it does not end until it may go on
    stage.cleanup(os.kill, leak.pid, Signals.SIGCONT)
    rules = write_rules(home)
    terminal = on_terminal(home, "reap", uri(stage), "--policy", rules, "--enforce", "--yes")
    until(lambda: is_pending(leak.pid, Signals.SIGTERM), "the session has been signalled")
    stop(terminal, number)
    printed, status = finish(terminal)
    assert "1 session lingering" in printed
    assert status == status_of(number)
    assert_clean(stage, printed)


def is_pending(pid: int, number: Signals) -> bool:
    """Return whether a signal waits for a process that is stopped."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return bool(int(fields["ShdPnd"], 16) >> (number - 1) & 1)


def test_a_signal_that_the_caller_ignores_is_ignored(stage: Stage, home: Path) -> None:
    by = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")  # as nohup does
    terminal = on_terminal(home, "top", uri(stage), "--watch", "100ms", by=by)
    terminal.expect_exact("slots")
    terminal.kill(Signals.SIGHUP)
    stage.session(IDLE, application_name="newcomer")
    terminal.expect_exact("newcomer")
    terminal.sendintr()
    assert finish(terminal)[1] == 0


# -- top --watch -----------------------------------------------------------------------------------


def test_watch_refreshes_in_place_and_gives_the_terminal_back(stage: Stage, home: Path) -> None:
    terminal = on_terminal(home, "top", uri(stage), "--watch", "100ms")
    terminal.expect_exact("\x1b[?1049h")  # the alternate screen
    terminal.expect_exact("slots")
    newcomer = stage.session(IDLE, application_name="newcomer")
    terminal.expect_exact("newcomer")
    terminal.sendintr()
    printed, status = finish(terminal)
    assert "\x1b[?1049l" in printed
    assert "\x1b[?25h" in printed  # the cursor is shown again
    assert status == 0
    assert newcomer.is_there
    assert_clean(stage, printed)


def test_watch_follows_the_width_of_the_terminal(stage: Stage, home: Path) -> None:
    stage.session(IDLE)
    terminal = on_terminal(home, "top", uri(stage), "--watch", "100ms", columns=80)
    terminal.expect_exact("state")
    assert "client" not in (terminal.before or "")
    terminal.setwinsize(40, 120)
    terminal.expect_exact("client")
    terminal.sendintr()
    assert finish(terminal)[1] == 0


def test_watch_connects_again_after_its_connection_was_lost(stage: Stage, home: Path) -> None:
    terminal = on_terminal(home, "top", uri(stage), "--watch", "100ms")
    terminal.expect_exact("slots")
    stage.root.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'session-reaper'"
    )
    stage.session(IDLE, application_name="newcomer")
    terminal.expect_exact("newcomer")
    terminal.sendintr()
    assert finish(terminal)[1] == 0


def test_watch_asks_for_the_password_before_it_clears_the_screen(stage: Stage, home: Path) -> None:
    without = uri(stage).replace(f":{PASSWORD}@", "@")
    terminal = on_terminal(home, "top", without, "--watch", "100ms")
    terminal.expect_exact("Password of ")
    assert "\x1b[?1049h" not in (terminal.before or "")
    terminal.expect_exact(": ")
    terminal.sendline(PASSWORD)
    terminal.expect_exact("\x1b[?1049h")
    terminal.expect_exact("slots")
    terminal.sendintr()
    assert finish(terminal)[1] == 0


# -- colours and widths ----------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_of_any_width_shows_whole_lines(stage: Stage, home: Path, columns: int) -> None:
    stage.session(LEAK, application_name="x" * 63)
    terminal = on_terminal(home, "top", uri(stage), columns=columns)
    printed, status = finish(terminal)
    assert status == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed)
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= columns
    assert "idle in tx" in plain


def test_colours_are_for_terminals_unless_no_color_is_set(stage: Stage, home: Path) -> None:
    assert COLOUR.search(finish(on_terminal(home, "top", uri(stage)))[0])
    plain, _ = finish(on_terminal(home, "top", uri(stage), NO_COLOR="1"))
    assert not re.search(r"\x1b\[(3[0-9]|9[0-9])", plain)
