from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.loss_reduction import LossReduction
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def audited(loss: Callable[..., Tensor], y: Tensor | None = None, **parts: Any) -> Result:
    y = X[:, :3].argmax(1) if y is None else y
    data = DataLoader(TensorDataset(X, y), batch_size=16)

    def model() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    target = Target(model, data, loss=loss, **parts)
    return run_check(LossReduction, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: F.cross_entropy(o, y, reduction="sum"),
        lambda o, y: F.cross_entropy(o, y, reduction="none").sum(),
        lambda o, y: F.cross_entropy(o, y) * len(y),
        lambda o, y: -o.log_softmax(1)[torch.arange(len(y)), y].sum(),
    ],
)
def test_a_sum_is_a_warning_about_the_learning_rate(loss: Callable[..., Tensor]) -> None:
    result = audited(loss, optimizer=sgd)
    assert result.status is Status.WARN
    assert "0.16" in result.message


def test_adam_does_not_mind_so_it_is_a_note() -> None:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y, reduction="sum")

    result = audited(loss, optimizer=lambda m: torch.optim.Adam(m.parameters()))
    assert result.status is Status.NOTE
    assert "Adam's step does not scale with the loss" in result.message
    assert result.fix == "loss = loss / len(x)"


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        lambda o, y: F.cross_entropy(o, y, weight=torch.tensor([1.0, 2.0, 5.0])),
        lambda o, y: F.cross_entropy(o, y, reduction="sum") / len(y),
        lambda o, y: F.mse_loss(o, F.one_hot(y, 3).float(), reduction="none").sum(1).mean(),
    ],
)
def test_a_mean_passes(loss: Callable[..., Tensor]) -> None:
    assert audited(loss).status is Status.PASS


def test_rows_that_are_compared_with_each_other_give_no_answer() -> None:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        z = F.normalize(o, dim=1)
        away = 1e9 * torch.eye(len(z))
        return F.cross_entropy(z @ z.T / 0.1 - away, torch.arange(len(z)).roll(1))

    assert audited(loss).status is Status.INCONCLUSIVE
