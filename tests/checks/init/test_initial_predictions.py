from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.init.initial_predictions import InitialPredictions
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

X = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))


def audited(model: Callable[[], nn.Module], y: Tensor, loss: Any = F.cross_entropy) -> Result:
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(X[order], y[order]), batch_size=64)
    target = Target(model, data, loss=loss)
    return run_check(InitialPredictions, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def net(outputs: int = 4, scale: float = 1.0, bias: tuple[float, ...] = ()) -> nn.Module:
    made = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, outputs))
    with torch.no_grad():
        made[2].weight.mul_(scale)
        if bias:
            made[2].bias.copy_(torch.tensor(bias))
    return nn.Sequential(made, nn.Flatten(0)) if outputs == 1 else made


BALANCED = torch.arange(512) % 4
RARE = (torch.arange(512) % 20 == 0).float()
SKEWED = torch.where(torch.arange(512) % 20 == 0, 1, 0)


def test_logits_that_are_too_large_are_a_warning() -> None:
    result = audited(lambda: net(scale=200.0), BALANCED)
    assert result.status is Status.WARN
    assert "too large" in result.message


def test_one_class_for_all_with_small_logits_means_nothing() -> None:
    assert audited(lambda: net(bias=(0.5, 0, 0, 0), scale=0.01), BALANCED).status is Status.PASS


def test_a_rare_class_is_a_note_with_the_bias_to_set() -> None:
    result = audited(lambda: net(1), RARE, F.binary_cross_entropy_with_logits)
    assert result.status is Status.NOTE
    assert "nn.init.constant_(model[0][2].bias, -2." in result.fix
    result = audited(lambda: net(2), SKEWED)
    assert result.status is Status.NOTE
    assert "model[2].bias.data = torch.tensor([-0.05" in result.fix


def test_no_bias_is_set_in_a_layer_without_one() -> None:
    def net_without_bias() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2, bias=False))

    result = audited(net_without_bias, SKEWED)
    assert result.status is Status.NOTE
    assert "give model[2] a bias" in result.fix


def test_a_bias_that_is_set_passes() -> None:
    bias = (-2.94,)
    result = audited(lambda: net(1, bias=bias), RARE, F.binary_cross_entropy_with_logits)
    assert result.status is Status.PASS


def test_weights_that_are_right_where_they_are_sure_pass() -> None:
    def model() -> nn.Module:
        made = nn.Linear(8, 4)
        with torch.no_grad():
            made.weight.copy_(30 * torch.eye(8)[:4])
        return made

    assert audited(model, X[:, :4].argmax(1)).status is Status.PASS


@pytest.mark.parametrize("loss", [
    lambda o, y: F.cross_entropy(o, y, weight=torch.tensor([1.0, 19.0])),
    lambda o, y: F.cross_entropy(o, F.one_hot(y, 2).float()),
])  # fmt: skip
def test_weighted_classes_and_soft_targets_are_left_alone(loss: Any) -> None:
    assert audited(lambda: net(2), SKEWED, loss).status in (Status.PASS, Status.SKIP)


def test_other_losses_are_skipped() -> None:
    assert audited(lambda: net(1), X[:, 0], F.mse_loss).status is Status.SKIP


def test_targets_that_the_program_makes_itself_have_no_shares() -> None:
    """Adversarial training: the generator's loss compares with 1 for every row."""

    def fooled(model: nn.Module, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]), torch.ones(len(batch[0])))

    data = DataLoader(TensorDataset(X), batch_size=64)
    target = Target(lambda: net(1), data, training_step=fooled)
    result = run_check(InitialPredictions, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))
    assert result.status is Status.SKIP
    assert "makes them itself" in result.message
