"""The release that `make package` builds: its files, what they name, and that two builds are equal."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.package import ROOT, add_application, build_release, read_notes
from tests.template.sources import TEMPLATES, read_template

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def release(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_release(artifact, tmp_path_factory.mktemp("dist"))


def _load_templates(release: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each template of the repository and of the release."""
    for path in TEMPLATES:
        packaged = str(release / (ROOT / path).name)
        yield read_template(path), read_template(packaged)


def test_a_release_holds_the_code_every_template_and_the_licence(release: Path) -> None:
    assert {path.name for path in release.iterdir()} == {
        f"session-reaper-{VERSION}.zip",
        *((ROOT / path).name for path in TEMPLATES),
        *("LICENSE", "README.md", "SHA256SUMS"),
    }


def test_the_checksums_are_those_of_all_other_files(release: Path) -> None:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    stated = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert stated == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in release.iterdir()
        if path.name != "SHA256SUMS"
    }


def test_the_zip_holds_the_artifact_and_the_licence(release: Path, artifact: Path) -> None:
    packed = zipfile.ZipFile(release / f"session-reaper-{VERSION}.zip")
    content = {name: packed.read(name) for name in packed.namelist()}
    assert content.pop("LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert content == {
        path.relative_to(artifact).as_posix(): path.read_bytes()
        for path in artifact.rglob("*")
        if path.is_file()
    }


def test_a_release_of_copied_files_has_the_same_bytes(
    release: Path, artifact: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(artifact, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in copied.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1, 1))
    again = build_release(copied, tmp_path / "dist")
    assert (again / "SHA256SUMS").read_bytes() == (release / "SHA256SUMS").read_bytes()


def test_a_release_replaces_an_older_one_of_the_same_version(
    artifact: Path, tmp_path: Path
) -> None:
    first = build_release(artifact, tmp_path)
    (first / "fleet.zip").touch()
    assert not (build_release(artifact, tmp_path) / "fleet.zip").exists()


def test_every_function_takes_its_code_from_the_zip_and_nothing_else_changes(
    release: Path,
) -> None:
    functions = 0
    for source, packaged in _load_templates(release):
        for name, resource in packaged["Resources"].items():
            if resource["Type"] == "AWS::Serverless::Function":
                functions += 1
                assert resource["Properties"]["CodeUri"] == f"session-reaper-{VERSION}.zip"
                ours = source["Resources"][name]["Properties"]
                assert resource["Properties"] == ours | {"CodeUri": f"session-reaper-{VERSION}.zip"}
            else:
                assert resource == source["Resources"][name]
        assert packaged.get("Parameters") == source.get("Parameters")
    assert functions >= 2


def test_every_handler_of_the_templates_can_be_imported_from_the_zip(
    release: Path, library: Path
) -> None:
    handlers = {
        resource["Properties"]["Handler"].rpartition(".")[0]
        for _, packaged in _load_templates(release)
        for resource in packaged["Resources"].values()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    path = [str(release / f"session-reaper-{VERSION}.zip"), str(library)]
    result = subprocess.run(  # noqa: S603 -- our own code
        [sys.executable, "-c", f"import {', '.join(sorted(handlers))}"],
        env={"PYTHONPATH": os.pathsep.join(path), "AWS_DEFAULT_REGION": "eu-west-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_root_template_has_the_metadata_of_an_application(release: Path) -> None:
    metadata = read_template(str(release / "template.yaml"))["Metadata"]
    application = metadata.pop("AWS::ServerlessRepo::Application")
    assert metadata == read_template("template.yaml")["Metadata"]
    assert str(application["SemanticVersion"]) == VERSION
    for file in (application["LicenseUrl"], application["ReadmeUrl"]):
        assert (release / file).is_file()


def test_cloudformation_takes_the_root_template_as_text(release: Path) -> None:
    """Terraform passes it so; above this size it would have to be in a bucket."""
    assert (release / "template.yaml").stat().st_size < 51_200


def test_the_notes_are_the_versions_section_of_the_changelog(release: Path) -> None:
    notes = (release.parent / "NOTES.md").read_text()
    assert notes in (ROOT / "CHANGELOG.md").read_text()
    changelog = "# Changelog\n\n## [1.1.0] - today\n\n### Added\n\n- It.\n\n## [1.0.0]\n\nOld.\n"
    assert read_notes(changelog, "1.1.0") == "### Added\n\n- It.\n"
    assert read_notes(changelog, "1.0.0") == "Old.\n"
    with pytest.raises(ValueError, match=r"no section for version 1\.1\.1"):
        read_notes(changelog, "1.1.1")


def test_a_template_without_a_metadata_section_is_refused() -> None:
    with pytest.raises(ValueError, match="has no Metadata section"):
        add_application("Resources: {}\n", VERSION)


def test_cfn_lint_accepts_the_packaged_template(release: Path) -> None:
    result = subprocess.run(  # noqa: S603 -- our own file
        [str(Path(sys.executable).with_name("cfn-lint")), "-t", str(release / "template.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
