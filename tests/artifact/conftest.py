from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.artifact.runtime import make_runtime_library

BUILT = Path(__file__).parents[2] / ".aws-sam"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the Lambda runtime: its client and boto3."""
    if sys.platform != "linux":  # fail, because a skipped test would prove nothing
        pytest.fail(
            "The Lambda runtime client is built for Linux only: run this there, as CI does."
        )
    return make_runtime_library(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def artifact() -> Path:
    """The artifact of the reaper's function."""
    return _build("build/SessionReaper")


@pytest.fixture(scope="session")
def webhook_artifact() -> Path:
    """The artifact of the webhook's function."""
    return _build("webhook/Webhook")


def _build(function: str) -> Path:
    folder = BUILT / function
    if not folder.is_dir():
        pytest.fail("Nothing is built: run `make artifact`.")
    return folder
