from __future__ import annotations

from pathlib import Path

from hypothesis import configuration, settings

# The same examples in every run, and nothing left behind in the checkout but a cache like others.
settings.register_profile("unit", database=None, deadline=None, derandomize=True, max_examples=50)
settings.load_profile("unit")
configuration.set_hypothesis_home_dir(Path(__file__).parents[2] / ".pytest_cache" / "hypothesis")
