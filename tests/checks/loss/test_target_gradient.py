"""LOSS108: gradients into what a loss takes for the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.checks.loss.target_gradient import TargetGradientOfLoss
from nnaudit.probes.target_gradients import Flow, TargetGradient, TargetGradients
from nnaudit.report import Status
from support.verdicts import ask_script, verdict


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (Flow.ATTRACTION, "smallest where both are constant"),
        (Flow.BOOTSTRAP, "moves the target"),
        (Flow.TEACHER, "agree with its student"),
        (Flow.ADVANTAGE, "trains the critic"),
    ],
)
def test_each_is_named_with_its_fix(flow: Flow, said: str) -> None:
    seen = TargetGradient(flow, "", 4, None)
    result = verdict(TargetGradientOfLoss, {TargetGradients: (seen,)})
    assert result.status is Status.WARN
    assert said in result.message
    assert "4 trained tensors" in result.message
    assert result.fix


def test_nothing_seen_passes() -> None:
    assert verdict(TargetGradientOfLoss, {TargetGradients: ()}).status is Status.PASS


SOURCE = """
import torch
from torch import nn

torch.manual_seed(0)
q = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
opt = torch.optim.Adam(q.parameters(), 1e-3)
for step in range(200):
    s, s2, a, r = torch.randn(32, 4), torch.randn(32, 4), torch.randint(2, (32, 1)), torch.randn(32)
    target = r + 0.9 * q(s2).max(1).values{detach}
    loss = nn.functional.mse_loss(q(s).gather(1, a).squeeze(1), target)
    opt.zero_grad()
    loss.backward()
    opt.step()
"""


@pytest.mark.parametrize(("detach", "status"), [("", Status.WARN), (".detach()", Status.PASS)])
def test_a_script_without_a_loader(tmp_path: Path, detach: str, status: Status) -> None:
    result = ask_script(
        TargetGradientOfLoss, tmp_path / "train.py", SOURCE.replace("{detach}", detach)
    )
    assert result.status is status, result.message
