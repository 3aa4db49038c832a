"""Inputs beside targets, where the target is in a batch, and training on permuted labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure import permuted_labels
from nnaudit.measure.permuted_labels import (
    Permuted,
    permuted_run,
    training_columns,
)
from nnaudit.targets.target import Target
from nnaudit.training.stopwatch import Stopwatch

X = torch.randn(640, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def audit_of(model: Any, *columns: Tensor, **parts: Any) -> Audit:
    usual: dict[str, Any] = {
        "loss": F.cross_entropy,
        "optimizer": lambda m: torch.optim.Adam(m.parameters(), 1e-2),
    }
    loader = DataLoader(TensorDataset(*columns), 32, shuffle=True)
    target = Target(model, lambda: loader, **usual | parts)
    return Audit(DirectLoop(target, torch.device("cpu"), seed=0))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


class Told(nn.Module):
    """Looks at the label it is to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(3, 16), nn.Linear(22, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.cat([x, self.embed(y)], 1))


def step_told(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(*batch), batch[1])


def test_columns_are_the_inputs_row_by_row() -> None:
    inputs, target = training_columns(audit_of(net, X, Y))
    assert [tuple(t.shape) for t in inputs] == [(512, 6)]
    assert torch.equal(inputs[0][:, :3].argmax(1), target)


def test_rows_with_several_targets_have_no_columns() -> None:
    wide = audit_of(lambda: nn.Linear(6, 2), X, X[:, :2], loss=F.mse_loss)
    assert training_columns(wide)[0] == []


def test_permuted_labels_cannot_be_learnt_unless_the_network_is_told() -> None:
    audit = audit_of(net, X, Y)
    before = [p.clone() for p in audit.loop.model.parameters()]
    honest = permuted_run(audit, "[1]")
    assert honest.usable
    assert not honest.leaks
    assert all(
        torch.equal(a, b) for a, b in zip(before, audit.loop.model.parameters(), strict=True)
    )
    told = permuted_run(audit_of(Told, X, Y, training_step=step_told), "[1]")
    assert told.leaks


def test_slow_steps_are_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permuted_labels, "_SECONDS", 1e-6)
    monkeypatch.setattr(Stopwatch, "seconds", 1e-6)  # of three steps: of twenty it would be more
    found = permuted_run(audit_of(net, X, Y), "[1]")
    assert len(found.losses) == 3
    assert not found.usable


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.6])
def test_null_rejection_rate_and_power(spread: float) -> None:
    rng = np.random.default_rng(0)

    def leaks(gain: float) -> bool:
        return Permuted(tuple(1.1 - gain + spread * rng.normal(size=80)), 1.1).leaks

    assert sum(leaks(0.0) for _ in range(3000)) == 0
    assert sum(leaks(0.6) for _ in range(200)) >= 195


def test_too_few_losses_or_no_numbers_prove_nothing() -> None:
    assert not Permuted((0.1,) * 19, 1.1).usable
    assert not Permuted((0.1,) * 80, float("nan")).leaks
    assert not Permuted((float("inf"), *(0.1,) * 80), 1.1).leaks
