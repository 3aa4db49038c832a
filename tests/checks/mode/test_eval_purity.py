"""MODE103: validation that changes the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.mode.eval_purity import EvalPurity
from nnaudit.report import Status


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 5)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(torch.relu(self.a(x))))


class StuckNorm(Net):
    """Its normalisation stays in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(24)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.train()
        return self

    def between(self, h: Tensor) -> Tensor:
        return self.norm(h)


class OwnNorm(Net):
    """Keeps an average of its own, and forgets the mode."""

    def __init__(self, guarded: bool) -> None:
        super().__init__()
        self.guarded = guarded
        self.register_buffer("running_mean", torch.zeros(24))

    def between(self, h: Tensor) -> Tensor:
        if self.training or not self.guarded:
            self.running_mean.lerp_(h.detach().mean(0), 0.1)
        return h - self.running_mean


class Decaying(Net):
    """Scales its own weights in the forward pass."""

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.b.weight.mul_(0.99)
        return h


class FunctionalNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(24))
        self.register_buffer("running_var", torch.ones(24))

    def between(self, h: Tensor) -> Tensor:
        return F.batch_norm(h, self.running_mean, self.running_var, training=True)


@pytest.mark.parametrize("build", [StuckNorm, lambda: OwnNorm(False), FunctionalNorm, Decaying])
def test_what_validation_trains_fails(build: Callable[[], nn.Module], ask) -> None:
    result = ask(EvalPurity, build)
    assert result.status is Status.FAIL
    assert result.evidence


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h


class Caching(Net):
    """Makes a table of positions for the longest input so far."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def between(self, h: Tensor) -> Tensor:
        if self.table.shape[0] < h.shape[1]:
            self.table = torch.linspace(0, 1, h.shape[1])
        return h + self.table[: h.shape[1]]


def test_buffers_of_unknown_purpose_warn(ask) -> None:
    held_out = DataLoader(TensorDataset(torch.randn(32, 12), torch.arange(32) % 5), batch_size=16)
    assert ask(EvalPurity, Counting, val_loader=held_out).status is Status.WARN
    assert ask(EvalPurity, Counting).status is Status.NOTE  # eval mode is our choice


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "batch norm": lambda: nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Linear(24, 5)),
    "own average, guarded": lambda: OwnNorm(True),
    "cache": Caching,
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(12, 24)), nn.ReLU(), nn.Linear(24, 5)
    ),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(12, 24)), nn.ReLU(), nn.Linear(24, 5)
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)),
        nn.InstanceNorm1d(3, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(12, 5),
    ),
}


@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY)
def test_networks_that_validation_leaves_alone_pass(build, ask) -> None:
    assert ask(EvalPurity, build).status is Status.PASS


class MomentumEncoder(Net):
    """Its frozen copy follows in every forward, as in the authors' MoCo, which never validates."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(*reversed(self.a.weight.shape)).requires_grad_(False)

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.key.weight.lerp_(self.a.weight, 0.01)
        return h


def test_a_frozen_copy_that_follows_warns_unless_there_is_validation(ask) -> None:
    assert ask(EvalPurity, MomentumEncoder).status is Status.WARN
    x = torch.randn(64, 12)
    validation = DataLoader(TensorDataset(x, torch.zeros(64).long()), batch_size=32)
    assert ask(EvalPurity, MomentumEncoder, val_loader=validation).status is Status.FAIL


class TrainableMomentumEncoder(MomentumEncoder):
    """Its copy should have been frozen; an optimizer that holds it does no harm."""

    def __init__(self) -> None:
        super().__init__()
        self.key.requires_grad_(True)


def test_a_copy_that_follows_need_not_be_frozen(ask) -> None:
    assert ask(EvalPurity, TrainableMomentumEncoder).status is Status.WARN


class Bounded(Net):
    """Keeps the norms of its weights down in forward, as max-norm layers do."""

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.b.weight.copy_(torch.renorm(self.b.weight, 2, 0, 0.3))
        return h


def test_a_constraint_that_is_met_passes(ask) -> None:
    result = ask(EvalPurity, Bounded)
    assert result.status is Status.PASS


class Merging(Net):
    """Adds the product of two factors to a frozen weight for validation."""

    def __init__(self, *, taken_out: bool) -> None:
        super().__init__()
        self.taken_out = taken_out
        self.a.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, 12))
        self.lora_B = nn.Parameter(torch.zeros(24, 2))

    def train(self, mode: bool = True) -> nn.Module:
        if self.training is not mode and (self.taken_out or not mode):
            self.a.weight.data += (-1 if mode else 1) * (self.lora_B @ self.lora_A).data
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        more = x @ self.lora_A.T @ self.lora_B.T if self.training else 0
        return self.b(torch.relu(self.a(x) + more))


def test_an_adapter_that_is_merged_at_every_validation_fails(ask: Callable[..., Any]) -> None:
    result = ask(EvalPurity, lambda: Merging(taken_out=False))
    assert result.status is Status.FAIL
    assert "1 parameter changes (a.weight first)" in result.message
    assert ask(EvalPurity, lambda: Merging(taken_out=True)).status is Status.PASS
