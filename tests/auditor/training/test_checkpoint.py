"""What a model is made of, and moving it over."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from nnaudit.training.checkpoint import anatomy, differing, is_tensorial, transplant


class Mixed(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.randn(3, generator=g), persistent=False)
        self.plain = torch.randn(2, generator=g)
        self.array = np.full(2, float(seed))
        self.layers = [nn.Linear(2, 2)]
        self.template = [nn.Linear(2, 2, device="meta")]
        self.count, self.name, self.gap = seed, "same", math.nan
        self.function = lambda x: x


def test_every_part_that_holds_values_is_compared() -> None:
    torch.manual_seed(0)
    one, other = Mixed(0), Mixed(1)
    names = differing(anatomy(one), anatomy(other))
    assert set(names) == {"table", "plain", "array", "layers", "count"}
    assert differing(anatomy(one), anatomy(one)) == []


def test_transplanting_removes_the_difference() -> None:
    one, other = Mixed(0), Mixed(1)
    source = anatomy(one)
    transplant(differing(source, anatomy(other)), source, other)
    assert differing(source, anatomy(other)) == []
    other.plain.add_(1)
    assert torch.equal(one.plain, source["plain"])


def test_only_tensors_arrays_and_modules_are_tensorial() -> None:
    parts = anatomy(Mixed(0))
    assert [n for n in parts if is_tensorial(parts[n])] == [
        "weight", "table", "plain", "array", "layers", "template",
    ]  # fmt: skip
