"""What every test shares.

One thread, so that two workers do not fight over two cores; and that the tests marked
``exhaustive`` are left out, unless ``NNAUDIT_TESTS=all`` is in the environment.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what CI only samples."""
    if os.environ.get("NNAUDIT_TESTS") == "all":
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
