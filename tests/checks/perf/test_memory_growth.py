"""PERF102: losses that bring their graphs along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.perf.memory_growth import MemoryGrowth
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.script import run_script
from nnaudit.probes.kept_graphs import COUNTS, SETTLING
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def loader() -> DataLoader[Any]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(128, 8, generator=g)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)


def ask(step: Callable[[nn.Module, Any], Tensor]) -> Result:
    """Ask about a perceptron with ``step`` as its training step."""
    target = Target(
        model=lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)),
        train_loader=loader,
        training_step=step,
    )
    return run_check(MemoryGrowth, Audit(DirectLoop(target, torch.device("cpu"), 0)))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Collecting:
    """A training step that keeps something of every step."""

    def __init__(self, keep: Callable[[Tensor], Any]) -> None:
        self.keep, self.kept = keep, []

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        loss = loss_of(model, batch)
        self.kept.append(self.keep(loss))
        return loss


class Summing:
    """A training step that adds up its losses."""

    total: Any = 0.0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        loss = loss_of(model, batch)
        self.total = self.total + loss
        return loss


def test_losses_in_a_list_warn() -> None:
    result = ask(Collecting(lambda loss: loss))
    assert result.status is Status.WARN
    assert "NllLossBackward0" in result.message
    assert "detach" in result.fix


def test_losses_added_up_warn() -> None:
    result = ask(Summing())
    assert result.status is Status.WARN
    assert "longer" in result.message


@pytest.mark.parametrize("keep", [lambda loss: loss.item(), lambda loss: loss.detach()])
def test_numbers_in_a_list_pass(keep: Callable[[Tensor], Any]) -> None:
    assert ask(Collecting(keep)).status is Status.PASS


def test_a_loop_that_lets_go_is_believed_after_two_counts() -> None:
    assert ask(loss_of).steps == SETTLING + 2
    assert ask(Summing()).steps == SETTLING + COUNTS


class Windowed(Collecting):
    """Keeps the losses of the last three steps, as truncated back-propagation does."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        loss = super().__call__(model, batch)
        self.kept = self.kept[-3:]
        return loss


def test_a_window_of_steps_passes() -> None:
    assert ask(Windowed(lambda loss: loss)).status is Status.PASS


def test_a_plain_step_passes() -> None:
    assert ask(loss_of).status is Status.PASS


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x = torch.randn(128, 8)
loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(3):
    total = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss{item}
"""


@pytest.mark.parametrize(("item", "status"), [("", Status.WARN), (".item()", Status.PASS)])
def test_a_running_total_in_a_script(tmp_path: Path, item: str, status: Status) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.replace("{item}", item))
    result = run_script(path, [], "cpu", 0, lambda loop: run_check(MemoryGrowth, Audit(loop)))
    assert result.status is status, result.message
