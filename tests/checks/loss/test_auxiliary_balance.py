from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.auxiliary_balance import AuxiliaryBalance
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

X = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """A classifier that also rebuilds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.rebuild = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 8)
        self.log_variance = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.head(h), self.rebuild(h)


def audited(step: Callable[[nn.Module, Any], Tensor], model: Any = Two) -> Result:
    data = DataLoader(TensorDataset(X, X[:, :3].argmax(1), X[:, :1]), batch_size=32)
    target = Target(model, data, training_step=step)
    return run_check(AuxiliaryBalance, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def weighted(weight: float, total: Callable[..., Tensor] = lambda a, b: a + b) -> Any:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y, _ = batch
        logits, _ = model(x)
        hidden = model.body(x)
        return total(F.cross_entropy(logits, y), weight * hidden.abs().mean())

    return step


@pytest.mark.parametrize(
    "total",
    [
        lambda a, b: a + b,
        lambda a, b: (b + a) / 4,
        lambda a, b: torch.stack([a, b]).sum(),
        lambda a, b: sum([a, b]),
    ],
)
def test_a_term_that_outweighs_the_main_loss_is_a_warning(total: Callable[..., Tensor]) -> None:
    result = audited(weighted(1000.0, total))
    assert result.status is Status.WARN
    assert "cross entropy" in result.message
    assert "0.0" in result.fix


def test_some_more_is_a_note_and_less_passes() -> None:
    assert audited(weighted(5.0)).status is Status.NOTE
    assert audited(weighted(0.1)).status is Status.PASS


def test_the_pull_is_that_of_each_term_alone() -> None:
    light, heavy = (audited(weighted(w)).evidence[0].rows for w in (1.0, 1000.0))
    assert heavy[1][1] == pytest.approx(1000 * light[1][1], rel=1e-3)
    assert heavy[0][1] == pytest.approx(light[0][1], rel=1e-3)


def test_a_sum_over_layers_within_a_weight_is_one_term() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(batch[0])[0], batch[1]) + 1e-4 * penalty

    result = audited(step)
    assert result.status is Status.PASS
    assert len(result.evidence[0].rows) == 2


def several_tasks(model: nn.Module, batch: Any) -> Tensor:
    x, y, z = batch
    logits, rebuilt = model(x)
    return F.cross_entropy(logits, y) + 1000 * F.mse_loss(rebuilt[:, :1], z)


def one_term(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0])[0], batch[1])


def no_target(model: nn.Module, batch: Any) -> Tensor:
    a, b = model(batch[0])
    return a.square().mean() + 1000 * b.square().mean()


def mixup(model: nn.Module, batch: Any) -> Tensor:
    x, y, _ = batch
    order = torch.randperm(len(x))
    logits, _ = model(0.97 * x + 0.03 * x[order])
    return 0.97 * F.cross_entropy(logits, y) + 0.03 * F.cross_entropy(logits, y[order])


@pytest.mark.parametrize("step", [several_tasks, mixup, one_term, no_target])
def test_losses_of_equal_standing_are_skipped(step: Any) -> None:
    assert audited(step).status is Status.SKIP


def test_a_learned_weight_is_part_of_its_term() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        s = model.log_variance.squeeze()
        return F.cross_entropy(model(batch[0])[0], batch[1]) * torch.exp(-s) + s

    assert audited(step).status in (Status.SKIP, Status.PASS)


def test_the_step_itself_is_as_without_the_measurement() -> None:
    target = Target(Two, DataLoader(TensorDataset(X, X[:, :3].argmax(1), X[:, :1]), batch_size=32),
                    training_step=weighted(10.0))  # fmt: skip
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    batch = next(iter(loop.batches()))
    before = [p.detach().clone() for p in loop.model.parameters()]
    run_check(AuxiliaryBalance, Audit(loop))
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
    assert loop.step(batch).loss > 0


def rebuilding(code: str, rest: str, penalty: float = 0.0) -> Any:
    """A reconstruction and a term on the code, each a mean over the rows or a sum."""

    def reduced(values: Tensor, how: str) -> Tensor:
        each = values.sum(1)
        return each.mean() if how == "mean" else each.sum()

    def step(model: nn.Module, batch: Any) -> Tensor:
        x, *_ = batch
        h = model.body(x)
        noisy = h + 0.1 * torch.randn_like(h)
        error = reduced((model.rebuild(noisy) - x) ** 2, rest)
        total = error + 0.01 * reduced(h**2, code)
        if penalty:
            total = total + penalty * sum(p.square().sum() for p in model.body.parameters())
        return total

    return step


def test_a_mean_and_a_sum_in_one_loss_warn() -> None:
    result = audited(rebuilding("sum", "mean"))
    assert result.status is Status.WARN
    assert "the batch size sets the weight" in result.message
    assert audited(rebuilding("mean", "sum")).status is Status.WARN


@pytest.mark.parametrize("penalty", [0.0, 0.1])
@pytest.mark.parametrize("how", ["mean", "sum"])
def test_terms_of_one_reduction_and_a_penalty_on_weights_pass(how: str, penalty: float) -> None:
    assert audited(rebuilding(how, how, penalty)).status is Status.SKIP


@pytest.mark.parametrize(("weight", "status"), [(1000.0, Status.WARN), (0.1, Status.PASS)])
def test_a_main_term_written_by_hand_is_told_by_its_targets(weight: float, status: Status) -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y, _ = batch
        logits, _ = model(x)
        likelihood = logits.log_softmax(1)[torch.arange(len(y)), y]
        penalty = sum(p.square().sum() for p in model.body.parameters())
        return weight * penalty - likelihood.mean()

    result = audited(step)
    assert result.status is status, result.message
