from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.data_wait import DataWait
from nnaudit.probes.first_steps import STEPS
from nnaudit.probes.plain_steps import MORE, Plain, PlainSteps
from nnaudit.targets.target import Target


def audit_of(rows: int = 512, loss: Any = F.cross_entropy) -> Audit:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x[:, :3].argmax(1))
    target = Target(
        model=lambda: nn.Linear(4, 3),
        train_loader=lambda: DataLoader(data, batch_size=8, shuffle=True),
        loss=loss,
    )
    return Audit(DirectLoop(target, torch.device("cpu"), seed=0))


def measured(audit: Audit) -> Plain:
    return audit.probe(PlainSteps)


def test_every_step_has_its_loss_and_its_times() -> None:
    plain = measured(audit_of())
    assert len(plain.losses) == len(plain.waits) == len(plain.seconds) == STEPS + MORE
    assert min(plain.waits) > 0.0
    assert min(plain.seconds) > 0.0


def test_the_first_loss_that_is_not_finite_is_the_last() -> None:
    plain = measured(audit_of(loss=lambda out, y: F.cross_entropy(out, y) * float("inf")))
    assert len(plain.losses) == 1


def test_what_the_first_steps_raised_is_not_provoked_again() -> None:
    calls: list[int] = []

    def loss(out: Any, y: Any) -> Any:
        calls.append(1)
        raise ValueError("no")

    audit = audit_of(loss=loss)
    with pytest.raises(UserCodeError):
        measured(audit)
    assert len(calls) == 1


def test_waiting_is_timed_within_one_epoch() -> None:
    audit = audit_of(rows=8 * 7)
    assert len(measured(audit).waits) == STEPS + MORE
    assert audit.probe(DataWait).batches == 5  # of seven, without the first two
