"""What is left of the code between two epochs, also where the script has been run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnaudit.context import Audit
from nnaudit.loop.script import run_script
from nnaudit.probes.second_epoch import SecondEpoch

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)
x = torch.randn(48, 4)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def train():
    SEED
    for inputs, targets in DataLoader(TensorDataset(x, x[:, :1]), batch_size=16, shuffle=True):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()


for epoch in range(3):
    train()
"""


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("seed", ["torch.manual_seed(7)", "pass"])
def test_a_seed_set_in_every_epoch(before: int, seed: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("SEED", seed))

    def look(loop: Any) -> Any:
        batch = next(iter(loop.batches()))
        loop.step(batch)
        for _ in range(before):  # beyond the last epoch, the script is run again
            loop.next_epoch(batch)
        return Audit(loop).probe(SecondEpoch).reseeded

    found = run_script(script, [], "cpu", 0, look)
    assert (found is not None) == (seed != "pass")
