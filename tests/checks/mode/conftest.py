"""What the tests of this family share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result
from nnaudit.targets.target import Target

Ask = Callable[..., Result]


def rows(count: int = 320, batch_size: int = 32) -> Callable[[], DataLoader[Any]]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (count,), generator=g)
    x = torch.randn(5, 12, generator=g)[y] + 0.5 * torch.randn(count, 12, generator=g)
    return lambda: DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)


@pytest.fixture
def ask() -> Ask:
    """Ask a check about a model, trained with Adam on five classes of twelve numbers."""

    def run(check: type[Check], model: Any, *, batch_size: int = 32, **changes: Any) -> Result:
        parts: dict[str, Any] = {
            "train_loader": rows(batch_size=batch_size),
            "loss": F.cross_entropy,
            "optimizer": lambda m: torch.optim.Adam(
                [p for p in m.parameters() if p.requires_grad], 3e-3
            ),
        }
        target = Target(model=model, **{**parts, **changes})
        return run_check(check, Audit(DirectLoop(target, torch.device("cpu"), 0)))

    return run
