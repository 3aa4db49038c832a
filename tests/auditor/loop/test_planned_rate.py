"""What rate an optimizer is to reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from nnaudit.loop.base import Loop
from nnaudit.loop.planned_rate import planned_lr, planned_rise


def noam(step: int, warmup: int = 4000, d: int = 512) -> float:
    return float(d**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5))


class Noam(schedulers.LRScheduler):
    def get_lr(self) -> list[float]:
        return [base * noam(self.last_epoch, 400) for base in self.base_lrs]


class Halving(schedulers.LRScheduler):
    def get_lr(self) -> list[float]:
        return [group["lr"] * 0.5 for group in self.optimizer.param_groups]


def polynomial(step: int) -> float:
    return (1 - step / 50) ** 0.9  # a complex number beyond the end


def planned(lr: float, make: Any) -> tuple[float, bool]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    made = make(optimizer)
    loop = cast(Loop, SimpleNamespace(optimizers=(optimizer,), schedulers=(made,) if made else ()))
    before = [dict(group) for group in optimizer.param_groups]
    (group,) = optimizer.param_groups
    found = planned_lr(loop, group), planned_rise(loop)
    assert optimizer.param_groups == before
    return found


@pytest.mark.parametrize(
    ("lr", "make", "peak", "rises"),
    [
        (0.1, lambda o: None, 0.1, False),
        (1.0, lambda o: schedulers.LambdaLR(o, noam), noam(4000), True),
        (1.0, Noam, noam(400, 400), True),
        (0.1, Halving, 0.05, False),
        (0.1, lambda o: schedulers.LambdaLR(o, polynomial), 0.1, False),
        (0.1, lambda o: schedulers.LambdaLR(o, lambda s: min(1.0, s / 10_000)), 0.1, True),
        (0.1, lambda o: schedulers.LambdaLR(o, lambda s: 3.0), 0.3, False),
        (0.1, lambda o: schedulers.LambdaLR(o, lambda s: s / 100), 0.1, True),
        (0.1, lambda o: schedulers.LambdaLR(o, lambda s: 0.0), 0.1, True),
        (0.1, lambda o: schedulers.CosineAnnealingLR(o, 10), 0.1, False),
        (0.1, lambda o: schedulers.OneCycleLR(o, 0.5, total_steps=10), 0.5, True),
        (0.1, lambda o: schedulers.LinearLR(o, 0.01), 0.1, True),
    ],
)
def test_the_highest_rate_of_the_plan(lr: float, make: Any, peak: float, rises: bool) -> None:
    found, rise = planned(lr, make)
    assert found == pytest.approx(peak, rel=0.03)
    assert rise is rises


def test_of_several_schedules_the_rate_that_the_optimizer_was_made_with_is_told() -> None:
    def made(optimizer: torch.optim.Optimizer) -> Any:
        warm = schedulers.LambdaLR(optimizer, lambda step: 0.1)
        return schedulers.SequentialLR(
            optimizer, [warm, schedulers.ConstantLR(optimizer, 1.0)], milestones=[5]
        )

    assert planned(0.1, made)[0] == 0.1
