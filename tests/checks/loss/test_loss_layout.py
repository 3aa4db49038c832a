"""LOSS109: classes and rows that the loss reads in another order than they have."""

from __future__ import annotations

from nnaudit.checks.loss.loss_layout import LossLayoutOfClasses
from nnaudit.probes.loss_layout import Layout, LossLayout
from nnaudit.report import Result, Status
from support.verdicts import verdict


def judged(*seen: Layout) -> Result:
    return verdict(LossLayoutOfClasses, {LossLayout: seen})


def test_mixed_classes_fail_with_the_permutation_to_write() -> None:
    result = judged(Layout("Conv2d", (32, 3, 8, 8), (2048, 3), 1, 1.0, None, None))
    assert result.status is Status.FAIL
    assert "output.permute(0, 2, 3, 1).reshape(-1, 3)" in result.fix


def test_crossed_rows_fail() -> None:
    result = judged(Layout("Linear", (12, 32, 4), (384, 4), 2, 0.0, (32, 12), None))
    assert result.status is Status.FAIL
    assert "(32, 12)" in result.message


def test_a_loss_in_the_layers_order_passes() -> None:
    assert judged().status is Status.PASS
    few = Layout("Linear", (4, 3), (4, 3), 1, 0.25, None, None)
    assert judged(few).status is Status.PASS
