"""A script that is started again beside its own checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnaudit.context import Audit
from nnaudit.loop.script import run_script
from nnaudit.probes.resumed_run import ResumedRun, ResumedRuns

SCRIPT = """
import os
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(64, 4)
loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=16, shuffle=True)
model = nn.Linear(4, 1)
optimizer = torch.optim.OPTIMIZER
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)


def begin():
    if not os.path.exists("last.pt"):
        return 0
    state = torch.load("last.pt")
    model.load_state_dict(state["model"])
    RESTORE
    return state["epoch"] + 1


for epoch in range(begin(), 9):
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    scheduler.step()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "epoch": epoch,
        },
        "last.pt",
    )
"""

BOTH = (
    'optimizer.load_state_dict(state["optimizer"]); scheduler.load_state_dict(state["scheduler"])'
)


@pytest.mark.parametrize("ends_an_epoch_before", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "restore", "lost"),
    [
        ("Adam(model.parameters())", BOTH, ()),
        (
            "Adam(model.parameters())",
            "pass",
            ("the optimizer (Adam)", "the scheduler (CosineAnnealingLR)"),
        ),
        (
            "SGD(model.parameters(), lr=0.1)",
            'optimizer.load_state_dict(state["optimizer"])',
            ("the scheduler (CosineAnnealingLR)",),
        ),
    ],
)
def test_what_a_resumed_run_restores(
    optimizer: str,
    restore: str,
    lost: tuple[str, ...],
    ends_an_epoch_before: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("OPTIMIZER", optimizer).replace("RESTORE", restore))
    saved: list[bool] = []

    def look(loop: Any) -> ResumedRun | None:
        if ends_an_epoch_before:
            batch = next(iter(loop.batches()))
            loop.step(batch)
            loop.next_epoch(batch)
        saved.append((tmp_path / "last.pt").exists())
        found = Audit(loop).probe(ResumedRuns)
        saved.append((tmp_path / "last.pt").exists())
        return found

    found = run_script(script, [], "cpu", 0, look)
    assert isinstance(found, ResumedRun)
    assert found.lost == lost
    assert saved == [ends_an_epoch_before] * 2
