"""Boxes in another form than torchvision's functions take, in the loss and in validation."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.checks.base import Check
from nnaudit.checks.gen.metric import MetricMeaning
from nnaudit.checks.loss.loss_layout import LossLayoutOfClasses
from nnaudit.report import Status
from support.verdicts import ask_script

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss

torch.manual_seed(0)
size = torch.rand(256, 2) * 0.3 + 0.1
centre = size / 2 + torch.rand(256, 2) * (1 - size)
boxes = torch.cat([centre, size], 1)
data = TensorDataset(boxes @ torch.randn(4, 8), boxes)
train, val = DataLoader(data, 32, shuffle=True), DataLoader(data, 64)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Sigmoid())
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

def corners(box):
    return box_convert(box, "cxcywh", "xyxy")

for epoch in range(3):
    model.train()
    for x, y in train:
        optimizer.zero_grad()
        generalized_box_iou_loss({loss}(model(x)), {loss}(y), reduction="mean").backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for x, y in val:
            box_iou({metric}(model(x)), {metric}(y)).diagonal().mean()
"""


@pytest.mark.parametrize(
    ("check", "loss", "metric", "fails"),
    [
        (LossLayoutOfClasses, "", "corners", True),
        (LossLayoutOfClasses, "corners", "", False),
        (MetricMeaning, "corners", "", True),
        (MetricMeaning, "corners", "corners", False),
    ],
)
def test_boxes_that_are_no_corners(
    tmp_path: Path, check: type[Check], loss: str, metric: str, fails: bool
) -> None:
    source = SCRIPT.format(loss=loss, metric=metric)
    result = ask_script(check, tmp_path / "train.py", source)
    assert (result.status is Status.FAIL) is fails, result.message
