"""Builds the release: one zip, the templates that use it, their checksums, and the release notes.

Run as ``python -m infra.package ARTIFACT FOLDER``. The same sources give the same bytes.
"""

import hashlib
import re
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

# AWS's guide for publishing to the Serverless Application Repository limits the characters of the
# name, the author and the labels. `sam package` uploads the two files.
_APPLICATION: Final = """\
Metadata:
  AWS::ServerlessRepo::Application:
    Name: session-reaper
    Description: Terminates leaked PostgreSQL sessions, verifies that they are gone, and reports why
    Author: session-reaper-authors
    SpdxLicenseId: MIT
    LicenseUrl: LICENSE
    ReadmeUrl: README.md
    Labels: [postgresql, rds, aurora, aiven, connections, leak]
    SemanticVersion: {version}
"""
_EARLIEST: Final = (1980, 1, 1, 0, 0, 0)  # that a zip can express


def build_release(artifact: Path, folder: Path) -> Path:
    """Write the release into a folder of its own, and NOTES.md beside it; return that folder."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    notes = read_notes((ROOT / "CHANGELOG.md").read_text("utf-8"), version)
    release = folder / f"session-reaper-{version}"
    release.mkdir(parents=True, exist_ok=True)
    (folder / "NOTES.md").write_text(notes, "utf-8")
    for old in release.iterdir():
        old.unlink()
    code = release / f"session-reaper-{version}.zip"
    write_zip(artifact, code)
    infra = ROOT / "infra"
    attached = sorted([*infra.glob("*.yaml"), *infra.glob("fleet/*.yaml")])
    for source in (ROOT / "template.yaml", *attached):
        text = use_zip(source.read_text("utf-8"), code.name)
        if source.parent == ROOT:
            text = add_application(text, version)
        (release / source.name).write_text(text, "utf-8")
    for name in ("LICENSE", "README.md"):
        (release / name).write_bytes((ROOT / name).read_bytes())
    digests = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(release.iterdir())
    ]
    (release / "SHA256SUMS").write_text("".join(digests), "utf-8")
    return release


def read_notes(changelog: str, version: str) -> str:
    """Return the section of a version. Raises ValueError if there is none."""
    found = re.search(rf"(?ms)^## \[{re.escape(version)}\].*?\n(.*?)(?=^## |\Z)", changelog)
    if not found:
        raise ValueError(f"CHANGELOG.md has no section for version {version}: write one")
    return found[1].strip() + "\n"


def write_zip(artifact: Path, target: Path) -> None:
    """Pack the artifact and the licence, without anything that differs between two builds."""
    files = {path.relative_to(artifact).as_posix(): path for path in artifact.rglob("*")}
    files["LICENSE"] = ROOT / "LICENSE"
    with zipfile.ZipFile(target, "w") as packed:
        for name, path in sorted(files.items()):
            if path.is_file():
                entry = zipfile.ZipInfo(name, _EARLIEST)
                entry.create_system = 3  # Unix, on every system: the mode below is one of Unix
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(entry, path.read_bytes(), compresslevel=9)


def use_zip(template: str, code: str) -> str:
    """Return a template whose functions take their code from the zip beside it."""
    return re.sub(r"(?m)^( +CodeUri: ).*$", rf"\g<1>{code}", template)


def add_application(template: str, version: str) -> str:
    """Return the root template with its metadata for the Serverless Application Repository."""
    before, heading, after = template.partition("\nMetadata:\n")
    if not heading:
        raise ValueError("template.yaml has no Metadata section that begins a line")
    return f"{before}\n{_APPLICATION.format(version=version)}{after}"


if __name__ == "__main__":
    print(build_release(Path(sys.argv[1]), Path(sys.argv[2])))
