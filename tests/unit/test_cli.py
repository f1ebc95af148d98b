"""Parts of the command that need no server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from session_reaper.errors import (
    ConnectionLimit,
    DeadlineError,
    FullError,
    NoTlsError,
    ServerChangedError,
    TargetError,
    UntrustedError,
)
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import read_policy
from session_reaper.report.model import (
    Outcome,
    TargetReport,
    record_breaker,
    record_error,
    record_unfinished,
)
from session_reaper.summary.digest import digest_report
from session_reaper.summary.email import render_email
from session_reaper.summary.verdict import choose_verdict
from session_reaper_cli.connections.target import find_target
from session_reaper_cli.local_run import HurryingClock
from session_reaper_cli.main import run
from session_reaper_cli.policies import restrict_to_role
from session_reaper_cli.policy_validation import find_errors, list_changes
from session_reaper_cli.remedies import reword_failure, write_remedy
from session_reaper_cli.results import ExitStatus, choose_status, show_summary
from session_reaper_cli.top.overview import make_overview
from session_reaper_cli.top.screen import draw
from session_reaper_cli.wording import make_wording

from tests.builders import (
    a_document,
    a_policy,
    a_report,
    a_result,
    a_rule,
    a_session,
    a_snapshot,
    a_target_report,
)
from tests.integration.cli import COMMAND
from tests.integration.fork_client import environment
from tests.summaries.situations import SITUATIONS

if TYPE_CHECKING:
    from session_reaper.report.model import Report
    from session_reaper.summary.wording import Wording
    from session_reaper.targets.target import Target

Capture = pytest.CaptureFixture[str]
LEAK = ["idle in transaction"]
RECORDING = Path(__file__).parents[1] / "recordings" / "postgresql-18.json"


# -- policies --------------------------------------------------------------------------------------


def test_every_error_of_a_policy_is_shown_with_its_place(tmp_path: Path, capsys: Capture) -> None:
    document = {
        "version": 2,
        "rules": [
            a_rule(),
            a_rule("two", state=LEAK, idle_for=300),
            a_rule("three", stat=LEAK, idle_for="5m"),
        ],
        "limits": {"max_terminations": 0},
        "protect": {"roles": []},
        "unknown": 1,
    }
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document))
    assert run(["policy", "validate", str(path)]) == 2
    printed = capsys.readouterr().out.splitlines()
    places = [line.removeprefix(f"{path}: ").split(": ")[0] for line in printed]
    assert places == [
        "version",
        "rules[1].match.idle_for",
        "rules[2].match.stat",
        "limits.max_terminations",
        "protect.roles",
        "unknown",
    ]


def test_an_error_of_the_whole_policy_is_shown() -> None:
    (error,) = find_errors(a_document(a_rule("same"), a_rule("same")))
    assert "same" in error
    assert find_errors({}) == ("version: is required", "rules: is required")
    assert find_errors([]) != ()
    assert find_errors(a_document()) == ()


def test_what_means_something_else_since_0_1_is_listed() -> None:
    rules = [
        {**a_rule("warn"), "mode": "observe"},
        a_rule("runaway", state=["active"], query_for="1h"),
        a_rule("query", state=LEAK, idle_for="1h", query="select *"),
        a_rule("named", state=LEAK, idle_for="1h", role=["admin"]),
    ]
    changes = "\n".join(list_changes(read_policy(a_document(*rules))))
    for words in (
        "rules[0] (warn): mode: observe",
        "rules[1] (runaway): no longer matches a session that waits for a lock",
        "rules[2] (query): query is a glob",
        "rules[3] (named): role admin is named literally",
        "sessions of dropped roles",
    ):
        assert words in changes
    assert list(list_changes(a_policy(a_rule(state=LEAK, idle_for="1h", role=["app_*"])))) == []


def test_lock_waits_are_not_mentioned_where_a_rule_waits_for_the_client() -> None:
    keys = {"state": ["active"], "waiting_for_client": True, "query_for": "15m", "role": ["app_*"]}
    assert list(list_changes(a_policy(a_rule("wedged", **keys)))) == []


def test_a_policy_of_one_role_keeps_the_rules_that_may_match_it() -> None:
    policy = a_policy(
        a_rule("all", state=LEAK, idle_for="1h"),
        a_rule("apps", state=LEAK, idle_for="1h", role=["app_*"]),
        a_rule("others", state=LEAK, idle_for="1h", role=["batch"]),
    )
    rules = restrict_to_role(policy, "app_7").rules
    assert [(rule.name, rule.match.role) for rule in rules] == [
        ("all", ("app_7",)),
        ("apps", ("app_7",)),
    ]
    assert restrict_to_role(policy, "a[b]").rules[0].match.role == ("a[[]b]",)


def find(host: str) -> Target:
    """Return the target that a URI leads to."""
    return find_target(f"postgres://u:p@{host}", {}, Path("/nonexistent")).target


# -- errors ----------------------------------------------------------------------------------------


def test_a_remedy_speaks_of_the_command_line_unless_a_secret_was_given() -> None:
    error = TargetError("28P01", "wrong", "Check the secret.")
    target = find("db")
    assert "~/.pgpass" in write_remedy(error, target)
    of_secret = replace(target, secret_arn="arn:orders")  # noqa: S106 -- a name
    assert write_remedy(error, of_secret) == "Check the secret."


OF_FUNCTION = re.compile(
    r"next run|function|the mode to|the log|deploy|invoke|lambda|secret|stack|\{\"|scheduled",
    re.IGNORECASE,
)
# They need several targets, several secrets or the policy of a stack.
FUNCTIONS_ONLY = {
    *("full", "half-the-fleet-unreachable", "a-broken-policy", "one-server-under-three-secrets"),
}


@pytest.mark.parametrize("situation", sorted(SITUATIONS.keys() - FUNCTIONS_ONLY))
def test_a_summary_of_the_command_does_not_speak_of_the_function(situation: str) -> None:
    report = SITUATIONS[situation]()
    for observes in (report, replace(report, mode=Mode.OBSERVE)):
        digest = digest_report(observes, None, wording=make_wording())
        text = " ".join(render_email(digest, 1_000_000).split())
        assert not OF_FUNCTION.findall(text)


@pytest.mark.parametrize(
    "report",
    [
        record_error(TargetReport(name="db"), DeadlineError()),
        record_error(TargetReport(name="db"), ServerChangedError(restarted=True)),
        record_error(TargetReport(name="db"), ServerChangedError(restarted=False)),
        record_error(TargetReport(name="db"), TargetError("57P03", "", "the next run tries again")),
        record_breaker(TargetReport(name="db"), "too many"),
        record_unfinished(TargetReport(name="db"), ValueError()),
    ],
    ids=["deadline", "restarted", "another server", "starting", "breaker", "bug"],
)
def test_an_error_during_a_run_says_what_to_do_at_the_keyboard(report: TargetReport) -> None:
    of_secret = replace(find("db"), secret_arn="arn:orders")  # noqa: S106 -- a name
    for target in (find("db"), of_secret):
        failure = reword_failure(report, target).error
        assert failure is not None
        assert failure.hint
        assert not OF_FUNCTION.search(failure.hint)


def test_a_full_database_is_remedied_by_another_one() -> None:
    error = FullError("53300", "", "into the secret", limit=ConnectionLimit.DATABASE)
    assert "postgres://…/dbname" in write_remedy(error, find("db"))


@pytest.mark.parametrize(
    ("wording", "words"),
    [
        (make_wording(), "With --enforce, 1 session"),
        (make_wording(Mode.OBSERVE, enforces=True), "With mode: enforce in the policy, 1 session"),
        (make_wording(Mode.OBSERVE), "With mode: enforce in the policy and --enforce, 1 session"),
    ],
)
def test_the_verdict_names_what_enforcing_needs(wording: Wording, words: str) -> None:
    report = a_report(a_target_report(a_result(Outcome.WOULD_TERMINATE)), mode=Mode.OBSERVE)
    assert words in str(choose_verdict(report, wording))


def test_a_narrow_terminal_wraps_sentences_between_words_and_leaves_sql_whole() -> None:
    report = SITUATIONS["full-of-idle"]()
    narrow, wide = (show_at(width, report) for width in (60, 80))
    assert narrow.split() == wide.split()
    sql = [line for line in narrow.splitlines() if line.endswith(";")]
    assert sql == [line for line in wide.splitlines() if line.endswith(";")] != []
    sentences = [line for line in narrow.splitlines() if line not in sql]
    assert max(map(len, sentences)) <= 60
    assert (
        "\n1. orders: Applications cannot connect. The largest group of\n   sessions is" in narrow
    )


def show_at(width: int, report: Report) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        show_summary(report, console)
    return captured.get()


@pytest.mark.parametrize(
    ("host", "words"), [("localhost", "Add sslmode=disable"), ("db", "Enable TLS")]
)
def test_plaintext_is_offered_for_a_local_server_only(host: str, words: str) -> None:
    error = NoTlsError("tls", "no TLS", "")
    assert write_remedy(error, find(host)).startswith(words)


def test_only_an_unknown_authority_is_remedied_by_naming_it() -> None:
    renew = "Renew it on the server."
    assert write_remedy(TargetError("tls", "expired", renew), find("db")) == renew
    assert "sslrootcert=FILE" in write_remedy(UntrustedError("tls", "unknown CA", ""), find("db"))


def test_a_bug_shows_no_traceback_and_no_text(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SESSION_REAPER_TRACEBACK", raising=False)
    assert run(["replay", "\0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_target_that_was_never_reached_is_an_error_and_a_quiet_one_a_success() -> None:
    assert choose_status(TargetReport(name="orders")) is ExitStatus.ERROR
    slots = a_snapshot().slots
    assert choose_status(TargetReport(name="orders", slots=slots)) is ExitStatus.DONE
    full = TargetReport(name="orders", slots=slots, used_after=slots.usable)
    assert choose_status(full) is ExitStatus.ATTENTION


@pytest.mark.parametrize(
    "command",
    ["top", "explain", "check", "reap", "record", "replay", "policy validate", "policy schema"],
)
def test_the_help_of_every_command_has_an_example(command: str, capsys: Capture) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert f"Examples:\n    session-reaper {command} " in capsys.readouterr().out


@pytest.mark.parametrize("group", [(), ("policy",)])
def test_the_help_of_a_group_has_whole_sentences(group: tuple[str, ...], capsys: Capture) -> None:
    assert run([*group, "--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:")[2].partition("Examples:")[0]
    assert commands
    assert "..." not in commands


@pytest.mark.parametrize("option", ["--policy", "--against"])
def test_a_shell_completes_files(
    option: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SESSION_REAPER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"session-reaper replay {option} pol")
    monkeypatch.setenv("COMP_CWORD", "3")
    with suppress(SystemExit):
        run([])
    assert capsys.readouterr().out == "file,pol\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_an_output_that_cannot_be_written_is_no_bug() -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "policy", "schema"]
        done = subprocess.run(  # noqa: S603 -- our own command
            command,
            env=environment(Path(), {}),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("policy", "validate"), ("replay",), ("replay", str(RECORDING), "--policy")]
)
def test_a_file_that_cannot_be_read_is_an_error_in_plain_words(
    arguments: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    for file, problem in [("absent", "No such file or directory"), (".", "Is a directory")]:
        path = str(tmp_path / file)
        assert run([*arguments, path]) == 2
        assert capsys.readouterr().err == f"session-reaper: {path}: cannot be read: {problem}\n"


# -- top -------------------------------------------------------------------------------------------


def test_hostile_names_are_shown_as_text() -> None:
    session = a_session(application="[red]x\x1b[31m\n", role="[/]")
    overview = make_overview("db", a_snapshot(session), a_policy())
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(draw(overview, 100))
    assert "[red]x" in captured.get()
    assert "\x1b" not in captured.get()


def test_sessions_that_our_own_role_protects_are_counted() -> None:
    own = a_session(own_role=True, role="app")
    overview = make_overview("db", a_snapshot(own, role="app"), a_policy())
    assert (overview.own_role, list(overview.plans)) == (1, [])
    assert list(overview.protected) == [("our own role", 1)]


# -- start -----------------------------------------------------------------------------------------


def test_a_command_that_needs_no_aws_does_not_load_boto3(tmp_path: Path) -> None:
    """boto3 takes a third of the time in which a command starts."""
    program = """
import sys
from session_reaper_cli.main import run

for command in ("top", "explain", "check", "reap", "record"):
    assert run([command, "postgres://app:x@127.0.0.1:1/orders?sslmode=disable"]) == 2
print("pg8000" in sys.modules, "boto3" in sys.modules)
"""
    done = subprocess.run(  # noqa: S603 -- our own interpreter
        [sys.executable, "-c", program],
        env=environment(tmp_path, {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


# -- Ctrl-C ----------------------------------------------------------------------------------------


def test_ctrl_c_while_python_loads_the_command_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    given = environment(tmp_path, {})
    done = subprocess.run(  # noqa: S603 -- our own command
        [*COMMAND, "top"],
        env=given | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{given['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_clock_that_hurries_never_goes_back() -> None:
    clock = HurryingClock()
    clock.skip(-5)
    before = clock()
    clock.skip(100)
    assert before + 100 <= clock() <= time.monotonic() + 100
