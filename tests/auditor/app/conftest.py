"""What the tests of the parent share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nnaudit.app import child
from support import warm


@pytest.fixture(scope="session")
def _warm_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    with warm.command(tmp_path_factory.mktemp("warm")) as command:
        yield command


@pytest.fixture
def warm_children(_warm_command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the children of this test forked from a process that has imported torch."""
    monkeypatch.setattr(child, "COMMAND", _warm_command)
