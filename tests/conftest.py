from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        type=Path,
        help="a folder with npm's PostgreSQL servers, to be used instead of the bundled ones",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`: most integration tests wait, and do not compute."""
    return 2 * (os.cpu_count() or 1)
