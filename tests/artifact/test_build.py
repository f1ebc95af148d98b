"""The files of `sam build`: no superfluous file, none missing, and the same files in every build."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "infra" / "artifact" / "Makefile"
MOST_BYTES = 6_000_000  # the sources lie beside their bytecode, for tracebacks

# The top-level entries of the artifact; another one needs a decision (docs/decisions.md).
PACKAGES = {
    "asn1crypto",
    "aws_lambda_powertools",
    "dateutil",  # pg8000's
    "jmespath",  # Powertools'
    "pg8000",
    "scramp",  # pg8000's
    "session_reaper",
    "six",  # dateutil's
    "typing_extensions",  # Powertools'
    "yaml",
}
# Imports that are not in the artifact: each is never reached, or is expected to fail.
LEFT_OUT = {
    "aws_lambda_powertools.event_handler.openapi.compat",  # a pydantic model in a log line
    "dateutil.zoneinfo",  # a time zone by a name that the system does not know
    "six.moves",  # made by six itself
    "yaml._yaml",  # the C loader; PyYAML goes without
}


def test_the_artifact_holds_the_intended_files_only(artifact: Path) -> None:
    entries = {
        path.stem
        for path in artifact.iterdir()
        if path.name != "__pycache__" and path.suffix != ".dist-info"
    }
    assert entries == PACKAGES
    assert len(list(artifact.glob("*.dist-info"))) == len(PACKAGES) - 1
    suffixes = {path.suffix for path in artifact.rglob("*") if path.is_file()}
    # No file is compiled for one architecture: the artifact runs here as it does in Lambda.
    assert suffixes - {".py", ".pyc", ".pem", ".json", ".sql", ".typed"} == {""}
    names = {path.name for path in artifact.rglob("*") if path.is_file() and not path.suffix}
    assert names <= {"METADATA", "LICENSE"}


def test_the_webhooks_artifact_is_the_package_alone(webhook_artifact: Path) -> None:
    assert [path.name for path in webhook_artifact.iterdir()] == ["session_reaper"]


def test_the_artifact_is_small(artifact: Path, webhook_artifact: Path) -> None:
    assert _count_bytes(artifact) < MOST_BYTES
    assert _count_bytes(webhook_artifact) < _count_bytes(artifact) / 2


def test_the_artifact_holds_the_package_whole(artifact: Path, webhook_artifact: Path) -> None:
    package = _hash_files(ROOT / "functions" / "session_reaper")
    assert {name for name in package if not name.endswith(".pyc")}
    for built in (artifact, webhook_artifact):
        shipped = _hash_files(built / "session_reaper")
        for name, content in package.items():
            if not name.endswith(".pyc"):
                assert shipped[name] == content


def test_every_module_has_bytecode_that_a_read_only_task_root_uses(
    artifact: Path, webhook_artifact: Path
) -> None:
    for built in (artifact, webhook_artifact):
        sources = {path.relative_to(built) for path in built.rglob("*.py")}
        compiled = {path.relative_to(built) for path in built.rglob("*.pyc")}
        assert sources
        assert compiled == {
            source.with_name("__pycache__") / f"{source.stem}.cpython-313.pyc" for source in sources
        }
        for path in compiled:
            flags = int.from_bytes((built / path).read_bytes()[4:8], "little")
            assert flags == 0b01  # by hash, and not checked: a copy's time stamps are others


def test_every_import_of_the_artifact_resolves(artifact: Path) -> None:
    ours = PACKAGES | {"_yaml"}
    imported = {
        name
        for source in artifact.rglob("*.py")
        for name in _list_imports(source, artifact)
        if name.split(".")[0] in ours
    }
    missing = {name for name in imported if not _is_there(artifact.joinpath(*name.split(".")))}
    assert missing == LEFT_OUT


@pytest.mark.parametrize("function", ["artifact", "webhook_artifact"])
def test_a_build_in_another_folder_gives_the_same_files(
    tmp_path: Path, function: str, request: pytest.FixtureRequest
) -> None:
    built = request.getfixturevalue(function)
    again = _build(tmp_path, built.name)
    assert again.returncode == 0, again.stderr
    assert _hash_files(tmp_path / "built") == _hash_files(built)


def test_a_package_with_another_hash_is_not_built(tmp_path: Path) -> None:
    requirements = (ROOT / "functions" / "requirements.txt").read_text()
    lines = [line for line in requirements.splitlines() if "--hash" not in line]
    hashes = " ".join(f"--hash=sha256:{digit * 64}" for digit in "01")
    pinned = [line.replace("\\", hashes) for line in lines]
    again = _build(tmp_path, "SessionReaper", requirements="\n".join(pinned))
    assert again.returncode != 0
    assert "DO NOT MATCH THE HASHES" in again.stderr


def test_a_build_fails_if_a_file_to_leave_out_does_not_exist(tmp_path: Path) -> None:
    again = _build(tmp_path, "SessionReaper", "UNUSED=yaml/cyaml.py dateutil/of_old")
    assert again.returncode != 0
    assert "dateutil/of_old" in again.stderr


def _build(
    folder: Path, function: str, *arguments: str, requirements: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Build the artifact again as sam does: from a copy of functions/, into another folder."""
    source, built = folder / "source", folder / "built"
    shutil.copytree(ROOT / "functions", source)
    built.mkdir()
    if requirements:
        (source / "requirements.txt").write_text(requirements)
    path = os.pathsep.join([str(ROOT / ".tools" / "sam" / "bin"), os.environ["PATH"]])
    return subprocess.run(  # noqa: S603 -- our own recipe
        ["make", "--makefile", str(RECIPE), f"build-{function}", *arguments],  # noqa: S607 -- whichever is here
        cwd=source,
        env=os.environ | {"ARTIFACTS_DIR": str(built), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def _hash_files(folder: Path) -> dict[str, str]:
    """Return the digest of every file by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _is_there(module: Path) -> bool:
    return module.is_dir() or module.with_suffix(".py").is_file()


def _list_imports(source: Path, root: Path) -> Iterator[str]:
    """Yield every module that a source can import anywhere, except for type checking."""
    package = ".".join(source.relative_to(root).parent.parts)
    waiting: list[ast.AST] = [ast.parse(source.read_bytes())]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                waiting += node.orelse
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                relative = "." * node.level + (node.module or "")
                name = importlib.util.resolve_name(relative, package)
                yield name
                itself = root.joinpath(*name.split("."), "__init__.py")
                if itself.is_file():  # what it does not name is a module in it
                    said = itself.read_text()
                    yield from (f"{name}.{a.name}" for a in node.names if a.name not in said)
            case _:
                waiting += ast.iter_child_nodes(node)
