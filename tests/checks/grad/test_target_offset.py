"""GRAD109: how far ahead of its input a target is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.target_offset import TargetOffset
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.label_shift import LabelShift
from nnaudit.probes.token_targets import TokenTargets, offset_of
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def judged(*offsets: int, shift: LabelShift | None = None) -> Result:
    seen = TokenTargets(100, 0, 4, 0, 0, 0, 0, True, offsets, shift=shift)
    loop = SimpleNamespace(locate=lambda thing: None, train_loader=None)
    audit = SimpleNamespace(probe=lambda probe: seen, loop=loop)
    return TargetOffset().run(cast(Audit, audit))


def test_targets_further_ahead_than_the_next_token_fail() -> None:
    result = judged(2)
    assert result.status is Status.FAIL
    assert "2 places ahead" in result.message
    assert judged(1, 2).status is Status.PASS
    assert judged().status is Status.SKIP


def test_labels_of_the_token_beside_warn() -> None:
    result = judged(shift=LabelShift(1, 0.98, 0.8, 101))
    assert result.status is Status.WARN
    assert "1 place(s) after" in result.message
    assert "98%" in result.message


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
def test_the_offset_of_targets(ahead: int) -> None:
    texts = torch.randint(1, 30, (8, 20), generator=torch.Generator().manual_seed(0))
    ids = texts[:, :16]
    target = texts[:, ahead : ahead + 16]
    assert offset_of(ids, target.reshape(-1), -100) == ahead
    partly = target.clone()
    partly[:, :4] = -100
    assert offset_of(ids, partly.reshape(-1), -100) == ahead
    assert offset_of(ids, target[:, :15], -100) == ahead  # the last logits dropped


def test_what_is_not_the_inputs_own_tokens_has_no_offset() -> None:
    ids = torch.randint(1, 30, (8, 20), generator=torch.Generator().manual_seed(0))
    other = torch.randint(1, 30, (8, 20), generator=torch.Generator().manual_seed(1))
    assert offset_of(ids, other, -100) is None
    assert offset_of(ids, torch.full_like(ids, -100), -100) is None
    assert offset_of(torch.ones_like(ids), torch.ones_like(ids), -100) is None
    assert offset_of(ids, other[:, 0], -100) is None


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(30, 16), nn.Linear(16, 30)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids))


def audited(*places: int) -> Result:
    """Audit a model of texts that predicts the tokens so many places ahead."""

    def step(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch[0])
        losses = [
            F.cross_entropy(logits[:, :-n].reshape(-1, 30), batch[0][:, n:].reshape(-1))
            for n in places
        ]
        return torch.stack(losses).sum()

    ids = torch.randint(30, (96, 16), generator=torch.Generator().manual_seed(0))
    target = Target(Reader, DataLoader(TensorDataset(ids), batch_size=16), training_step=step)
    return run_check(TargetOffset, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def test_offsets_of_a_program() -> None:
    assert audited(1).status is Status.PASS
    assert audited(2).status is Status.FAIL
    assert audited(1, 2).status is Status.PASS
