"""Scores of chosen and of drawn items, and in which direction the loss pulls them (LOSS104)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.checks.loss.loss_direction import LossDirection
from nnaudit.report import Status
from support.verdicts import ask_script

SCRIPT = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Triples(Dataset):
    def __len__(self):
        return 512

    def __getitem__(self, i):
        {item}

class MF(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(40, 8), nn.Embedding(60, 8)

    def forward(self, user, item):
        {score}

torch.manual_seed(0)
loader = DataLoader(Triples(), batch_size=64, shuffle=True)
model = MF()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(3):
    for batch in loader:
        {draw}
        loss = {loss}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        best = (model.user.weight @ model.item.weight.T).{rank}
"""

PRODUCT = "return (self.user(user) * self.item(item)).sum(-1)"
DISTANCE = "return (self.user(user) - self.item(item)).norm(dim=-1)"
IN_SET = ("return i % 40, i * 7 % 60, int(torch.randint(60, ()))", "user, chosen, drawn = batch")
IN_STEP = (
    "return i % 40, i * 7 % 60",
    "user, chosen = batch; drawn = torch.randint(60, user.shape)",
)
RIGHT = "-F.logsigmoid(model(user, chosen) - model(user, drawn)).mean()"
WRONG = "-F.logsigmoid(model(user, drawn) - model(user, chosen)).mean()"
HINGE = "(1 + model(user, chosen) - model(user, drawn)).clamp(min=0).mean()"
TOP, LOWEST = "topk(5)", "topk(5, largest=False)"


@pytest.mark.parametrize(
    ("drawing", "score", "loss", "rank", "status"),
    [
        (IN_SET, PRODUCT, WRONG, TOP, Status.FAIL),
        (IN_STEP, PRODUCT, WRONG, TOP, Status.FAIL),
        (IN_STEP, PRODUCT, HINGE, TOP, Status.FAIL),
        (IN_SET, PRODUCT, WRONG, LOWEST, Status.WARN),
        (IN_SET, PRODUCT, RIGHT, TOP, None),
        (IN_STEP, PRODUCT, RIGHT, TOP, None),
        (IN_STEP, DISTANCE, HINGE, LOWEST, None),
    ],
)
def test_the_direction_of_a_ranking(
    tmp_path: Path,
    drawing: tuple[str, str],
    score: str,
    loss: str,
    rank: str,
    status: Status | None,
) -> None:
    item, draw = drawing
    source = SCRIPT.format(item=item, score=score, draw=draw, loss=loss, rank=rank)
    result = ask_script(LossDirection, tmp_path / "train.py", source)
    expected = (status,) if status is not None else (Status.PASS, Status.INCONCLUSIVE, Status.SKIP)
    assert result.status in expected, result.message
