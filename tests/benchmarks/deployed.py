"""Measures cold starts of the deployed artifact under the real Lambda runtime client.

Ours is the output of `make build`, with its bytecode. The yardstick is its file and its
requirements as a plain `sam build` leaves them, without bytecode. Both use the runtime's botocore
and boto3, with bytecode.
"""

import compileall
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.artifact.runtime import Runtime, make_runtime_library

ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".aws-sam" / "build" / "SessionReaper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A folder as Lambda would unpack it, its handler, and the runtime's own packages."""

    artifact: Path
    handler: str
    library: Path

    def measure_cold_start(self, environment: Mapping[str, str]) -> float:
        """Return the seconds from the start of a process to the end of its first, quiet run."""
        with Runtime(self.artifact, self.handler, self.library, environment=environment) as runtime:
            started = runtime.start()
            answer = runtime.invoke({})
        if answer.error is not None:
            raise SystemExit(f"{self.handler}: {answer.error}")
        return started + answer.seconds

    def describe_size(self, folder: Path) -> str:
        """Describe the size that Lambda unpacks, and that of the zip, which is made in `folder`."""
        files = [path for path in self.artifact.rglob("*") if path.is_file()]
        zipped = folder / "artifact.zip"
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(self.artifact))
        unpacked = sum(file.stat().st_size for file in files)
        return f"{unpacked / 1e6:.1f} MB unpacked, {zipped.stat().st_size / 1e6:.1f} MB zipped"


def prepare_functions(folder: Path) -> tuple[Deployed, Deployed]:
    """Prepare ours and the yardstick in `folder`."""
    if not BUILT.is_dir():
        raise SystemExit("nothing is built: run `make bench`, which builds first")
    library = make_runtime_library(folder / "runtime")
    for package in library.iterdir():
        compileall.compile_dir(package.resolve(), quiet=2)
    yardstick = folder / "yardstick"
    requirements = make_runtime_library(folder / "requirements", "pg8000")
    shutil.copytree(requirements, yardstick, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("yardstick.py"), yardstick)
    return (
        Deployed(artifact=BUILT, handler="session_reaper.handler.lambda_handler", library=library),
        Deployed(artifact=yardstick, handler="yardstick.lambda_handler", library=library),
    )


def select_environment() -> dict[str, str]:
    """Return the variables of our environment that the function needs."""
    names = ("TARGET_SECRETS", "TOPIC_ARN", "MODE")
    return {k: v for k, v in os.environ.items() if k.startswith("AWS_") or k in names}
