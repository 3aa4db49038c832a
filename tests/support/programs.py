"""A small training that works, to be broken in one place by each test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.targets.target import Target


def digits(rows: int = 640, batch_size: int = 32) -> Callable[[], DataLoader[Any]]:
    """A factory of shuffled loaders: noisy rows of 12 features around 5 prototypes, and labels."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (rows,), generator=g)
    x = torch.randn(5, 12, generator=g)[y] + 0.5 * torch.randn(rows, 12, generator=g)
    return lambda: DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)


def perceptron() -> nn.Module:
    """A fresh network for :func:`digits`."""
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 5))


def target(**changes: Any) -> Target:
    """Train :func:`perceptron` on :func:`digits` by SGD, with ``changes`` to the parts."""
    parts: dict[str, Any] = {
        "model": perceptron,
        "train_loader": digits(),
        "loss": F.cross_entropy,
        "optimizer": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9),
    }
    return Target(**{**parts, **changes})
