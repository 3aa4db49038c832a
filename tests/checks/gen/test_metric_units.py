"""GEN105: units, thresholds and places without a label, on predictions of known quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.gen.metric import MetricMeaning
from nnaudit.checks.gen.metric_sample import Sample
from nnaudit.checks.gen.metric_units import (
    Askew,
    better_off_target,
    late_yes,
    moved_together,
    off_zero,
    unlabelled,
)
from nnaudit.report import Status
from nnaudit.targets.metrics import metrics_of
from nnaudit.targets.target import Target
from support.verdicts import ask

IGNORED = 255


def told(by: Callable[..., Askew | None], metric: Any, sample: Sample) -> Askew | None:
    """What ``by`` says of ``metric`` on ``sample``."""
    (only,) = metrics_of(metric)
    return by(only, sample)


def numbers(rows: int = 200) -> Sample:
    """Standardised loads, as a network of forecasts is trained with."""
    target = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    return Sample("numbers", ((0.5 * target, target),), True, 40, given=True)


def masks(axis: int = 1, share: float = 0.2) -> Sample:
    """Logits (24, 3, 8, 8) or (24, 8, 8, 3), and masks with a share of unlabelled pixels."""
    g = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (24, 8, 8), generator=g)
    output = torch.randn(24, 3, 8, 8, generator=g)
    output += 1.5 * nn.functional.one_hot(target, 3).movedim(-1, 1)
    target[torch.rand(target.shape, generator=g) < share] = IGNORED
    return Sample("classes", ((output.movedim(1, axis), target),), True, 40, axis=axis)


def iou(output: Tensor, target: Tensor, valid: Tensor) -> float:
    guess, truth = output.argmax(1)[valid], target[valid]
    values = []
    for each in range(3):
        said, so = guess == each, truth == each
        values.append(float((said & so).sum() / (said | so).sum()))
    return sum(values) / 3


def masked_iou(output: Tensor, target: Tensor) -> float:
    return iou(output, target, target != IGNORED)


def unmasked_iou(output: Tensor, target: Tensor) -> float:
    return iou(output, target, torch.ones_like(target, dtype=torch.bool))


def accuracy_of_all(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(1) == target).float().mean())


def accuracy_of_labelled(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(1) == target)[target != IGNORED].float().mean())


def test_an_accuracy_that_counts_unlabelled_places_fails() -> None:
    found = told(unlabelled, accuracy_of_all, masks())
    assert found is not None
    assert found.certain
    assert "target != 255" in found.fix


def test_an_overlap_that_counts_unlabelled_places_warns() -> None:
    found = told(unlabelled, unmasked_iou, masks())
    assert found is not None
    assert not found.certain


@pytest.mark.parametrize("metric", [masked_iou, accuracy_of_labelled])
def test_metrics_that_leave_them_out_are_right(metric: Any) -> None:
    assert told(unlabelled, metric, masks()) is None
    assert told(moved_together, metric, masks()) is None


def test_where_all_is_labelled_nothing_is_said() -> None:
    assert told(unlabelled, accuracy_of_all, masks(share=0.0)) is None


def test_rounded_logits_show_when_all_are_moved() -> None:
    def rounded(output: Tensor, target: Tensor) -> float:
        return accuracy_of_labelled(output.int(), target)

    assert told(moved_together, rounded, masks()) is not None


def test_a_loss_as_a_metric_is_not_moved() -> None:
    def likelihood(output: Tensor, target: Tensor) -> float:
        return float(nn.functional.cross_entropy(output, target, ignore_index=IGNORED))

    assert told(moved_together, likelihood, masks()) is None
    assert told(unlabelled, likelihood, masks()) is None


@pytest.mark.parametrize(("threshold", "wrong"), [(0.5, True), (0.0, False), (1.5, False)])
def test_logits_that_are_compared_with_a_probability(threshold: float, wrong: bool) -> None:
    g = torch.Generator().manual_seed(0)
    output, target = torch.randn(100, generator=g), (torch.rand(100, generator=g) < 0.4).float()

    def accuracy(output: Tensor, target: Tensor) -> float:
        return float(((output > threshold) == target).float().mean())

    sample = Sample("binary", ((output, target),), True, 40)
    assert (told(late_yes, accuracy, sample) is not None) is wrong


def r2(output: Tensor, target: Tensor) -> float:
    return float(1 - (output - target).square().sum() / (target - target.mean()).square().sum())


UNITS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "predictions in units": lambda o, t: r2(180 * o + 500, t),
    "targets in units": lambda o, t: float((o - (180 * t + 500)).abs().mean()),
    "another column's": lambda o, t: r2(6 * o + 12, 180 * t + 500),
}
SAME: dict[str, Callable[[Tensor, Tensor], float]] = {
    "r2": r2,
    "in units": lambda o, t: r2(180 * o + 500, 180 * t + 500),
    "mae": lambda o, t: float((o - t).abs().mean()),
    "correlation": lambda o, t: float(torch.corrcoef(torch.stack([o.ravel(), t.ravel()]))[0, 1]),
    "profit": lambda o, t: float((o * (t + 1)).mean()),
    "sign": lambda o, t: float((o.sign() == t.sign()).float().mean()),
    "bias": lambda o, t: float((o - t).mean()),
    "quantile": lambda o, t: float(torch.maximum(0.9 * (t - o), 0.1 * (o - t)).mean()),
    "within": lambda o, t: float(((o - t).abs() < 0.1).float().mean()),
}


@pytest.mark.parametrize("name", UNITS)
def test_predictions_off_the_target_are_better_where_units_differ(name: str) -> None:
    assert told(better_off_target, {name: UNITS[name]}, numbers()) is not None


@pytest.mark.parametrize("name", SAME)
def test_no_prediction_is_better_than_a_perfect_one_else(name: str) -> None:
    assert told(better_off_target, {name: SAME[name]}, numbers()) is None
    assert told(off_zero, {name: SAME[name]}, numbers()) is None


def test_an_error_of_perfect_predictions_fails() -> None:
    found = told(off_zero, {"rmse": lambda o, t: (180 * o - t).square().mean().sqrt()}, numbers())
    assert found is not None
    assert found.certain


class Tagger(nn.Module):
    """Logits (rows, words, tags)."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


def tagged(metric: Any) -> Target:
    """A tagger whose step turns the logits for the loss, and leaves padding out."""
    x = torch.randn(64, 6, 4, generator=torch.Generator().manual_seed(0))
    tags = x[..., :3].argmax(-1)
    for row, length in enumerate(torch.arange(64) % 4 + 3):
        tags[row, length:] = -100

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).transpose(1, 2), batch[1])

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(x, tags), 32, shuffle=True)

    optimizer = lambda model: torch.optim.Adam(model.parameters(), 0.01)  # noqa: E731
    return Target(
        Tagger, loader, val_loader=loader, training_step=step, optimizer=optimizer, metric=metric
    )


def by_word(output: Tensor, target: Tensor) -> float:
    valid = target != -100
    return float((output.argmax(-1)[valid] == target[valid]).float().mean())


def over_padding(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(-1) == target).float().mean())


@pytest.mark.parametrize(
    ("metric", "status"), [(by_word, Status.PASS), (over_padding, Status.FAIL)]
)
def test_a_metric_beside_a_step_is_given_the_models_own_output(metric: Any, status: Status) -> None:
    result = ask(MetricMeaning, tagged(metric))
    assert result.status is status, result.message
