from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.loop.losses import LOSS_FUNCTIONS, LossCall
from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.training.reference_loss import Level, level_of

G = torch.Generator().manual_seed(0)
X = torch.randn(600, 4, generator=G)


def level(
    function: Callable[..., Tensor], prediction: Tensor, target: Tensor, **more: Any
) -> Level:
    arguments = {"input": prediction, "target": target, "reduction": "mean", **more}
    call = LossCall(LOSS_FUNCTIONS[function], function, arguments, function(**arguments))
    found = level_of([call], [ModelInputs((X[: len(prediction)],), {}, target)])
    assert found is not None
    return found


def logits(scale: float = 0.1, classes: int = 10, rows: int = 600) -> Tensor:
    return scale * torch.randn(rows, classes, generator=G)


def labels(classes: int = 10, rows: int = 600) -> Tensor:
    return torch.randint(classes, (rows,), generator=G)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"label_smoothing": 0.1},
        {"weight": torch.linspace(0.1, 5, 10)},
        {"ignore_index": 3},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"size_average": None, "reduce": None},
    ],
)
def test_outputs_of_zero_cost_ln_c_whatever_the_arguments(more: dict[str, Any]) -> None:
    found = level(F.cross_entropy, logits(), labels(), **more)
    assert found.zero == pytest.approx(math.log(10), rel=1e-5)
    assert found.unit == pytest.approx(1.0, rel=1e-5)
    assert found.loss == pytest.approx(math.log(10), abs=0.1)
    assert not found.high
    assert not found.low


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_a_loss_follows_from_the_variance_of_the_logits(classes: int, scale: float) -> None:
    found = level(F.cross_entropy, logits(scale, classes, 4000), labels(classes, 4000))
    expected = math.log(classes) + scale**2 * (1 - 1 / classes) / 2
    assert found.loss == pytest.approx(expected, abs=0.08)
    assert found.explained


def test_large_logits_are_high_and_explained_by_their_size() -> None:
    found = level(F.cross_entropy, logits(20.0), labels())
    assert found.high
    assert found.explained
    assert found.output_std == pytest.approx(20.0, rel=0.1)


def test_a_margin_on_the_true_class_is_not_explained_by_size() -> None:
    target = labels()
    margin = logits() - 30.0 * F.one_hot(target, 10)
    found = level(F.cross_entropy, margin, target)
    assert found.high
    assert not found.explained


def test_one_constant_for_all_classes_means_nothing() -> None:
    found = level(F.cross_entropy, logits() + 500.0, labels())
    assert found.loss == pytest.approx(math.log(10), abs=0.1)
    assert found.output_std < 1.0


def test_dense_and_token_targets() -> None:
    images = level(F.cross_entropy, 0.1 * torch.randn(2, 5, 8, 8), torch.randint(5, (2, 8, 8)))
    assert images.zero == pytest.approx(math.log(5), rel=1e-5)
    assert images.rows == 128


def test_soft_targets() -> None:
    found = level(F.cross_entropy, logits(), torch.softmax(logits(1.0), 1))
    assert found.zero == pytest.approx(math.log(10), rel=1e-5)


def test_binary_losses_count_nats_per_output() -> None:
    target = (torch.rand(600, 3, generator=G) < 0.1).float()
    found = level(F.binary_cross_entropy_with_logits, 0.1 * logits(1, 3), target)
    assert found.zero == pytest.approx(math.log(2), rel=1e-5)
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert found.best == pytest.approx(entropy, abs=0.05)
    heavy = torch.full((3,), 20.0)
    weighted = level(
        F.binary_cross_entropy_with_logits, 0.1 * logits(1, 3), target, pos_weight=heavy
    )
    assert weighted.zero == pytest.approx(weighted.unit * math.log(2), rel=1e-5)
    assert not weighted.high


def test_negative_log_likelihood_and_divergence_start_from_equal_probabilities() -> None:
    nll = level(F.nll_loss, logits().log_softmax(1), labels())
    assert nll.zero == pytest.approx(math.log(10), rel=1e-5)
    target = torch.softmax(logits(2.0), 1)
    kl = level(F.kl_div, logits().log_softmax(1), target, reduction="batchmean")
    entropy = float(-(target * target.log()).sum(1).mean())
    assert kl.zero == pytest.approx(math.log(10) - entropy, rel=1e-4)


def test_squared_error_against_zero_and_the_mean() -> None:
    target = 152 + 77 * torch.randn(600, 1, generator=G)
    found = level(F.mse_loss, torch.zeros(600, 1), target)
    assert found.zero == pytest.approx(152**2 + 77**2, rel=0.1)
    assert found.best == pytest.approx(77**2, rel=0.1)
    assert (found.target_mean, found.target_std) == (
        pytest.approx(152, rel=0.1),
        pytest.approx(77, rel=0.1),
    )


def test_batches_are_pooled_by_their_number_of_targets() -> None:
    calls = []
    for rows, value in ((100, 1.0), (300, 3.0)):
        arguments = {"input": torch.full((rows, 1), value), "target": torch.zeros(rows, 1)}
        calls.append(LossCall("mse", F.mse_loss, {**arguments, "reduction": "mean"}, None))
    found = level_of(calls, [None, None])
    assert found is not None
    assert found.loss == pytest.approx((100 * 1 + 300 * 9) / 400)
    assert math.isnan(found.best)


def test_what_cannot_be_called_again_has_no_level() -> None:
    arguments = {"input": torch.zeros(4, 3), "target": torch.full((4,), 7), "reduction": "mean"}
    assert level_of([LossCall("cross_entropy", F.cross_entropy, arguments, None)], [None]) is None
