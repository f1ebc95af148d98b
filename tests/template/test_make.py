"""samconfig.toml, and the commands of the Makefile that deploy: what they would run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from tests.template.sources import ROOT, read_template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., list[list[str]]]

CONFIG = tomllib.loads((ROOT / "samconfig.toml").read_text())
ENVIRONMENTS = [name for name in CONFIG if name != "version"]


def _of(environment: str, command: str) -> dict[str, Any]:
    parameters: dict[str, Any] = CONFIG[environment][command]["parameters"]
    return parameters


def _stack(environment: str) -> str:
    named: str = (_of(environment, "global") | _of(environment, "deploy"))["stack_name"]
    return named


def _parameters(environment: str) -> dict[str, str]:
    given = _of(environment, "deploy").get("parameter_overrides", [])
    if isinstance(given, str):  # as a guided deployment writes it
        given = shlex.split(given)
    return dict(one.split("=", 1) for one in given)


# -- samconfig.toml: users change it, so these tests must also pass after that ---------------------


def test_each_of_the_three_environments_is_a_separate_stack() -> None:
    assert {"default", "staging", "prod"} <= set(ENVIRONMENTS)
    assert len({_stack(one) for one in ENVIRONMENTS}) == len(ENVIRONMENTS)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_configured_environment_sets_parameters_that_exist(environment: str) -> None:
    declared = read_template("template.yaml")["Parameters"]
    for name, value in _parameters(environment).items():
        assert re.fullmatch(declared[name].get("AllowedPattern", ".*"), value)
        assert value in map(str, declared[name].get("AllowedValues", [value]))


def test_an_environment_without_a_mode_observes() -> None:
    assert read_template("template.yaml")["Parameters"]["Mode"]["Default"] == "observe"


# -- make ------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Runs make with a sam that only writes down what it was asked."""
    written = tmp_path / "calls"
    fake = tmp_path / "sam"
    fake.write_text(
        f'#!/usr/bin/env bash\n{{ printf "%s\\n" sam "$@"; printf "\\0"; }} >>"{written}"\n'
    )
    fake.chmod(0o755)

    def run(*arguments: str) -> list[list[str]]:
        written.unlink(missing_ok=True)
        # Nothing is built or installed for it.
        done = [part for one in ("build", ".tools/sam/installed") for part in ("-o", one)]
        result = subprocess.run(  # noqa: S603 -- our own Makefile
            ["make", *done, f"SAM={tmp_path}", *arguments],  # noqa: S607 -- as people do
            cwd=ROOT,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        calls = [call.split("\n")[:-1] for call in written.read_text().split("\0")[:-1]]
        # Each says what it runs.
        assert all(f"{call[0]} {call[1]}" in result.stdout for call in calls)
        return calls

    return run


def test_make_deploy_deploys_one_environment(make: Make) -> None:
    for environment in ("default", "prod"):
        named = ["--config-env", environment, "--stack-name", _stack(environment)]
        assert make("deploy", f"ENV={environment}") == [["sam", "deploy", *named]]
    assert make("deploy", "GUIDED=yes") == [
        ["sam", "deploy", "--config-env", "default", "--guided"]
    ]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_make_check_remote_asks_the_stack_of_its_environment(make: Make, environment: str) -> None:
    [call] = make("check-remote", f"ENV={environment}")
    assert call == [
        *("sam", "remote", "invoke", "SessionReaper", "--config-env", environment),
        *("--stack-name", _stack(environment), "--event-file", "events/manual_check.json"),
    ]
    assert json.loads((ROOT / "events" / "manual_check.json").read_text()) == {"check": True}


def test_another_stack_can_be_named(make: Make) -> None:
    [call] = make("check-remote", "STACK=mine")
    assert call[call.index("--stack-name") + 1] == "mine"


def test_make_logs_follows_the_log_of_the_function(make: Make) -> None:
    assert make("logs", "ENV=prod") == [
        [
            *("sam", "logs", "--config-env", "prod", "--stack-name", _stack("prod")),
            *("--name", "SessionReaper", "--tail"),
        ]
    ]


def test_make_deploy_hub_deploys_what_was_built(make: Make) -> None:
    deploy = [
        *("sam", "deploy", "--template-file", ".aws-sam/hub/template.yaml"),
        *("--stack-name", "session-reaper-hub", "--capabilities", "CAPABILITY_IAM"),
        *("--resolve-s3", "--no-fail-on-empty-changeset"),
    ]
    assert make("deploy-hub") == [deploy]
    parameters = ["--parameter-overrides", "Email=a@b.example", "LogRetentionInDays=7"]
    assert make("deploy-hub", f"PARAMETERS={' '.join(parameters[1:])}") == [[*deploy, *parameters]]
    assert "mine" in make("deploy-hub", "HUB=mine")[0]


@pytest.mark.parametrize("command", ["deploy", "check-remote", "logs", "events"])
def test_an_unknown_environment_is_an_error_that_names_it(command: str) -> None:
    result = subprocess.run(  # noqa: S603 -- our own Makefile
        ["make", "-n", command, "ENV=prd"],  # noqa: S607 -- as people do
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "samconfig.toml has no stack_name for ENV=prd" in result.stderr


def test_make_events_shares_every_event_of_the_folder(make: Make) -> None:
    calls = make("events")
    files = sorted(f"events/{path.name}" for path in (ROOT / "events").glob("*.json"))
    assert [call[call.index("--file") + 1] for call in calls] == files
    for call, file in zip(calls, files, strict=True):
        name = file.removeprefix("events/").removesuffix(".json")
        assert call == [
            *("sam", "remote", "test-event", "put", "SessionReaper"),
            *("--config-env", "default", "--stack-name", _stack("default")),
            *("--name", name, "--file", file, "--force"),
        ]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("Darwin arm64", "not for Darwin arm64"),
        ("Linux aarch64", "not for Linux aarch64"),
        ("Linux x86_64", "needs npm"),
    ],
)
def test_a_machine_without_the_servers_of_npm_is_told_what_is_needed(
    tmp_path: Path, machine: str, expected: str
) -> None:
    (tmp_path / "uname").write_text(f'#!/bin/sh\necho "{machine}"\n')
    (tmp_path / "uname").chmod(0o755)
    for needed in ("bash", "make", "sh", "python3"):  # but no npm
        (tmp_path / needed).symlink_to(shutil.which(needed) or needed)
    installed = tmp_path / "servers" / "installed"
    result = subprocess.run(  # noqa: S603 -- our own Makefile
        ["make", f"SERVERS={installed.parent}", str(installed)],  # noqa: S607 -- as people do
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert expected in result.stderr
    assert not installed.parent.exists()
