"""What the tests of loops share."""

from __future__ import annotations

import pytest

from nnaudit.loop.script import discovery


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a training with a loader as long as these small scripts need, and no longer."""
    monkeypatch.setattr(discovery, "WAIT", 2.0)
