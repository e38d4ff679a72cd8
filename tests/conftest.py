"""What holds for all tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

from internal_rl import runtime

# Most programs here run once: compiling them well would cost far more than it gains. Set before JAX
# is imported, and inherited by the scripts that tests start. The slow tests run long enough for the
# contrary (`make test-slow`).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
runtime.setup()

# A busy machine makes tests slower, not wrong: no example has a time limit, nor has their drawing.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


# Files of minutes, the longest first.
LONG = ("test_pipeline.py", "test_ant_paper.py", "test_grid_paper.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first: the processes that share the tests then end together."""
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
