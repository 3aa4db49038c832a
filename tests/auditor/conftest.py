"""What these tests share: small programs, and children that need not import torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnaudit.processes import child
from support import warm

sys.path.insert(0, str(Path(__file__).parent))  # for the module ``programs``, under importlib mode


@pytest.fixture(scope="session")
def _warm_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    with warm.command(tmp_path_factory.mktemp("warm")) as command:
        yield command


@pytest.fixture
def warm_children(_warm_command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the children of this test forked from a process that has imported torch."""
    monkeypatch.setattr(child, "COMMAND", _warm_command)
