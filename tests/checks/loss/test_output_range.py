from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.output_range import OutputRange
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.adversaries import Adversaries, Round
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.output_reach import OutputReach
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target
from support.verdicts import verdict


def audited(
    last: nn.Module,
    targets: Callable[[Tensor], Tensor],
    n: int = 640,
    loss: Callable[..., Tensor] = F.mse_loss,
) -> Result:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, targets(x[:, :1])), batch_size=32)
    target = Target(lambda: nn.Sequential(nn.Linear(6, 1), last), data, loss=loss)
    return run_check(OutputRange, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def as_it_is(x: Tensor) -> Tensor:
    return x


def by_hand(output: Tensor, y: Tensor) -> Tensor:
    return ((output - y) ** 2).mean()


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus()])
@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.huber_loss, by_hand])
def test_targets_out_of_reach(last: nn.Module, loss: Callable[..., Tensor]) -> None:
    result = audited(last, as_it_is, loss=loss)
    assert result.status is Status.FAIL
    assert "640 targets" in result.message


class Squashed(nn.Module):
    """An activation called as a function, and a view behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x).squeeze(1)[:, None]


def test_a_function_behind_a_view_is_seen_by_a_loss_written_by_hand() -> None:
    assert audited(Squashed(), as_it_is, loss=by_hand).status is Status.FAIL
    assert audited(Squashed(), torch.tanh, loss=by_hand).status is Status.PASS


def test_a_term_of_a_larger_loss_is_judged() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output, y) + 0.1 * output.abs().mean()

    assert audited(nn.Sigmoid(), as_it_is, loss=loss).status is Status.FAIL
    assert audited(nn.Sigmoid(), torch.sigmoid, loss=loss).status is Status.PASS


@pytest.mark.parametrize(
    ("last", "targets"),
    [
        (nn.ReLU(), torch.abs),
        (nn.Sigmoid(), torch.sigmoid),
        (nn.Tanh(), torch.sign),
        (nn.Sigmoid(), lambda x: (x > 0).float()),
        (nn.ReLU(), lambda x: torch.where(x < -2.6, x, x.abs())),
    ],
)
def test_targets_within_reach(last: nn.Module, targets: Callable[[Tensor], Tensor]) -> None:
    assert audited(last, targets).status is Status.PASS


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x.sigmoid() - 5


@pytest.mark.parametrize("last", [nn.Identity(), Scaled(), nn.LeakyReLU()])
def test_an_output_without_limits_is_skipped(last: nn.Module) -> None:
    assert audited(last, as_it_is).status is Status.SKIP


def test_a_code_for_missing_values_may_be_masked() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        known = y != -1
        return (F.mse_loss(output, y, reduction="none") * known).sum() / known.sum()

    def targets(x: Tensor) -> Tensor:
        return torch.where(x < -1.5, -1.0, x.abs())

    assert audited(nn.ReLU(), targets, loss=loss).status is not Status.FAIL


def test_few_targets() -> None:
    assert audited(nn.ReLU(), as_it_is, n=128).status is Status.FAIL
    assert audited(nn.ReLU(), as_it_is, n=32).status is Status.INCONCLUSIVE
    assert audited(nn.ReLU(), torch.abs, n=128).status is Status.INCONCLUSIVE


class Corners(nn.Module):
    """Centres and sizes behind a sigmoid, as the corners of boxes."""

    def forward(self, x: Tensor) -> Tensor:
        inside = x.sigmoid()
        return torch.cat([inside - 0.5 * inside, inside + 0.5 * inside], 1)


@pytest.mark.parametrize(("size", "status"), [(1.0, Status.SKIP), (48.0, Status.FAIL)])
def test_boxes_in_pixels_for_fractions(size: float, status: Status) -> None:
    result = audited(Corners(), lambda x: size * torch.rand(len(x), 2))
    assert result.status is status, result.message


class Cosines(nn.Module):
    """Scores of each row beside all rows, as in contrastive learning."""

    def __init__(self, scale: float, *, learnt: bool = False) -> None:
        super().__init__()
        self.net, self.scale = nn.Linear(6, 8), scale
        self.learnt = nn.Parameter(torch.zeros(())) if learnt else 0.0

    def forward(self, x: Tensor) -> Tensor:
        z = F.normalize(self.net(x), dim=1)
        others = F.normalize(x.repeat(1, 2)[:, :8], dim=1)
        return z @ others.T * (self.scale + self.learnt)


def contrast(scores: Tensor, _: Tensor) -> Tensor:
    rows = torch.arange(len(scores))
    return (F.cross_entropy(scores, rows) + F.cross_entropy(scores.T, rows)) / 2


@pytest.mark.parametrize(
    ("scale", "learnt", "status"),
    [
        (1 / 0.07, False, Status.SKIP),
        (1.0, False, Status.SKIP),
        (0.07, False, Status.FAIL),
        (0.07, True, Status.SKIP),
    ],
)
def test_a_temperature_that_multiplies(scale: float, learnt: bool, status: Status) -> None:
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x), batch_size=32)
    target = Target(lambda: Cosines(scale, learnt=learnt), data, loss=contrast)
    audit = Audit(DirectLoop(target, torch.device("cpu"), seed=0))
    result = run_check(OutputRange, audit)
    assert result.status is status, result.message


@pytest.mark.parametrize(
    ("activation", "low", "high", "status"),
    [
        ("TanhBackward0", -0.42, 2.82, Status.FAIL),
        ("TanhBackward0", 0.0, 1.0, Status.SKIP),
        ("TanhBackward0", -1.2, 1.2, Status.SKIP),  # noise on real rows
        ("SigmoidBackward0", -1.0, 1.0, Status.FAIL),
        ("AddmmBackward0", -9.0, 9.0, Status.SKIP),
    ],
)
def test_real_rows_that_a_generator_cannot_make(
    activation: str, low: float, high: float, status: Status
) -> None:
    rows = torch.linspace(low, high, 2000)
    seen = Round(1, 0, 1, -1, 1, None, activation, rows)
    measured = {FirstSteps: First((), (), ()), OutputReach: (), Adversaries: (seen,)}
    assert verdict(OutputRange, measured).status is status
