"""Triplets whose positive and negative have changed places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.loss_direction import LossDirection
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Status
from nnaudit.targets.target import Target

NOISE = torch.Generator().manual_seed(0)
ANCHORS = torch.randn(256, 6, generator=NOISE)
NEAR = ANCHORS + 0.5 * torch.randn(256, 6, generator=NOISE)
FAR = torch.randn(256, 6, generator=NOISE)


def step(model: nn.Module, batch: Any) -> Tensor:
    anchor, positive, negative = batch
    return F.triplet_margin_loss(model(anchor), model(positive), model(negative), margin=0.3)


@pytest.mark.parametrize(
    ("positive", "negative", "warns"),
    [(NEAR, FAR, False), (FAR, NEAR, True), (FAR, FAR.flip(0), False)],
    ids=["right", "exchanged", "nearness says nothing"],
)
def test_triplets(positive: Tensor, negative: Tensor, *, warns: bool) -> None:
    rows = TensorDataset(ANCHORS, positive, negative)
    target = Target(lambda: nn.Linear(6, 3), DataLoader(rows, batch_size=32), training_step=step)
    result = run_check(LossDirection, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))
    assert (result.status is Status.WARN) is warns, result.message
