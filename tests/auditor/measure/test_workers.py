from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.errors import UserCodeError
from nnaudit.measure.workers import (
    fingerprint,
    generators_of,
    made_by_workers,
    reachable,
    states_of,
)

ANYONES = np.random.default_rng(0)


class Transform:
    def __init__(self) -> None:
        self.rng = random.Random(0)


class Data(Dataset[Any]):
    def __init__(self) -> None:
        self.transforms = [Transform(), Transform()]
        self.system = random.SystemRandom()
        self.samples = [(f"{i}.png", i) for i in range(100_000)]

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise OSError("gone")
        return i


def test_generators_are_found_by_name_once_each() -> None:
    found = dict(generators_of(Data()))
    assert set(found) == {"dataset.transforms[0].rng", "dataset.transforms[1].rng", "ANYONES"}


def test_a_walk_through_many_samples_ends() -> None:
    assert len(list(reachable(Data()))) < 10_000


def test_states_change_with_what_is_drawn() -> None:
    data = Data()
    before = states_of(data)
    data.transforms[1].rng.random()
    torch.rand(1)
    after = states_of(data)
    assert {name for name in before if before[name] != after[name]} == {
        "dataset.transforms[1].rng",
        "torch",
    }


class Picture:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def tobytes(self) -> bytes:
        return self._content


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), torch.ones(3)),
        ((torch.zeros(3), 1), (torch.zeros(3), 2)),
        (Picture(b"a"), Picture(b"b")),
        ({"x": {1, 2}}, {"x": {1, 3}}),
        ("a", "b"),
    ],
)
def test_content_decides_about_a_fingerprint(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


def test_workers_take_turns_at_what_they_are_asked_for() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0)), 2, num_workers=1)
    made, ended = made_by_workers(loader, workers=2, asked=[[0, 1], [0, 1], [2], [3]])
    assert ended
    assert [one.worker for one in made] == [0, 1, 0, 1]
    assert made[0].items == made[1].items
    assert made[2].digest != made[3].digest
    assert loader.num_workers == 1


def test_what_a_worker_raises_is_the_user_s() -> None:
    with pytest.raises(UserCodeError, match="workers"):
        made_by_workers(DataLoader(Data(), 4, num_workers=1), workers=1)
