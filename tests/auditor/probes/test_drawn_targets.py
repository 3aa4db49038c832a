"""Targets that a step draws, and what the network is given of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.loss_layout import LossLayoutOfClasses
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.drawn_targets import DrawnTargets
from nnaudit.report import Status
from nnaudit.targets.target import Target


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.classes = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def noise_that_is_seen(model: Denoiser, batch: Any) -> Tensor:
    noise = torch.randn_like(batch[0])
    return F.mse_loss(model(batch[0] + noise), noise)


def noise_drawn_within(model: Denoiser, batch: Any) -> Tensor:
    noise = torch.randn_like(batch[0])
    hidden = model.net[0](0.5 * batch[0] + noise)  # a part of the network, called by itself
    return F.mse_loss(model.net[2](hidden), noise)


def classes_that_are_seen(model: Denoiser, batch: Any) -> Tensor:
    turns = torch.randint(4, (len(batch[0]),))
    turned = torch.stack([row.roll(2 * int(k)) for row, k in zip(batch[0], turns, strict=True)])
    return F.cross_entropy(model.classes(model(turned)), turns)


def smoothed_labels(model: Denoiser, batch: Any) -> Tensor:
    real = torch.empty(len(batch[0])).uniform_(0.8, 1.0)
    return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], real)


def two_noises(model: Denoiser, batch: Any) -> Tensor:
    noisy = batch[0] + torch.randn_like(batch[0])
    return F.mse_loss(model(noisy), torch.randn_like(batch[0]))


def noise_of_another_row(model: Denoiser, batch: Any) -> Tensor:
    noise = torch.randn_like(batch[0])
    return F.mse_loss(model(batch[0] + noise), noise.flip(0))


def one_term_of_two(model: Denoiser, batch: Any) -> Tensor:
    output = model(batch[0])
    return F.mse_loss(output, batch[0]) + 0.1 * F.mse_loss(output, torch.randn_like(output))


def audit_of(step: Callable[[Denoiser, Any], Tensor]) -> Audit:
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(rows), batch_size=16)
    target = Target(Denoiser, train_loader=loader, training_step=step)
    return Audit(DirectLoop(target, torch.device("cpu"), seed=0))


@pytest.mark.parametrize(
    ("step", "status"),
    [
        (noise_that_is_seen, Status.PASS),
        (noise_drawn_within, Status.PASS),
        (classes_that_are_seen, Status.PASS),
        (smoothed_labels, Status.PASS),
        (two_noises, Status.FAIL),
        (noise_of_another_row, Status.FAIL),
        (one_term_of_two, Status.WARN),
    ],
)
def test_a_target_that_is_drawn(step: Callable[[Denoiser, Any], Tensor], status: Status) -> None:
    assert run_check(LossLayoutOfClasses, audit_of(step)).status is status


def test_a_draw_is_found_as_the_target() -> None:
    (seen,) = audit_of(noise_that_is_seen).probe(DrawnTargets)
    assert (seen.seen, seen.moved, seen.alone) == (True, False, True)
