from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.input_use import InputUse
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def audited(model: Callable[[], nn.Module], x: Tensor | None = None) -> Result:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) if x is None else x
    data = DataLoader(TensorDataset(x, torch.arange(64) % 3), batch_size=16)
    target = Target(model, data, loss=F.cross_entropy)
    return run_check(InputUse, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


class Overwritten(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.zeros_like(x)
        return super().forward(x)


class Dead(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x) - 100))


class TimesZero(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x // 1e6 * 0)


class WrongDimension(Net):
    """A softmax over one element: always 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x))[:, :1].softmax(-1).expand(-1, 8))


@pytest.mark.parametrize("model", [Overwritten, Dead, TimesZero, WrongDimension])
def test_an_output_that_is_always_the_same(model: Callable[[], nn.Module]) -> None:
    result = audited(model)
    assert result.status is Status.FAIL
    assert result.steps == 5
    assert result.location is not None
    assert result.location.file == __file__


def test_an_output_layer_that_starts_at_zero() -> None:
    def model() -> nn.Module:
        made = Net()
        nn.init.zeros_(made.head.weight)
        return made

    result = audited(model)
    assert result.status is Status.PASS
    assert result.steps == 5


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Net, None),
        (lambda: nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 3)),
         torch.randint(9, (64, 4))),
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)),
         torch.randn(64, 3, 2, 2)),
        (Net, torch.ones(64, 6)),
    ],
)  # fmt: skip
def test_healthy_programs(model: Callable[[], nn.Module], x: Tensor | None) -> None:
    result = audited(model, x)
    assert result.status is Status.PASS
    assert result.steps == 0


def test_an_input_that_is_nearly_lost_is_a_warning() -> None:
    class Faint(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 1.0 + 1e-6 * super().forward(x).tanh()

    assert audited(Faint).status is Status.WARN
