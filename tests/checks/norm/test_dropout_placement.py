from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.norm.dropout_placement import DropoutPlacement
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def audited(model: Callable[[], nn.Module], loss: Callable = F.cross_entropy) -> Result:
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, torch.arange(256) % 3), batch_size=64)
    target = Target(model, data, loss=loss)
    return run_check(DropoutPlacement, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class FunctionalOutput(nn.Module):
    def __init__(self, *, last: bool, p: float = 0.5) -> None:
        super().__init__()
        self.first, self.second, self.last, self.p = nn.Linear(8, 32), nn.Linear(32, 3), last, p

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        if self.last:
            return F.dropout(self.second(h), self.p, self.training)
        return self.second(F.dropout(h, self.p, self.training))


def net(*middle: nn.Module, last: tuple[nn.Module, ...] = ()) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), *middle, nn.Linear(32, 3), *last)


@pytest.mark.parametrize(
    "model",
    [lambda: net(last=(nn.Dropout(0.2),)), lambda: FunctionalOutput(last=True)],
    ids=["module", "function"],
)
def test_dropout_on_the_output_is_a_warning(model: Callable[[], nn.Module]) -> None:
    result = audited(model)
    assert result.status is Status.WARN
    assert "The loss gets the output of a dropout" in result.message


@pytest.mark.parametrize("between", [(), (nn.Identity(),)])
def test_dropout_right_before_batch_normalisation_is_noted(between: tuple) -> None:
    result = audited(lambda: net(nn.Dropout(0.5), *between, nn.BatchNorm1d(32)))
    assert result.status is Status.NOTE
    assert "variance" in result.message
    assert result.module == str(3 + len(between))


@pytest.mark.parametrize(
    "model",
    [
        lambda: net(nn.Dropout(0.5)),
        lambda: net(nn.BatchNorm1d(32), nn.Dropout(0.5)),
        lambda: net(nn.Dropout(0.1), nn.BatchNorm1d(32)),
        lambda: net(nn.Dropout(0.5), nn.LayerNorm(32)),
        lambda: net(last=(nn.Dropout(0.0),)),
        lambda: FunctionalOutput(last=False),
        lambda: FunctionalOutput(last=True, p=0.0),
    ],
)
def test_dropout_that_does_no_harm(model: Callable[[], nn.Module]) -> None:
    assert audited(model).status in (Status.PASS, Status.SKIP)


class HiddenBeside(nn.Module):
    """Returns what a dropout made beside its logits, as encoders of Hugging Face's do."""

    def __init__(self, *, called: bool) -> None:
        super().__init__()
        self.body, self.head, self.called = nn.Linear(8, 32), nn.Linear(32, 3), called
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        hidden = F.dropout(h, 0.1) if self.called else self.dropout(h)
        return {"logits": self.head(hidden), "hidden": hidden}


@pytest.mark.parametrize("called", [False, True])
def test_hidden_states_beside_the_logits_are_no_output(called: bool) -> None:
    def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(output["logits"].view(-1, 3), target)

    result = audited(lambda: HiddenBeside(called=called), loss)
    assert result.status is Status.PASS


def test_no_dropout_is_skipped() -> None:
    assert audited(net).status is Status.SKIP
