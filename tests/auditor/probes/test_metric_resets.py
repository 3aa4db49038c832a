"""Metrics that collect over the ends of epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.context import Audit
from nnaudit.loop.script import run_script
from nnaudit.probes.metric_resets import MetricResets

SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

torch.manual_seed(0)
x = torch.randn(256, 6)
y = x[:, :3].argmax(1)
loader = DataLoader(TensorDataset(x[:192], y[:192]), 32, shuffle=True)
val_loader = DataLoader(TensorDataset(x[192:], y[192:]), 32)
model = torch.nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
metric = MulticlassAccuracy(num_classes=3)
for epoch in range(30):
    model.train()
    for a, b in loader:
        loss = torch.nn.functional.cross_entropy(model(a), b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for a, b in val_loader:
            metric.update(model(a), b)
    accuracy = metric.compute()
    RESET
"""


@pytest.mark.parametrize(
    ("reset", "names"), [("pass", ["MulticlassAccuracy"]), ("metric.reset()", [])]
)
def test_a_metric_is_emptied_or_not(tmp_path: Path, reset: str, names: list[str]) -> None:
    pytest.importorskip("torchmetrics")
    file = tmp_path / "train.py"
    file.write_text(SCRIPT.replace("RESET", reset))
    found = run_script(file, [], "cpu", 0, lambda loop: Audit(loop).probe(MetricResets))
    assert [each.name for each in found] == names
