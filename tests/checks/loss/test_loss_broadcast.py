from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.loss_broadcast import LossBroadcast
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

# torch warns of it too; who reads a log of ten thousand lines does not see it.
pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")


def audited(
    loss: Callable[..., Tensor],
    *,
    outputs: int = 1,
    y: Tensor | None = None,
    batch: int = 16,
    **parts: Any,
) -> Result:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, 0].clone() if y is None else y), batch_size=batch)
    parts = {"model": lambda: nn.Linear(4, outputs), "train_loader": data, "loss": loss, **parts}
    return run_check(LossBroadcast, Audit(DirectLoop(Target(**parts), torch.device("cpu"), seed=0)))


@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
        F.poisson_nll_loss,
        lambda out, y: F.mse_loss(out.squeeze(1), y[:, None]),
        lambda out, y: ((out - y) ** 2).mean(),
        lambda out, y: (y - out).abs().mean(),
        lambda out, y: F.cross_entropy(out.expand(-1, 3), y.long() * 0) + ((out - y) ** 2).mean(),
        lambda out, y: -(y * F.logsigmoid(out) + (1 - y) * F.logsigmoid(-out)).mean(),
        lambda out, y: F.relu(1 - y * out).mean(),
    ],
)
def test_a_column_beside_a_vector_fails(loss: Callable[..., Tensor]) -> None:
    result = audited(loss)
    assert result.status is Status.FAIL, result.message
    assert "(16, 16)" in result.message
    assert "squeeze(1)" in result.fix
    assert result.location is not None
    assert result.location.file == __file__


@pytest.mark.parametrize("loss", [F.binary_cross_entropy_with_logits, F.mse_loss])
def test_shapes_that_torch_refuses_fail_with_this_code(loss: Callable[..., Tensor]) -> None:
    y = torch.zeros(64) if loss is not F.mse_loss else torch.zeros(64, 3)
    outputs = 1 if loss is not F.mse_loss else 2
    assert audited(loss, y=y, outputs=outputs).status is Status.FAIL


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        (lambda out, y: F.mse_loss(out.squeeze(1), y), 1, None),
        (lambda out, y: F.mse_loss(out, y[:, None]), 1, None),
        (F.mse_loss, 3, torch.zeros(64, 3)),
        (lambda out, y: F.mse_loss(out, torch.tensor(1.0)), 1, None),
        (lambda out, y: F.mse_loss(out, torch.ones(1)), 1, None),
        (lambda out, y: F.cross_entropy(out, y.long() * 0), 3, None),
        (lambda out, y: F.kl_div(out.log_softmax(1), torch.full((3,), 1 / 3)), 3, None),
        (lambda out, y: (out - out.mean()).square().mean(), 1, None),
        (lambda out, y: (out - out.squeeze(1)).relu().mean(), 1, None),
        (lambda out, y: (out - out.detach().squeeze(1)).relu().mean(), 1, None),
        (lambda out, y: F.relu(1 - (out - out.T) * (y[:, None] - y).sign()).mean(), 1, None),
    ],
)
@pytest.mark.filterwarnings("ignore:reduction")
def test_what_is_meant_passes(loss: Callable[..., Tensor], outputs: int, y: Any) -> None:
    assert audited(loss, outputs=outputs, y=y).status is Status.PASS


def test_centres_as_many_as_rows_are_no_fault() -> None:
    class Radial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 1), nn.Linear(16, 1)
            self.register_buffer("centres", torch.linspace(-1, 1, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.exp(-((self.first(x) - self.centres) ** 2))).squeeze(1)

    assert audited(F.mse_loss, model=Radial).status is Status.PASS


def test_one_row_is_harmless() -> None:
    assert audited(F.mse_loss, batch=1).status is Status.PASS


def test_one_output_for_several_targets_is_a_warning() -> None:
    result = audited(F.mse_loss, y=torch.zeros(64, 3))
    assert result.status is Status.WARN
    assert "(16, 3)" in result.message


def test_one_vector_for_every_row_is_a_note() -> None:
    result = audited(lambda out, y: F.mse_loss(out, torch.zeros(3)), outputs=3)
    assert result.status is Status.NOTE


def test_every_mismatch_is_listed() -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out, y) + F.l1_loss(out.squeeze(1), y[:, None])

    (table,) = audited(loss).evidence
    assert {row[0] for row in table.rows} == {"mse", "l1"}


def test_it_adds_no_warning_of_its_own() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audited(lambda out, y: F.mse_loss(out.squeeze(1), y))
    assert caught == []
