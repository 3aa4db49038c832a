"""LOSS109: classes and rows that the loss reads in another order than they have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.loss_layout import LossLayoutOfClasses
from nnaudit.probes.box_forms import BoxForms
from nnaudit.probes.drawn_targets import DrawnTargets
from nnaudit.probes.loss_layout import Layout, LossLayout
from nnaudit.probes.running_sums import RunningSum, RunningSums
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target
from support.verdicts import ask, verdict


def judged(*seen: Layout) -> Result:
    return verdict(
        LossLayoutOfClasses, {LossLayout: seen, RunningSums: None, DrawnTargets: (), BoxForms: ()}
    )


def test_mixed_classes_fail_with_the_permutation_to_write() -> None:
    result = judged(Layout("Conv2d", (32, 3, 8, 8), (2048, 3), 1, 1.0, None, None))
    assert result.status is Status.FAIL
    assert "output.permute(0, 2, 3, 1).reshape(-1, 3)" in result.fix


def test_crossed_rows_fail() -> None:
    result = judged(Layout("Linear", (12, 32, 4), (384, 4), 2, 0.0, (32, 12), None))
    assert result.status is Status.FAIL
    assert "(32, 12)" in result.message


def test_a_view_in_place_of_a_transposed_tensor_fails() -> None:
    result = judged(Layout("log_softmax", (32, 12, 4), (12, 32, 4), 2, 0.0, (32, 12), None))
    assert result.status is Status.FAIL
    assert "transpose(0, 1)" in result.fix


def test_a_loss_in_the_layers_order_passes() -> None:
    assert judged().status is Status.PASS
    few = Layout("Linear", (4, 3), (4, 3), 1, 0.25, None, None)
    assert judged(few).status is Status.PASS


@pytest.mark.parametrize(("other", "status"), [(3.2, Status.FAIL), (3.0001, Status.PASS)])
def test_a_loss_that_depends_on_the_order_of_the_rows(other: float, status: Status) -> None:
    seen = RunningSum("logcumsumexp", (3.0, other), 0.0, None)
    measured = {LossLayout: (), RunningSums: seen, DrawnTargets: (), BoxForms: ()}
    assert verdict(LossLayoutOfClasses, measured).status is status


def cox(risk: Tensor, time: Tensor, *, by_time: bool) -> Tensor:
    risk = risk.flatten()
    risk = risk[time.argsort(descending=True)] if by_time else risk
    return (torch.logcumsumexp(risk, 0) - risk).mean() + 0.0 * time.sum()


@pytest.mark.parametrize(
    ("by_time", "loaded", "status"),
    [(False, "at random", Status.FAIL), (True, "at random", Status.PASS),
     (False, "in order", Status.PASS)],
)  # fmt: skip
def test_risk_sets_that_are_not_sorted(by_time: bool, loaded: str, status: Status) -> None:
    x = 3.0 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    time = torch.arange(64.0).flip(0) if loaded == "in order" else x[:, 0]
    target = Target(
        lambda: nn.Linear(4, 1),
        lambda: DataLoader(TensorDataset(x, time), 32),
        loss=lambda risk, y: cox(risk, y, by_time=by_time),
    )
    result = ask(LossLayoutOfClasses, target)
    assert result.status is status, result.message
