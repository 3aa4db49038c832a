"""STEP110: weight decay that is not what it seems, or too much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from author import ask, target
from torch import nn

from nnaudit.checks.step.weight_decay import WeightDecay
from nnaudit.report import Status


def decay(optimizer: type[torch.optim.Optimizer], amount: float, lr: float = 1e-3) -> Any:
    return target(optimizer=lambda m: optimizer(m.parameters(), lr=lr, weight_decay=amount))


@pytest.mark.parametrize(
    "what",
    [
        decay(torch.optim.Adam, 0.01),
        decay(torch.optim.Adam, 0.1),
        decay(torch.optim.RMSprop, 0.05),
        decay(torch.optim.SGD, 0.5, 0.1),
        decay(torch.optim.AdamW, 20.0),
    ],
    ids=["Adam 0.01", "Adam 0.1", "RMSprop", "SGD 0.5", "AdamW 20"],
)
def test_decay_that_is_not_meant_warns(what: Any) -> None:
    result = ask(WeightDecay, what)
    assert result.status is Status.WARN
    assert "weight_decay" in result.fix


def groups(m: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in m.parameters() if p.ndim > 1]
    rest = [p for p in m.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    )


@pytest.mark.parametrize(
    "what",
    [
        decay(torch.optim.AdamW, 0.01),
        decay(torch.optim.AdamW, 0.0),
        decay(torch.optim.Adam, 5e-4),
        decay(torch.optim.SGD, 5e-4, 0.1),
        target(optimizer=groups),
        target(optimizer=lambda m: torch.optim.LBFGS(m.parameters())),
        target(
            optimizer=lambda m: torch.optim.Adam(
                m.parameters(), weight_decay=0.01, decoupled_weight_decay=True
            )
        ),
    ],
)
def test_usual_decays_pass(what: Any) -> None:
    assert ask(WeightDecay, what).status is Status.PASS


def test_strong_decay_of_biases_is_noted() -> None:
    assert ask(WeightDecay, decay(torch.optim.AdamW, 0.3)).status is Status.NOTE


def test_a_default_optimizer_is_skipped() -> None:
    assert ask(WeightDecay, target(optimizer=None)).status is Status.SKIP
