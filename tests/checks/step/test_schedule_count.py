"""STEP112: schedulers stepped with every batch of an accumulation."""

from __future__ import annotations

from typing import Any

import pytest

from nnaudit.checks.step.schedule_count import Count, ScheduleCount
from nnaudit.probes.lr_plan import Plan
from nnaudit.report import Status


def planned(end: int) -> Plan:
    return Plan(0, "OneCycleLR", {"total_steps": float(end)}, (0.1, 0.0))


def test_a_plan_for_the_optimizers_steps_that_is_used_up_sooner() -> None:
    assert Count(planned(240), 4, 240, None).runs_out
    assert Count(planned(250), 4, 240, None).runs_out
    assert not Count(planned(960), 4, 240, None).runs_out
    assert not Count(planned(240), 1, 240, None).runs_out


def test_a_schedule_that_stays_at_a_tenth_has_ended() -> None:
    falling = [1.0 - 0.9 * step / 60 for step in range(60)]
    assert Plan(0, "LambdaLR", {}, (*falling, *[0.1] * 40)).end == 60
    assert Plan(0, "LambdaLR", {}, (*[1.0] * 60, *[0.5] * 40)).end is None


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(320, 6)
train = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8, shuffle=True)
model = nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=LENGTH)
for epoch in range(6):
    for i, (inputs, labels) in enumerate(train):
        (nn.functional.cross_entropy(model(inputs), labels) / 4).backward()
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
            AFTER
        EACH
"""


@pytest.mark.parametrize(
    ("length", "after", "each", "status"),
    [
        ("60", "pass", "scheduler.step()", Status.FAIL),
        ("240", "pass", "scheduler.step()", Status.PASS),
        ("60", "scheduler.step()", "pass", Status.PASS),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_a_script_that_accumulates(
    length: str, after: str, each: str, status: Status, ask_script: Any
) -> None:
    text = SCRIPT.replace("LENGTH", length).replace("AFTER", after).replace("EACH", each)
    result = ask_script(ScheduleCount, text)
    assert result.status is status, result.message
