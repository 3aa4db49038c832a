"""MODE110: output layers that are frozen while they are random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.checks.mode.frozen_head import FrozenHead
from nnaudit.report import Status

LOADED = nn.Linear(24, 5).state_dict()


class Net(nn.Module):
    def __init__(self, *, frozen: str = "", loaded: bool = False) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(24, 5), nn.Linear(12, 24)
        self.norm = nn.BatchNorm1d(24)
        if loaded:
            self.head.load_state_dict(LOADED)
        if frozen:
            self.get_submodule(frozen).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.body(x))))


def test_a_random_output_layer_that_is_frozen_warns(ask) -> None:
    result = ask(FrozenHead, lambda: Net(frozen="head"))
    assert result.status is Status.WARN
    assert result.module == "head"


def test_trained_and_loaded_ones_pass(ask) -> None:
    for build in (Net, lambda: Net(frozen="norm"), lambda: Net(frozen="head", loaded=True)):
        assert ask(FrozenHead, build).status is Status.PASS


SCRIPT = """
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x = torch.randn(256, 12)
loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 32, shuffle=True)
trunk = nn.Sequential(nn.Linear(12, 64), nn.ReLU())
trunk.requires_grad_(False)
model = nn.Sequential(trunk, nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(4):
    if epoch == 2:
        LATER
    for a, b in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
"""


class Words(nn.Module):
    """An embedding and a head, and a teacher of the same make where one is wanted."""

    def __init__(self, table: Tensor | None = None, *, frozen: bool = True, teacher: bool = False):
        super().__init__()
        self.words, self.head = nn.Embedding(12, 200), nn.Linear(2400, 5)
        self.teacher = nn.Linear(2400, 5).requires_grad_(False) if teacher else None
        if table is not None:
            self.words = nn.Embedding.from_pretrained(table, freeze=frozen)
        if frozen:
            self.words.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words((x > 0).long() * torch.arange(12)).flatten(1))


def test_a_trunk_that_is_frozen_with_random_weights_warns(ask) -> None:
    result = ask(FrozenHead, lambda: Net(frozen="body"))
    assert result.status is Status.WARN
    assert result.module == "body"
    assert "were not loaded" in result.message


def test_what_may_be_thawed_later_is_left(ask_script: Any) -> None:
    for line, status in (("pass", Status.WARN), ("trunk.requires_grad_(True)", Status.PASS)):
        source = SCRIPT.replace("LATER", line)
        assert ask_script(FrozenHead, source).status is status


def test_word_vectors_that_are_frozen_before_they_are_learnt_warn(ask) -> None:
    learnt = 0.4 * torch.randn(12, 200, generator=torch.Generator().manual_seed(0))
    assert ask(FrozenHead, Words).status is Status.WARN
    assert ask(FrozenHead, lambda: Words(learnt)).status is not Status.WARN
    assert ask(FrozenHead, lambda: Words(frozen=False, teacher=True)).status is not Status.WARN


class Adapted(Net):
    """With low-rank factors as PEFT names them."""

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(12, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 24, bias=False)})
        if not trained:
            self.lora_A.requires_grad_(False)
            self.lora_B.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        more = self.lora_B["default"](self.lora_A["default"](x))
        return self.head(torch.relu(self.norm(self.body(x) + more)))


def test_an_adapter_that_is_frozen_while_the_head_is_trained_warns(ask) -> None:
    result = ask(FrozenHead, lambda: Adapted(trained=False))
    assert result.status is Status.WARN
    assert "low-rank factors" in result.message
    assert ask(FrozenHead, lambda: Adapted(trained=True)).status is Status.PASS


BASE = {"body": nn.Linear(12, 24).state_dict(), "last": nn.Linear(24, 24).state_dict()}


class LowRank(nn.Module):
    """A layer with an adapter beside it."""

    def __init__(self, base: nn.Linear, *, zeros: bool = True) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, base.in_features))
        self.lora_B = nn.Parameter(torch.randn(base.out_features, 2))
        if zeros:
            nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


class Tuned(nn.Module):
    """Two layers with adapters, and a head."""

    def __init__(self, *, zeros: bool = True, loaded: bool = True, bare: bool = False) -> None:
        super().__init__()
        first, second, third = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        if loaded:
            first.load_state_dict(BASE["body"])
            for layer in (second, third):
                layer.load_state_dict(BASE["last"])
        last = third.requires_grad_(False) if bare else LowRank(third, zeros=zeros)
        self.layers = nn.ModuleList(
            [LowRank(first, zeros=zeros), LowRank(second, zeros=zeros), last]
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def test_adapters_that_begin_at_random_warn(ask) -> None:
    result = ask(FrozenHead, lambda: Tuned(zeros=False))
    assert result.status is Status.WARN
    assert "3 adapters begin with random numbers (layers.0 first)" in result.message
    assert ask(FrozenHead, Tuned).status is Status.PASS
    alone = ask(FrozenHead, lambda: Tuned(zeros=False, loaded=False))
    assert "were not loaded" in alone.message  # the base itself is at fault


def test_layers_without_an_adapter_are_noted(ask) -> None:
    result = ask(FrozenHead, lambda: Tuned(bare=True))
    assert result.status is Status.NOTE
    assert "Of 3 layers named layers.*, 2 have an adapter; layers.2" in result.message
