"""The wheel: what it holds, and that its command runs in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.local.postgres import bundled_builds, server

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
UV = ROOT / ".tools" / "uv" / "bin" / "uv"
OLDEST = "3.11"  # requires-python


def run(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: S603 -- our own commands
        [*map(str, command)], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--wheel", "--out-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=[OLDEST, sys.executable], ids=["oldest", "this"])
def installed(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The command of a clean environment, with the versions that we develop with."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    run(UV, "venv", "--python", request.param, folder)
    pinned = ("--constraint", ROOT / "requirements" / "dev.txt")
    run(UV, "pip", "install", "--python", folder / "bin" / "python", *pinned, wheel)
    return folder / "bin" / "session-reaper"


def test_the_wheel_holds_both_packages_whole_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {
        str(path.relative_to(folder))
        for folder, package in (
            (ROOT / "functions", "session_reaper"),
            (ROOT / "cli", "session_reaper_cli"),
        )
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_command_needs_all_that_the_artifact_needs() -> None:
    """Two lists in pyproject.toml must agree, because one cannot include the other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["dependency-groups"]["lambda"]) < set(project["project"]["dependencies"])


def test_the_installed_command_says_its_version(installed: Path, wheel: Path) -> None:
    metadata = zipfile.ZipFile(wheel)
    (name,) = [name for name in metadata.namelist() if name.endswith(".dist-info/METADATA")]
    version = Parser().parsestr(metadata.read(name).decode())["Version"]
    assert run(installed, "--version").stdout == f"session-reaper {version}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["policy", "schema"], ["policy", "show-default"]], ids=str
)
def test_the_installed_command_needs_no_server_for_this(
    installed: Path, arguments: Sequence[str]
) -> None:
    assert run(installed, *arguments).stdout


def test_the_installed_command_works_on_a_server(installed: Path) -> None:
    """It needs the queries, the certificates, and the default policy of the wheel."""
    environment = {"PATH": os.defpath, "HOME": "/nonexistent"}
    with server(max(bundled_builds().items())[1]) as running:
        where = {"PGHOST": str(running.socket_dir), "PGPORT": str(running.port)}
        environment |= where | {"PGUSER": "postgres"}
        top = run(installed, "top", "--json", env=environment)
        assert json.loads(top.stdout)["role"] == "postgres"
        assert "QUIET" in run(installed, "reap", env=environment).stdout
