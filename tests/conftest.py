from __future__ import annotations

import gc
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
        help="also run the tests that take long, with all examples and all regions instead of a sample",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: takes long, and runs with --thorough only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests with the mark `thorough`, which take long, unless `--thorough` asks for them."""
    if config.getoption("--thorough"):
        return
    long = [item for item in items if item.get_closest_marker("thorough")]
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=long)


def pytest_collection_finish() -> None:
    """Leave what the modules hold out of garbage collections: each takes half a second with it."""
    gc.freeze()


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
    return 5 * (os.cpu_count() or 1) // 2
