from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.gradient_scale import GradientScale
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Curve, Result, Status
from nnaudit.targets.target import Target


def audited(model: Callable[[], nn.Module]) -> Result:
    x = torch.randn(96, 16, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
    target = Target(
        model, data, loss=F.cross_entropy, optimizer=lambda m: torch.optim.SGD(m.parameters(), 1e-2)
    )
    return run_check(GradientScale, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def deep(activation: type[nn.Module], *, gain: float = 1.0, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(12):
        linear = nn.Linear(16, 16)
        nn.init.normal_(linear.weight, std=gain * (2 / 16) ** 0.5)
        layers += [linear, *([nn.LayerNorm(16)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (lambda: deep(nn.Sigmoid), "vanish"),
        (lambda: deep(nn.Tanh, gain=0.2), "vanish"),
        (lambda: deep(Sine, gain=3.0), "explode"),
    ],
)
def test_gradients_that_change_their_size(model: Callable[[], nn.Module], word: str) -> None:
    result = audited(model)
    assert result.status is Status.WARN
    assert word in result.message
    (chart,) = result.evidence
    assert isinstance(chart, Curve)
    assert len(chart.series[0].y) == 13


class Scaled(nn.Module):
    """A block beside a shortcut, with a trained factor at its end that begins near zero."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.factor = nn.Parameter(torch.full((16,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.body(x)


def staged(*starts: float) -> nn.Module:
    """Stages of three such blocks, a layer on the main path before each: ConvNeXt's plan."""
    layers = (m for s in starts for m in (nn.Linear(16, 16), *(Scaled(s) for _ in range(3))))
    return nn.Sequential(*layers, nn.Linear(16, 3))


@pytest.mark.parametrize(
    "model",
    [
        lambda: staged(1e-6, 1e-6, 1e-6),
        lambda: staged(1.0, 1.0, 1e-6, 1e-6),
        lambda: staged(1e-6, 1e-6, 1.0, 1.0),
        lambda: deep(nn.ReLU),
        lambda: deep(nn.ReLU, norm=True),
        lambda: deep(nn.Tanh, norm=True),
        lambda: nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(16, 16), nn.Tanh()))),
    ],
)
def test_healthy_depths(model: Callable[[], nn.Module]) -> None:
    assert audited(model).status is Status.PASS


def test_a_shallow_network_is_skipped() -> None:
    assert audited(lambda: nn.Linear(16, 3)).status is Status.SKIP
