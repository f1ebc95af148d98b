"""The help of the command: its examples run as printed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.integration.cli import COMMAND, finish, run, spawn, uri
from tests.integration.stage import LEAK, PASSWORD, REAPER, Stage, policy, rule

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.thorough
def test_the_examples_of_the_help_run_as_printed(stage: Stage, tmp_path: Path) -> None:
    """Only the server's address is another one."""
    home = tmp_path
    (home / "session-reaper").write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    (home / "session-reaper").chmod(0o755)
    (home / ".pg_service.conf").write_text(
        f"[orders]\nhost={stage.server.host}\nport={stage.server.port}\nuser={REAPER}\n"
        f"password={PASSWORD}\nsslmode=disable\n"
    )
    stage.target("prod/orders")
    for name in ("new.yaml", "old.yaml", "policy.yaml"):
        (home / name).write_text(json.dumps(policy(rule(idle_for="1h"))))
    stage.session(LEAK)
    texts = [run(home, *group.split(), "--help").out for group in COMMANDS_WITH_EXAMPLES]
    examples = [
        line.strip()
        for text in texts
        for line in text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    ]
    assert len(examples) >= len(COMMANDS_WITH_EXAMPLES)
    for example in examples:
        line = example.replace("postgres://app@db.example/orders", f"'{uri(stage)}'")
        line = f"trap : INT; {line}"  # the shell survives Ctrl-C, as one at a prompt does
        shell = spawn(home, "sh", "-c", line, PATH=f"{home}:{os.defpath}")
        if "--watch" in line:
            shell.expect_exact("slots")
            shell.sendintr()
        printed, status = finish(shell)
        assert status in (0, 1), (line, printed)


COMMANDS_WITH_EXAMPLES = (
    *("", "top", "explain", "check", "reap", "record", "replay"),
    *("policy validate", "policy schema", "policy show-default"),
)
