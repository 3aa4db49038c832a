from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.init.dead_units import DeadUnits
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def audited(
    model: Callable[[], nn.Module],
    rows: int = 640,
    shape: tuple[int, ...] = (16,),
    shift: float = 0,
) -> Result:
    x = shift + torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, torch.arange(rows) % 3), batch_size=64)
    target = Target(model, data, loss=F.cross_entropy)
    return run_check(DeadUnits, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class Net(nn.Module):
    def __init__(
        self, bend: Callable[[Tensor], Tensor] = F.relu, *, bias: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 3)
        self.bend = bend
        with torch.no_grad():
            self.first.bias.fill_(bias)
            self.first.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.bend(self.first(x)))


@pytest.mark.parametrize("bend", [F.relu, nn.ReLU(), Tensor.relu, torch.relu, F.relu6])
def test_units_that_are_never_active_are_a_warning(bend: Callable[[Tensor], Tensor]) -> None:
    result = audited(lambda: Net(bend, bias=-8.0))
    assert result.status is Status.WARN
    assert "100% of the 32 relu units" in result.message
    assert result.module == "first"


@pytest.mark.parametrize("bend", [torch.sigmoid, nn.Tanh()])
def test_units_that_are_saturated_throughout_are_a_warning(
    bend: Callable[[Tensor], Tensor],
) -> None:
    result = audited(lambda: Net(bend, scale=50.0, bias=0.0), shift=20.0)
    assert result.status is Status.WARN
    assert "saturated" in result.message


def test_filters_are_the_units_of_a_convolution() -> None:
    def model(bias: float) -> nn.Module:
        made = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
        )  # fmt: skip
        nn.init.constant_(made[0].bias, bias)
        return made

    assert audited(lambda: model(-9.0), shape=(1, 8, 8)).status is Status.WARN
    result = audited(lambda: model(0.0), shape=(1, 8, 8))
    assert result.status is Status.PASS
    assert result.evidence[0].rows[0][2] == 8.0


@pytest.mark.parametrize("bend", [F.relu, torch.sigmoid, torch.tanh, F.gelu])
def test_an_ordinary_network_is_left_alone(bend: Callable[[Tensor], Tensor]) -> None:
    result = audited(lambda: Net(bend))
    assert result.status is (Status.SKIP if bend is F.gelu else Status.PASS)


def test_some_dead_units_are_the_rule() -> None:
    def model() -> nn.Module:
        made = Net()
        with torch.no_grad():
            made.first.bias[:12] = -9.0
        return made

    assert audited(model).status is Status.PASS


def test_few_samples_give_no_answer() -> None:
    assert audited(lambda: Net(bias=-8.0), rows=100).status is Status.INCONCLUSIVE


def test_a_small_training_set_is_seen_as_a_whole() -> None:
    result = audited(lambda: Net(bias=-8.0), rows=150)
    assert result.status is Status.WARN
    assert audited(Net, rows=150).status is Status.PASS


def test_units_that_only_later_batches_activate_are_alive() -> None:
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 3)
            with torch.no_grad():
                self.first.weight.copy_(torch.eye(16))
                self.first.bias.fill_(-2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x)))

    assert audited(Rare).status is Status.PASS
