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
    parser.addoption(
        "--thorough",
        action="store_true",
        help="try all examples of the properties, and all regions, instead of a sample",
    )


@pytest.fixture(scope="session")
def is_thorough(pytestconfig: pytest.Config) -> bool:
    chosen: bool = pytestconfig.getoption("--thorough")
    return chosen


@pytest.fixture(scope="session")
def is_alone() -> bool:
    """Whether no other worker computes meanwhile: only then a test may need a core for seconds."""
    return "PYTEST_XDIST_WORKER" not in os.environ


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`: many integration tests wait more than they compute."""
    return 2 * (os.cpu_count() or 1) + 1
