from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from nnaudit.probes.alignment import cut, lengths_of


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@pytest.mark.parametrize(
    ("batch", "lengths"),
    [
        ((torch.zeros(4, 2), torch.zeros(3)), {"[0]": 4, "[1]": 3}),
        ({"x": np.zeros((4, 2)), "text": ["a", "b"]}, {"['x']": 4, "['text']": 2}),
        (Pair(torch.zeros(4), torch.zeros(4)), {".x": 4, ".y": 4}),
        ((torch.zeros(4), torch.tensor(1.0), None), {"[0]": 4}),
        (((torch.zeros(4), torch.zeros(4)), torch.zeros(5)), {"[0]": 4, "[1]": 5}),
        (torch.zeros(4), {}),
        ((torch.zeros(4, 2), [torch.zeros(n, 4) for n in (1, 1, 2, 1)]), {}),
    ],
)
def test_each_member_has_its_length(batch: Any, lengths: dict[str, int]) -> None:
    assert lengths_of(batch) == lengths


def test_cutting_leaves_numbers_alone() -> None:
    x, y, weight = cut((torch.arange(4), np.arange(3), torch.tensor(2.0)), 2)
    assert x.tolist() == [0, 1]
    assert y.tolist() == [0, 1]
    assert float(weight) == 2.0
