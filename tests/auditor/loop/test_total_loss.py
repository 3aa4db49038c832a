"""Which of a step's calls is the total loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.total_loss import (
    TOLERANCE,
    call_of_total,
    call_worth,
    is_total,
    main_loss_of,
    steady_ratio,
)

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
Y = X.argmax(1)


def call_of(x: Tensor = X, reduction: str = "mean") -> LossCall:
    arguments = {"input": x, "target": Y, "reduction": reduction}
    return LossCall(
        "cross_entropy", F.cross_entropy, arguments, F.cross_entropy(x, Y, reduction=reduction)
    )


def seen(total: float, *calls: LossCall) -> Observation:
    return Observation(loss_calls=list(calls), total_loss=total)


def value(call: LossCall) -> float:
    assert call.value is not None
    return float(call.value.mean())


@pytest.mark.parametrize(
    ("other", "same"),
    [(2.0, True), (2.0 * (1 + TOLERANCE / 2), True), (2.0 * (1 + 3 * TOLERANCE), False)],
)
def test_two_numbers_are_one_loss_up_to_the_tolerance(other: float, same: bool) -> None:
    assert is_total(other, 2.0) is same
    assert is_total(2.0, other) is same


def test_nothing_is_no_number() -> None:
    assert not is_total(float("nan"), float("nan"))
    assert call_of_total(seen(float("nan"), call_of())) is None


def test_the_call_with_that_value_is_found() -> None:
    one, two = call_of(), call_of(2 * X)
    assert call_worth([one, two], value(two)) is two
    assert call_worth([one, two], value(one) + value(two)) is None


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_elements_that_were_reduced_by_hand_come_with_the_reduction(reduction: str) -> None:
    each = call_of(reduction="none")
    total = float(F.cross_entropy(X, Y, reduction=reduction))
    found = call_of_total(seen(total, each))
    assert found is not None and found.reduction == reduction


def test_a_divided_loss_is_the_main_one_where_the_divisor_stays() -> None:
    calls = [call_of(scale * X) for scale in (1.0, 2.0, 3.0)]
    quarters = [seen(value(call) / 4, call) for call in calls]
    main = main_loss_of(quarters)
    assert main is not None
    assert main.factor == pytest.approx(0.25)
    assert main.formula is None
    assert main_loss_of(quarters[:2]) is None


def test_a_second_term_and_a_turned_sign_are_no_main_loss() -> None:
    calls = [call_of(scale * X) for scale in (1.0, 2.0, 3.0)]
    assert main_loss_of([seen(value(c) + 0.5, c) for c in calls]) is None
    turned = [seen(-value(c), c) for c in calls]
    assert main_loss_of(turned) is None
    assert steady_ratio(calls, turned) == pytest.approx(-1.0)
