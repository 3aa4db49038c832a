"""What a weighted sampler draws of each class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from nnaudit.checks.data.class_balance import ClassBalance, balanced_twice
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.sampled_classes import SampledByClass, SampledClasses, by_class
from nnaudit.report import Status
from nnaudit.targets.target import Target

LABELS = torch.tensor([0] * 400 + [1] * 80 + [2] * 40)
ROWS = torch.bincount(LABELS)


def audit_of(weights: Tensor, loss: Tensor | None = None) -> Audit:
    x = torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(0))
    sampler = WeightedRandomSampler(weights.double().tolist(), len(weights))
    loader = DataLoader(TensorDataset(x, LABELS), batch_size=32, sampler=sampler)
    target = Target(
        lambda: nn.Linear(4, 3), train_loader=loader,
        loss=lambda output, y: F.cross_entropy(output, y, weight=loss),
    )  # fmt: skip
    return Audit(DirectLoop(target, torch.device("cpu"), seed=0))


@pytest.mark.parametrize(
    ("weights", "loss", "status"),
    [
        (1 / ROWS[LABELS], None, Status.PASS),
        (ROWS[LABELS] / len(LABELS), None, Status.FAIL),
        (1 / ROWS[LABELS], len(LABELS) / (3 * ROWS), Status.WARN),
        ((1 / ROWS[LABELS]).sqrt(), (len(LABELS) / (3 * ROWS)).sqrt(), Status.PASS),
    ],
)
def test_a_sampler_by_class(weights: Tensor, loss: Tensor | None, status: Status) -> None:
    result = run_check(ClassBalance, audit_of(weights, loss))
    assert result.status is status, result.message


def test_what_is_read_of_the_sampler() -> None:
    seen = audit_of(1 / ROWS[LABELS]).probe(SampledByClass)
    assert seen is not None
    assert seen.rows.tolist() == [400, 80, 40]
    assert seen.drawn == pytest.approx([1 / 3] * 3)


def test_weights_that_are_not_by_class_say_nothing() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert by_class(labels, torch.tensor([1.0, 1.0, 2.0, 3.0]).double()) is None
    assert by_class(labels, torch.tensor([1.0, 1.0, 2.0, 2.0]).double()) is not None


def test_a_balance_that_is_needed_once() -> None:
    even = SampledClasses(np.array([90, 10]), np.array([1 / 90, 1 / 10]))
    assert balanced_twice(even, np.array([1.0, 9.0])) == pytest.approx(9.0)
    assert balanced_twice(even, np.array([1.0, 2.0])) is None
    assert balanced_twice(even, None) is None
    raw = SampledClasses(np.array([90, 10]), np.array([1.0, 1.0]))
    assert balanced_twice(raw, np.array([1.0, 9.0])) is None
