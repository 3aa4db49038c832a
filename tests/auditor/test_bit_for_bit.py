"""An audit of a caller's own objects, whole or interrupted, leaves all as it was, bit for bit.

Every ninth combination is tried, and all 216 of them with ``NNAUDIT_TESTS=all`` in the environment.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nnaudit
from nnaudit.targets.batch import digest

CHECKS = "GRAD102,STEP101,MODE105"
"""Few and quick, and between them they step, restore, and build anew."""


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x.view(-1, 2, 4))[0][:, -1])
        return out


class Tied(nn.Module):
    """Shares a weight, keeps a buffer that counts, and has a parameter that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(8, 3, bias=False), nn.Linear(3, 8, bias=False)
        self.back.weight = nn.Parameter(self.into.weight.t().contiguous())
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.again = self.into
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        out: Tensor = self.again(self.back(self.into(x))) * self.scale
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "norms": lambda: nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    ),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.LazyLinear(3),
    ),
    "recurrent": Recurrent,
    "attention": lambda: nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), nn.Linear(8, 3)
    ),
    "tied": Tied,
    "normed weights": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3)
    ),
}  # fmt: skip
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": torch.optim.Adadelta,
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


@dataclass
class Program:
    """What a caller holds before the audit, in the middle of a training."""

    model: nn.Module
    loader: DataLoader[Any]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy

    def step(self, model: nn.Module, batch: Any) -> Tensor:
        return self.loss(model(batch[0]), batch[1])


def make(model: str, optimizer: str) -> Program:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    loader = DataLoader(
        TensorDataset(x, x[:, :3].argmax(1)),
        batch_size=16,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
    )
    net = MODELS[model]()
    net(x[:2])  # lazy layers
    net.register_forward_hook(lambda *_: None)
    stepped = OPTIMIZERS[optimizer]([p for p in net.parameters() if p.requires_grad])
    program = Program(net, loader, stepped, torch.optim.lr_scheduler.StepLR(stepped, 2))
    for batch in itertools.islice(loader, 3):
        torch.autograd.backward(program.step(net, batch))
        stepped.step()
        program.scheduler.step()
    net.train()
    net.get_submodule(next(name for name, _ in net.named_modules() if name)).eval()
    return program


APIS: dict[str, Callable[[Program], dict[str, Any]]] = {
    "objects": lambda p: {
        "model": p.model, "train_loader": p.loader, "loss": p.loss, "optimizer": p.optimizer
    },
    "with a scheduler": lambda p: {
        "model": p.model, "train_loader": p.loader, "loss": p.loss, "optimizer": p.optimizer,
        "scheduler": p.scheduler, "val_loader": p.loader,
    },
    "a step": lambda p: {
        "model": p.model, "train_loader": p.loader, "training_step": p.step,
        "optimizer": p.optimizer,
    },
    "a factory of optimizers": lambda p: {
        "model": p.model, "train_loader": lambda: p.loader, "loss": p.loss,
        "optimizer": lambda m: torch.optim.Adam(m.parameters()),
    },
}  # fmt: skip
COMBINATIONS = list(itertools.product(MODELS, OPTIMIZERS, APIS))
TRIED = COMBINATIONS[:: 1 if os.environ.get("NNAUDIT_TESTS") == "all" else 9]


def state_of(program: Program) -> dict[str, Any]:
    """Everything that an audit could leave behind, as it compares."""
    model, modules = program.model, list(program.model.modules())
    generator = program.loader.generator
    assert generator is not None
    return {
        "weights and buffers": digest(dict(model.state_dict())),
        "where they lie": [tensor.data_ptr() for tensor in model.state_dict().values()],
        "gradients": [None if p.grad is None else digest(p.grad) for p in model.parameters()],
        "whose gradients": [id(p.grad) for p in model.parameters()],
        "what is trained": [p.requires_grad for p in model.parameters()],
        "versions": [type(p).__name__ for p in model.parameters()],
        "modes": [module.training for module in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        "attributes": [sorted(vars(module)) for module in modules],
        "optimizer": digest(list(program.optimizer.state_dict()["state"].values())),
        "groups": str(program.optimizer.state_dict()["param_groups"]),
        "scheduler": str(program.scheduler.state_dict()),
        "methods": (program.optimizer.step, program.optimizer.zero_grad),
        "loader": digest(generator.get_state()),
        "torch": digest(torch.get_rng_state()),
        "numpy": digest(np.random.get_state(legacy=True)[1]),
        "random": random.getstate(),
        "flags": (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_anomaly_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"),
        ),
        "threads": (torch.get_num_threads(), threading.active_count()),
        "process": (Path.cwd(), dict(os.environ), sys.argv, list(sys.path)),
        "logging": (list(logging.root.handlers), logging.root.level),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)],
        "globals": (torch.manual_seed, torch.nn.Module.__call__, torch.Tensor.backward),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert [what for what in before if after[what] != before[what]] == []


@pytest.mark.parametrize(("model", "optimizer", "api"), TRIED)
def test_an_audit_leaves_all_as_it_was(model: str, optimizer: str, api: str) -> None:
    program = make(model, optimizer)
    before = state_of(program)
    report = nnaudit.audit(**APIS[api](program), select=CHECKS, isolate=False)
    assert report.result("STEP101").status.value == "pass"
    assert_same(before, state_of(program))


@pytest.mark.parametrize(
    ("model", "optimizer", "api", "calls"),
    [(*one, 1 + index) for index, one in enumerate(COMBINATIONS[::13])],
)
def test_so_does_one_that_is_interrupted(model: str, optimizer: str, api: str, calls: int) -> None:
    program, left = make(model, optimizer), calls

    def interrupted(output: Tensor, target: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, target)

    program.loss = interrupted
    before = state_of(program)
    with pytest.raises(KeyboardInterrupt):
        nnaudit.audit(**APIS[api](program), select=CHECKS, isolate=False)
    assert_same(before, state_of(program))
