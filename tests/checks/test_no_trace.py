"""Every check leaves weights, optimizer, modes and random numbers as they were, bit for bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks import builtin
from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.targets import batch as batches
from nnaudit.targets.target import Target


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3)
    )


def loader() -> DataLoader:
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=64, shuffle=True)


def state(loop: DirectLoop) -> list[str]:
    """Everything that a step would change, as hashes."""
    optimizer = loop.optimizers[0].state_dict()
    return [
        batches.digest(dict(loop.model.state_dict())),
        batches.digest([p.grad for p in loop.model.parameters() if p.grad is not None]),
        batches.digest(list(optimizer["state"].values())) + str(optimizer["param_groups"]),
        str([module.training for module in loop.model.modules()]),
        batches.digest(torch.get_rng_state()),
        str(random.getstate()),
        batches.digest(np.random.get_state()[1]),
    ]


@pytest.mark.parametrize("check", builtin(), ids=lambda c: c.code)
def test_a_check_leaves_no_trace(check: type[Check]) -> None:
    target = Target(
        model=build_model,
        train_loader=loader,
        val_loader=loader,
        loss=nn.functional.cross_entropy,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    loop.step(next(loop.batches()))
    before = state(loop)
    run_check(check, Audit(loop))
    assert state(loop) == before
