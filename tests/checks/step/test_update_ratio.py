"""STEP108: updates that are too small or too large for the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from author import ask, perceptron, target
from torch import nn
from torch.optim import lr_scheduler as schedulers

from nnaudit.checks.step.update_ratio import UpdateRatio
from nnaudit.report import Status


def adam(lr: float) -> Any:
    return lambda m: torch.optim.Adam(m.parameters(), lr)


@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_updates_as_large_as_the_weights_warn(lr: float) -> None:
    result = ask(UpdateRatio, target(optimizer=adam(lr)))
    assert result.status is Status.WARN
    assert "overwritten" in result.message


def test_updates_that_change_nothing_warn_and_suggest_a_rate() -> None:
    result = ask(UpdateRatio, target(optimizer=adam(1e-7)))
    assert result.status is Status.WARN
    assert "hardly change" in result.message
    assert "lr=" in result.fix


@pytest.mark.parametrize("lr", [1e-5, 1e-4, 1e-3, 1e-2])
def test_usual_rates_pass(lr: float) -> None:
    assert ask(UpdateRatio, target(optimizer=adam(lr))).status is Status.PASS


@pytest.mark.parametrize("lr", [1e-3, 1e-2, 0.1])
def test_usual_rates_of_sgd_pass(lr: float) -> None:
    sgd = target(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr, momentum=0.9))
    assert ask(UpdateRatio, sgd).status is Status.PASS


def test_a_warm_up_is_judged_by_its_peak() -> None:
    warm = target(
        optimizer=adam(1e-3),
        scheduler=lambda o: schedulers.LambdaLR(o, lambda s: (s + 1) / 10_000),
    )
    assert ask(UpdateRatio, warm).status is Status.PASS


def test_small_initial_weights_are_meant_to_grow() -> None:
    def build() -> nn.Module:
        model = perceptron()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.01)
        return model

    assert ask(UpdateRatio, target(model=build, optimizer=adam(3e-3))).status is Status.PASS


def test_optimizers_that_choose_their_steps_are_skipped() -> None:
    lbfgs = target(optimizer=lambda m: torch.optim.LBFGS(m.parameters()))
    assert ask(UpdateRatio, lbfgs).status is Status.SKIP


class Cosines(nn.Module):
    """Logits of a scale that normalisation fixes: steep at first, whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(12, 16)
        self.centres = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = nn.functional.normalize(self.features(x))
        return 16 * features @ nn.functional.normalize(self.centres).T


@pytest.mark.parametrize("warm_up", [False, True])
def test_a_steep_start_that_settles_passes(warm_up: bool) -> None:
    steep = target(
        model=Cosines,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.5, momentum=0.9),
        scheduler=(lambda o: schedulers.LambdaLR(o, lambda s: (s + 1) / 500)) if warm_up else None,
    )
    result = ask(UpdateRatio, steep)
    assert result.status is Status.PASS
    assert "at first" in result.message


class Gated(nn.Module):
    """Residual branches behind gates that start at zero, as in many residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.gates = nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for gate, branch in zip(self.gates, self.branches, strict=True):
            x = x + gate * branch(x)
        return self.head(x)


@pytest.mark.parametrize(("peak", "status"), [(3e-3, Status.PASS), (1e-6, Status.WARN)])
def test_what_lies_behind_a_gate_that_starts_at_zero_does_not_count(
    peak: float, status: Status
) -> None:
    """Of these matrices only weight decay is seen, which is 10,000 times smaller."""
    gated = target(
        model=Gated,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), peak, 0.9, weight_decay=2e-5),
        scheduler=lambda o: schedulers.LambdaLR(o, lambda s: (s + 1) / 300),
    )
    result = ask(UpdateRatio, gated)
    assert result.status is status
    assert "2 matrices" in result.message
