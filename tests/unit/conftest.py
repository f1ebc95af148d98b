from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import configuration, settings

if TYPE_CHECKING:
    import pytest

# The same examples in every run, and nothing left behind in the checkout but a cache like others.
settings.register_profile("quick", database=None, deadline=None, derandomize=True, max_examples=10)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=100)
configuration.set_hypothesis_home_dir(Path(__file__).parents[2] / ".pytest_cache" / "hypothesis")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("--thorough") else "quick")
