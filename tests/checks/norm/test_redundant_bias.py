from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.norm.redundant_bias import RedundantBias
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def audited(model: Callable[[], nn.Module]) -> Result:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, torch.arange(64) % 3), batch_size=16)
    target = Target(model, data, loss=nn.functional.cross_entropy)
    return run_check(RedundantBias, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def net(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, *, bias: bool, between: bool = False):
    layers = [nn.Conv2d(3, 8, 3, bias=bias), *([nn.ReLU(inplace=True)] if between else [])]
    return nn.Sequential(*layers, norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))


class Functional(nn.Module):
    """The normalisation is far from its layer in the code, and right behind it in the data."""

    def __init__(self, *, bend: bool) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(3, 8, 3)
        self.head, self.bend = nn.Linear(8, 3), bend

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h = h.relu() if self.bend else h
        return self.head(self.norm(h).mean((2, 3)))


@pytest.mark.parametrize("model", [
    lambda: net(bias=True), lambda: Functional(bend=False),
    lambda: net(nn.InstanceNorm2d, bias=True),
])  # fmt: skip
def test_a_bias_right_before_a_normalisation_is_noted(model: Callable[[], nn.Module]) -> None:
    result = audited(model)
    assert result.status is Status.NOTE
    assert "8 unused parameters" in result.message
    assert result.fix.startswith("pass bias=False to ")


@pytest.mark.parametrize("model", [
    lambda: net(bias=False), lambda: net(bias=True, between=True), lambda: Functional(bend=True),
])  # fmt: skip
def test_a_bias_that_has_an_effect_passes(model: Callable[[], nn.Module]) -> None:
    assert audited(model).status is Status.PASS


def test_group_normalisation_does_not_take_a_bias_off() -> None:
    assert audited(lambda: net(lambda c: nn.GroupNorm(2, c), bias=True)).status is Status.SKIP


def test_a_frozen_normalisation_keeps_the_bias_useful() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self[1].eval()
            return self

    assert audited(lambda: Frozen(*net(bias=True))).status is Status.SKIP
