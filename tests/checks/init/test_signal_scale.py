from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.init.signal_scale import SignalScale
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def audited(model: Callable[[], nn.Module], scale: float = 1.0) -> Result:
    x = scale * torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
    target = Target(model, data, loss=nn.functional.cross_entropy)
    return run_check(SignalScale, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def plain(depth: int = 12, std: float | None = None, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(16, 16)
        if std is not None:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        layers += [layer, *([nn.LayerNorm(16)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 3))


class Residual(nn.Module):
    """Branches that begin at zero, and a small output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.head = nn.Linear(16, 3)
        for block in self.blocks:
            nn.init.zeros_(block.weight)
            nn.init.zeros_(block.bias)
        nn.init.normal_(self.head.weight, std=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


@pytest.mark.parametrize(
    ("std", "word"), [(0.05, "the signal vanishes"), (2.0, "the signal explodes")]
)
def test_a_signal_that_is_lost_on_its_way_is_a_warning(std: float, word: str) -> None:
    result = audited(lambda: plain(std=std))
    assert result.status is Status.WARN
    assert word in result.message
    assert result.module == "22"
    assert result.evidence


@pytest.mark.parametrize(
    "model",
    [
        lambda: plain(std=(2 / 16) ** 0.5),
        lambda: plain(std=0.05, norm=True),
        lambda: plain(depth=5),
        lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), Residual()),
    ],
    ids=["kaiming", "normalised", "default, 5 layers", "zero branches"],
)
def test_a_signal_that_keeps_its_size_passes(model: Callable[[], nn.Module]) -> None:
    assert audited(model).status is Status.PASS


def test_large_inputs_are_another_matter() -> None:
    assert audited(lambda: plain(depth=4), scale=200.0).status is Status.PASS


def test_a_shallow_network_is_skipped() -> None:
    assert audited(lambda: plain(depth=2)).status is Status.SKIP
