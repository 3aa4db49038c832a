"""MODE109: eval mode in the middle of an epoch."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nnaudit.checks.mode.eval_left_on import EvalModeLeftOn
from nnaudit.context import Audit
from nnaudit.probes.training_run import Training
from nnaudit.report import Result, Status


def judged(*asleep: int, steps: int = 100, epoch: int = 80, makes_batches: bool = False) -> Result:
    training = Training(
        (1.0,) * steps, (0.1,) * steps, (0, epoch), (1,) * steps, {}, math.nan, (), (), False, (),
        asleep=asleep,
    )  # fmt: skip
    loop = SimpleNamespace(locate=lambda thing: None, makes_batches=makes_batches)
    audit = SimpleNamespace(probe=lambda probe: training, loop=loop)
    return EvalModeLeftOn().run(cast(Audit, audit))


def test_a_stretch_in_the_middle_of_the_epoch_fails() -> None:
    result = judged(*range(40, 100))
    assert result.status is Status.FAIL
    assert "from step 40 on, in 40 of 80 steps" in result.message


def test_single_steps_the_next_epoch_and_the_first_step_do_not() -> None:
    assert judged().status is Status.PASS
    assert judged(10, 20, 30, 31).status is Status.PASS
    assert judged(*range(90, 100)).status is Status.PASS
    assert judged(*range(100)).status is Status.SKIP


def test_a_program_that_makes_its_batches_has_no_epochs_to_go_by() -> None:
    result = judged(*range(40, 100), epoch=1, makes_batches=True)
    assert result.status is Status.FAIL
    assert "in 60 of 100 steps" in result.message


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(800, 6)
train = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def validate():
    model.eval()
    with torch.no_grad():
        return model(x[:32]).argmax(1)

seen = 0
for epoch in range(4):
    model.train()
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        seen += 1
        if seen % 20 == 0:
            validate()
            THEN
"""


@pytest.mark.parametrize(("then", "status"), [("pass", "fail"), ("model.train()", "pass")])
def test_a_script_that_validates_within_its_epoch(then: str, status: str, ask_script: Any) -> None:
    result = ask_script(EvalModeLeftOn, SCRIPT.replace("THEN", then))
    assert result.status.value == status, result.message
