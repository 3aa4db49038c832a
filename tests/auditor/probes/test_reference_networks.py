"""Networks beside the main one, and the mode in which they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.context import Audit
from nnaudit.loop.script import run_script
from nnaudit.probes.reference_networks import ReferenceNetworks

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(48, 4)
loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=16, shuffle=True)
student = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 3))
teacher = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))
MODE
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
for epoch in range(3):
    for inputs, _ in loader:
        with torch.no_grad():
            wanted = teacher(inputs)
        optimizer.zero_grad()
        nn.functional.mse_loss(student(inputs), wanted).backward()
        optimizer.step()
        MOVE
"""
FOLLOWS = "[p.data.add_(0.001) for p in teacher.parameters()]"


@pytest.mark.parametrize(
    ("mode", "move", "found"),
    [
        ("pass", "pass", [(1, 1)]),
        ("teacher.eval()", "pass", []),
        ("pass", FOLLOWS, []),
    ],
)
def test_a_teacher_in_train_mode(
    mode: str, move: str, found: list[tuple[int, int]], tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("MODE", mode).replace("MOVE", move))
    seen = run_script(script, [], "cpu", 0, lambda loop: Audit(loop).probe(ReferenceNetworks))
    assert [(each.dropouts, each.normalisations) for each in seen] == found
