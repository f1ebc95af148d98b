"""samconfig.toml, and the commands of the Makefile that deploy: what they would run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from tests.template.rendering import ROOT, refusals, render, source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., list[list[str]]]

CONFIG = tomllib.loads((ROOT / "samconfig.toml").read_text())
ENVIRONMENTS = [name for name in CONFIG if name != "version"]


def _of(environment: str, command: str) -> dict[str, Any]:
    parameters: dict[str, Any] = CONFIG[environment][command]["parameters"]
    return parameters


def _parameters(environment: str) -> dict[str, str]:
    given = _of(environment, "deploy").get("parameter_overrides", [])
    return dict(one.split("=", 1) for one in given)


# -- samconfig.toml --------------------------------------------------------------------------------


def test_there_are_three_environments_and_no_account_in_them() -> None:
    assert ENVIRONMENTS == ["default", "staging", "prod"]
    assert not re.search(r"\d{12}|arn:", (ROOT / "samconfig.toml").read_text())


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_is_a_stack_of_its_own_with_tags_and_a_changeset_to_read(
    environment: str,
) -> None:
    deploy = _of(environment, "deploy")
    assert deploy["confirm_changeset"] is True
    assert deploy["capabilities"] == "CAPABILITY_IAM"
    assert "application=session-reaper" in deploy["tags"]
    stacks = [_of(one, "global")["stack_name"] for one in ENVIRONMENTS]
    assert len(set(stacks)) == len(stacks)


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_what_is_configured_can_be_deployed_and_observes_first(environment: str) -> None:
    parameters = _parameters(environment)
    assert parameters.keys() <= source("template.yaml")["Parameters"].keys()
    assert refusals(parameters) == []
    stack = render(parameters)
    assert stack.one("SessionReaper")["Environment"]["Variables"]["MODE"] == "observe"
    assert stack.conditions["template.yaml", "IsMonitored"] is (environment == "prod")


# -- make ------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Runs make with a sam and an aws that only write down what they were asked."""
    written = tmp_path / "calls"
    answer = {"sam": "", "aws": "echo shop-LogGroup-1"}
    for name, says in answer.items():
        fake = tmp_path / name
        fake.write_text(
            f"#!/usr/bin/env bash\n"
            f'{{ printf "%s\\n" {name} "$@"; printf "\\0"; }} >>"{written}"\n{says}\n'
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
    assert make("deploy") == [["sam", "deploy", "--config-env", "default"]]
    assert make("deploy", "ENV=prod") == [["sam", "deploy", "--config-env", "prod"]]
    assert make("deploy", "GUIDED=yes") == [
        ["sam", "deploy", "--config-env", "default", "--guided"]
    ]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_make_check_remote_asks_the_stack_of_its_environment(make: Make, environment: str) -> None:
    [call] = make("check-remote", f"ENV={environment}")
    stack = _of(environment, "global")["stack_name"]
    assert call == [
        *("sam", "remote", "invoke", "SessionReaper", "--stack-name", stack),
        *("--event-file", "events/manual_check.json"),
    ]
    assert json.loads((ROOT / "events" / "manual_check.json").read_text()) == {"check": True}


def test_another_stack_can_be_named(make: Make) -> None:
    [call] = make("check-remote", "STACK=mine")
    assert call[call.index("--stack-name") + 1] == "mine"


def test_make_logs_follows_the_log_group_of_the_stack(make: Make) -> None:
    look, tail = make("logs", "ENV=prod")
    assert look[:5] == [
        "aws",
        "cloudformation",
        "describe-stacks",
        "--stack-name",
        "session-reaper-prod",
    ]
    query = look[look.index("--query") + 1]
    assert query == "Stacks[0].Outputs[?OutputKey=='LogGroupName'].OutputValue"
    assert tail == ["aws", "logs", "tail", "shop-LogGroup-1", "--follow"]
    assert "LogGroupName" in source("template.yaml")["Outputs"]


def test_make_events_shares_every_event_of_the_folder(make: Make) -> None:
    calls = make("events")
    files = sorted(f"events/{path.name}" for path in (ROOT / "events").glob("*.json"))
    assert [call[call.index("--file") + 1] for call in calls] == files
    for call, file in zip(calls, files, strict=True):
        name = file.removeprefix("events/").removesuffix(".json")
        assert call == [
            *("sam", "remote", "test-event", "put", "SessionReaper"),
            *("--stack-name", "session-reaper", "--name", name, "--file", file, "--force"),
        ]
