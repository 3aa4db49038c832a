"""The functions that seed, and those that put a state back, exist in this torch."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch

from nnaudit.loop.seeders import RESTORERS, SEEDERS, is_torch_inside


@pytest.mark.parametrize(("owner", "name"), [*SEEDERS, *RESTORERS])
def test_it_is_a_function_of_its_module(owner: Any, name: str) -> None:
    assert callable(getattr(owner, name))


def test_torch_seeding_its_accelerators_is_told_from_a_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callers: list[FrameType] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: callers.append(sys._getframe(1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
    torch.cuda.manual_seed_all(0)
    assert [is_torch_inside(frame) for frame in callers] == [True, False]
