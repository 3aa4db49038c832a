"""Schedules stepped without training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.lr_plan import LearningRatePlan, thinned
from nnaudit.targets.target import Target


def audit(make: object) -> Audit:
    x = torch.randn(32, 3)
    target = Target(
        model=lambda: nn.Linear(3, 1),
        train_loader=lambda: DataLoader(TensorDataset(x, x[:, :1]), batch_size=8),
        loss=F.mse_loss,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1),
        scheduler=make,
    )
    return Audit(DirectLoop(target, torch.device("cpu"), 0))


def test_a_plan_is_followed_to_its_end_and_the_state_is_put_back() -> None:
    asked = audit(lambda o: schedulers.OneCycleLR(o, 0.5, total_steps=20))
    before = asked.loop.optimizers[0].param_groups[0]["lr"]
    (plan,) = asked.probe(LearningRatePlan)
    assert len(plan.rates) == 21 and "20" in plan.ended
    assert plan.peak == 0.5 and plan.arguments["total_steps"] == 20
    assert asked.loop.optimizers[0].param_groups[0]["lr"] == before
    assert asked.loop.schedulers[0].last_epoch == 0


def test_the_parts_of_a_sequence_are_not_plans_of_their_own() -> None:
    def make(o: torch.optim.Optimizer) -> list[object]:
        parts = [schedulers.LinearLR(o, 0.1), schedulers.ExponentialLR(o, 0.9)]
        return [schedulers.SequentialLR(o, parts, [5]), *parts]

    (plan,) = audit(make).probe(LearningRatePlan)
    assert plan.scheduler == "SequentialLR"
    assert plan.dead_after(0.01) == 5 + 44  # 0.9 ^ 44 is the first below a hundredth


def test_a_plateau_is_unknown() -> None:
    (plan,) = audit(schedulers.ReduceLROnPlateau).probe(LearningRatePlan)
    assert plan.unknown and plan.rates == ()


def test_thinning_keeps_both_ends() -> None:
    x, y = thinned(range(1001), most=10)
    assert len(x) <= 12 and (x[0], x[-1]) == (0.0, 1000.0) and y[-1] == 1000
