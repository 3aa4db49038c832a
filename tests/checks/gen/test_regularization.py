"""GEN101: training sets learnt by heart, and the ledger of what holds against it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.checks.gen.regularization import Gap, Regularization
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.overfitting_factors import OverfittingFactor, OverfittingFactors, next_factor
from nnaudit.probes.training_run import EvalPoint, Training, TrainingRun
from nnaudit.report import Result, Status, Table
from nnaudit.targets.target import Target
from support.measurements import at_the_end, training
from support.verdicts import verdict


def rows(count: int, seed: int, noise: float = 0.0) -> TensorDataset:
    """Three classes by the largest of three features among sixteen, some labels wrong."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 16, generator=g)
    wrong = torch.rand(count, generator=g) < noise
    y = torch.where(wrong, torch.randint(0, 3, (count,), generator=g), x[:, :3].argmax(1))
    return TensorDataset(x, y)


def net(*between: nn.Module, width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), *between, nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 3),
    )  # fmt: skip


def target(train: Dataset[Any], **changes: Any) -> Target:
    parts: dict[str, Any] = {
        "model": net,
        "train_loader": lambda: DataLoader(train, batch_size=32, shuffle=True),
        "val_loader": lambda: DataLoader(rows(256, 99), batch_size=64),
        "loss": nn.functional.cross_entropy,
        "optimizer": lambda m: torch.optim.Adam(m.parameters(), lr=3e-3),
    }
    return Target(**{**parts, **changes})


def ask(what: Target) -> Result:
    torch.manual_seed(0)
    return run_check(Regularization, Audit(DirectLoop(what, torch.device("cpu"), 0)))


def test_an_overfitted_training_set_warns_with_the_next_method() -> None:
    result = ask(target(rows(64, 1, noise=0.4), model=lambda: net(width=256)))
    assert result.status is Status.WARN, result.message
    assert "normalisation" in result.fix
    table = result.evidence[-1]
    assert isinstance(table, Table)
    assert len(table.rows) == 5
    assert [row[1] for row in table.rows] == ["", "no", "no", "no", ""]


def test_a_run_that_has_hardly_begun_to_learn_is_not_told_to_regularise() -> None:
    slow = target(rows(64, 1, noise=0.4), optimizer=lambda m: torch.optim.SGD(m.parameters(), 1e-4))
    result = ask(slow)
    assert result.status in (Status.NOTE, Status.WARN), result.message
    assert "fit its training data first" in result.fix
    assert "weight_decay" not in result.fix


def test_enough_data_pass() -> None:
    assert ask(target(rows(4096, 1))).status is Status.PASS


def test_a_gap_without_a_rise_is_a_note() -> None:
    what = target(
        rows(96, 1, noise=0.2),
        model=lambda: net(nn.BatchNorm1d(64), nn.Dropout(0.3)),
        optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=2e-4, weight_decay=0.1),
    )
    result = ask(what)
    assert result.status is Status.NOTE, result.message


def test_without_validation_data_it_says_so() -> None:
    result = ask(target(rows(64, 1), val_loader=None))
    assert result.status is Status.SKIP
    assert "val_loader" in result.message


def test_losses_that_differ_before_training_are_not_compared() -> None:
    far = TensorDataset(torch.randn(256, 16), torch.randn(256, 1) + 30)
    near = TensorDataset(torch.randn(256, 16), torch.randn(256, 1))
    what = target(
        near,
        model=lambda: nn.Linear(16, 1),
        loss=nn.functional.mse_loss,
        val_loader=lambda: DataLoader(far, batch_size=64),
    )
    assert ask(what).status is Status.INCONCLUSIVE


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (training([1.0] * 40, moments=at_the_end(val=EvalResult((1.0,)))), "training batches"),
        (training([1.0] * 40, moments=at_the_end(EvalResult((1.0,)))), "validation batches"),
        (training([1.0], moments=at_the_end(EvalResult((1.0,)), EvalResult((1.0,)))), "too short"),
        (training([1.0, math.nan], broke=1), "NaN or infinite"),
        (training([1.0, math.nan], broke=1, error="KeyError: 3"), "KeyError: 3"),
    ],
)
def test_why_losses_are_not_compared_is_said(run: Training, said: str) -> None:
    factor = OverfittingFactor("weight decay", on=True, setting="", line="")
    measured = {TrainingRun: run, OverfittingFactors: (factor,)}
    result = verdict(Regularization, measured, target=target(rows(64, 1)))
    assert result.status is Status.INCONCLUSIVE
    assert said in result.message


class Jittered(Dataset[Any]):
    """Rows with noise on top, drawn anew at every look."""

    def __init__(self, inner: TensorDataset) -> None:
        self.inner, self.transform = inner, self.jitter

    def jitter(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        x, y = self.inner[i]
        return self.transform(x), y


def factors(what: Target) -> dict[str, Any]:
    loop = DirectLoop(what, torch.device("cpu"), 0)
    found = Audit(loop).probe(OverfittingFactors)
    return {each.name: each for each in found} | {"next": next_factor(found)}


def test_the_table_is_read_from_the_real_objects() -> None:
    found = factors(
        target(
            Jittered(rows(64, 1)),
            model=lambda: net(nn.LayerNorm(64), nn.Dropout(0.3)),
            optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.05),
        )
    )
    assert found["augmentation"].on is True
    assert "jitter" in found["augmentation"].setting
    assert "1 LayerNorm" in found["architecture: normalisation"].setting
    assert "weight_decay=0.05" in found["weight decay and dropout"].setting
    assert "p=0.3" in found["weight decay and dropout"].setting
    assert found["next"].name == "less capacity"


def test_a_dropout_that_is_called_as_a_function_counts() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 64), nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.one(x))
            return self.two(nn.functional.dropout(h, 0.5, self.training))

    found = factors(
        target(
            rows(64, 1), model=Called, optimizer=lambda m: torch.optim.AdamW(m.parameters(), 3e-3)
        )
    )
    assert found["weight decay and dropout"].on is True
    assert "F.dropout called in forward" in found["weight decay and dropout"].setting


def test_weight_decay_starts_at_a_hundredth() -> None:
    found = factors(target(rows(64, 1), model=lambda: net(nn.LayerNorm(64))))
    assert (
        found["next"].line == "torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.01)"
    )


@pytest.mark.parametrize(
    ("fixed", "val", "share", "rise"),
    [
        ((2.0, 0.5), (2.0, 0.5), 0.0, 0.0),
        ((2.0, 0.0), (2.0, 1.0), 0.5, 0.0),
        ((2.0, 1.0, 0.0), (2.0, 1.0, 1.5), 0.75, 0.5),
    ],
)
def test_the_gap(fixed: Any, val: Any, share: float, rise: float) -> None:
    moments = tuple(
        EvalPoint(i, EvalResult((a, a)), EvalResult((b, b, b)))
        for i, (a, b) in enumerate(zip(fixed, val, strict=True))
    )
    gap = Gap.of(moments)
    assert gap is not None
    assert gap.share == pytest.approx(share)
    assert gap.rise == pytest.approx(rise)


def test_a_rise_on_a_handful_of_rows_is_not_certain() -> None:
    moments = tuple(
        EvalPoint(i, EvalResult((a,)), EvalResult((b,)))
        for i, (a, b) in enumerate(((2, 2), (1, 1), (0, 1.5)))
    )
    assert [gap.certain for n in (6, 200) if (gap := Gap.of(moments, n))] == [False, True]


def test_a_shallow_network_is_not_told_to_normalise() -> None:
    found = factors(target(rows(64, 1), model=lambda: nn.Linear(16, 3)))
    assert "weight_decay" in found["next"].line


def test_nothing_learnt_has_no_gap() -> None:
    assert (
        Gap.of(
            (
                EvalPoint(0, EvalResult((1.0,)), EvalResult((1.0,))),
                EvalPoint(9, EvalResult((2.0,)), EvalResult((2.0,))),
            )
        )
        is None
    )
