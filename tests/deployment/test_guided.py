"""`sam deploy --guided` as a new user runs it: its questions, and the settings that it saves."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Final

from tests.deployment.account import REGION, ROOT, SAM, Account
from tests.template.sources import read_template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ANSWERS: Final = {"TargetSecretTag": "session-reaper=prod", "Email": "team@example.com"}
# The last question is whether to deploy.
TYPED: Final = {"AWS Region": REGION, **ANSWERS, "Deploy this changeset?": "n"}


def test_a_guided_deployment_asks_each_parameter_once_and_saves_the_answers(
    account: Account, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / ".aws-sam" / "build", tmp_path / ".aws-sam" / "build")
    shutil.copy(ROOT / "template.yaml", tmp_path)
    (tmp_path / "samconfig.toml").write_text(
        "version = 0.1\n[default.deploy.parameters]\nresolve_s3 = true\nconfirm_changeset = true\n"
    )
    parameters = list(read_template("template.yaml")["Parameters"])
    questions = [
        *("Stack Name", "AWS Region", *parameters, "Confirm changes before deploy"),
        *("Allow SAM CLI IAM role creation", "Disable rollback"),
        *("Save arguments to configuration file", "SAM configuration file"),
        *("SAM configuration environment", "Deploy this changeset?"),
    ]
    text = run_in_terminal(
        [str(SAM), "deploy", "--guided"],
        [TYPED.get(question, "") for question in questions],
        folder=tmp_path,
        environment=account.environment,
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    asked = re.findall(r"([\w ?]+) \[[^\]\n]*\]: ", plain)
    assert [one.removeprefix("Parameter ") for one in asked] == questions
    assert "Changeset created successfully" in text
    saved = tomllib.loads((tmp_path / "samconfig.toml").read_text())["default"]["deploy"]
    overrides = shlex.split(saved["parameters"]["parameter_overrides"])
    answers = dict(one.split("=", 1) for one in overrides)
    assert list(answers) == parameters
    assert answers.items() >= {**ANSWERS, "Mode": "observe"}.items()


def run_in_terminal(
    command: Sequence[str],
    lines: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
) -> str:
    """Run a command in a terminal and type these lines; return its output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(  # noqa: S603 -- sam
        command, cwd=folder, env=dict(environment), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        os.write(ours, "".join(f"{line}\n" for line in lines).encode())
        output = b""
        try:
            while read := os.read(ours, 65536):
                output += read
        except OSError:  # the last process that held the terminal has ended
            pass
    os.close(ours)
    text = output.decode(errors="replace").replace("\r", "")
    assert process.returncode == 0, text
    return text
