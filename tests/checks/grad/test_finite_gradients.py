from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.finite_gradients import FiniteGradients
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def net(*middle: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), *middle, nn.Linear(8, 3))


def audited(
    model: Callable[[], nn.Module] | None = None,
    loss: Callable[..., Tensor] = F.cross_entropy,
    x: Tensor | None = None,
    **parts: Any,
) -> Result:
    x = torch.randn(320, 6, generator=torch.Generator().manual_seed(0)) if x is None else x
    data = DataLoader(TensorDataset(x, torch.randint(3, (len(x),))), batch_size=16)
    target = Target(model or net(nn.ReLU()), data, loss=loss, **parts)
    return run_check(FiniteGradients, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class LogOfRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(F.relu(x))


class Mask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.eye(*x.shape, dtype=torch.bool), float("-inf"))


class TestFaults:
    def test_the_first_module_that_makes_infinities_is_named(self) -> None:
        result = audited(net(nn.ReLU(), LogOfRelu(), nn.Linear(8, 8)))
        assert result.status is Status.FAIL
        assert result.module == "2"
        assert "LogOfRelu" in result.message
        assert result.location is not None
        assert result.location.file == __file__

    def test_a_root_of_zero_behind_a_finite_loss(self) -> None:
        def loss(output: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(output, y) + (output * 0).sqrt().sum()

        result = audited(loss=loss)
        assert result.status is Status.FAIL
        assert "the loss is finite" in result.message
        assert result.module == "2"

    def test_a_gradient_that_where_does_not_stop(self) -> None:
        def loss(output: Tensor, y: Tensor) -> Tensor:
            safe = torch.where(output > 0, output.sqrt(), torch.zeros_like(output))
            return safe.sum()

        result = audited(loss=loss)
        assert result.status is Status.FAIL
        assert "The first NaN is made by Sqrt" in result.message
        assert result.location is not None and result.location.file == __file__

    def test_a_logarithm_of_zero_in_the_loss(self) -> None:
        def loss(output: Tensor, y: Tensor) -> Tensor:
            return -torch.log(output.softmax(1)[:, 0] * 0).mean()

        result = audited(loss=loss)
        assert result.status is Status.FAIL
        assert "all outputs are finite" in result.message

    def test_nan_in_the_data(self) -> None:
        x = torch.randn(320, 6)
        x[3, 2] = math.nan
        result = audited(x=x)
        assert result.status is Status.FAIL
        assert "NaN or infinite values enter the model" in result.message

    def test_nan_that_comes_late(self) -> None:
        x = torch.randn(320, 6)
        x[200, 2] = math.nan
        result = audited(x=x)
        assert result.status is Status.FAIL
        assert "Step 13" in result.message
        assert "NaN or infinite values enter the model" in result.message

    def test_a_diverging_run_is_told_to_slow_down(self) -> None:
        result = audited(
            net(nn.Linear(8, 8)),
            loss=lambda out, y: (out - F.one_hot(y, 3)).square().mean(),
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=30.0),
        )
        assert result.status is Status.FAIL
        assert "learning rate" in result.fix


class TestHealthy:
    @pytest.mark.parametrize(
        "model",
        [
            net(nn.ReLU()),
            net(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout()),
            lambda: nn.Sequential(nn.Linear(6, 3)),
        ],
    )
    def test_finite_numbers_pass(self, model: Callable[[], nn.Module]) -> None:
        result = audited(model)
        assert result.status is Status.PASS
        (curve,) = result.evidence
        assert len(curve.series[0].y) == 25

    def test_infinite_scores_under_a_softmax_are_meant(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mask, self.value, self.head = Mask(), nn.Linear(6, 8), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                scores = self.mask(x @ x.T)
                return self.head(scores.softmax(1) @ self.value(x))

        assert audited(Attention).status is Status.PASS

    def test_a_clamped_logarithm_passes(self) -> None:
        loss = lambda out, y: -out.softmax(1).clamp_min(1e-8).log().gather(1, y[:, None]).mean()  # noqa: E731
        assert audited(loss=loss).status is Status.PASS

    def test_a_loss_that_falls_without_bound_is_not_infinite(self) -> None:
        assert audited(loss=F.nll_loss).status is Status.PASS

    def test_an_infinite_gradient_of_what_is_not_trained_does_not_matter(self) -> None:
        class Detour(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.used(x) + 0 * (self.spare(x) * 0).sqrt()

        result = audited(
            Detour, optimizer=lambda model: torch.optim.SGD(model.used.parameters(), lr=0.1)
        )
        assert result.status is Status.PASS


def test_a_crash_is_an_error() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        raise KeyError("label")

    assert audited(loss=loss).status is Status.ERROR
