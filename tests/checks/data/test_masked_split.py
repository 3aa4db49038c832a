"""DATA120: rows that a mask holds out, and the loss is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from nnaudit.checks.data.masked_split import MaskedSplitOfRows
from nnaudit.context import Audit
from nnaudit.probes.masked_rows import MaskedSplit
from nnaudit.report import Result, Status
from support.programs import target
from support.verdicts import ask, ask_script

WHOLE = MaskedSplit("val_mask", 500, 500, 1200, None)


def judged(*found: MaskedSplit) -> Result:
    loop = SimpleNamespace(train_loader=None)
    audit = SimpleNamespace(loop=loop, probe=lambda probe: found)
    return MaskedSplitOfRows().run(cast(Audit, audit))


def test_held_out_rows_in_the_loss_fail() -> None:
    result = judged(WHOLE)
    assert result.status is Status.FAIL
    assert "500 of the 500 rows that val_mask holds out" in result.message
    none = replace(WHOLE, trained=0)
    assert judged(none, replace(WHOLE, trained=5)).status is Status.FAIL
    assert judged(none, replace(WHOLE, trained=4)).status is Status.PASS
    assert judged().status is Status.SKIP


def test_a_loader_is_another_checks() -> None:
    assert ask(MaskedSplitOfRows, target()).status is Status.SKIP


SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(90, 6), torch.randint(3, (90,))
order = torch.randperm(90)
train_mask = torch.zeros(90, dtype=torch.bool)
train_mask[order[:60]] = True
val_mask = ~train_mask
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)


def accuracy(mask):
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1)[mask] == y[mask]).float().mean().item()


for epoch in range(60):
    model.train()
    optimizer.zero_grad()
    out = model(x)
    F.cross_entropy(LOSS).backward()
    optimizer.step()
    if epoch % 5 == 4:
        print(epoch, accuracy(train_mask), accuracy(val_mask))
"""


@pytest.mark.parametrize(
    ("given", "status"),
    [("out, y", Status.FAIL), ("out[train_mask], y[train_mask]", Status.PASS)],
)
def test_a_script_that_trains_on_all_rows_at_once(
    tmp_path: Path, given: str, status: Status
) -> None:
    result = ask_script(MaskedSplitOfRows, tmp_path / "train.py", SOURCE.replace("LOSS", given))
    assert result.status is status, result.message
