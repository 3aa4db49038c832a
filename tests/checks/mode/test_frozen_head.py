"""MODE110: output layers that are frozen while they are random."""

from __future__ import annotations

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
    for build in (Net, lambda: Net(frozen="body"), lambda: Net(frozen="head", loaded=True)):
        assert ask(FrozenHead, build).status is Status.PASS


class Adapted(Net):
    """With low-rank factors as PEFT names them."""

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(12, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 24, bias=False)})
        for factor in (self.lora_A, self.lora_B):
            factor.requires_grad_(trained)

    def forward(self, x: Tensor) -> Tensor:
        more = self.lora_B["default"](self.lora_A["default"](x))
        return self.head(torch.relu(self.norm(self.body(x) + more)))


def test_an_adapter_that_is_frozen_while_the_head_is_trained_warns(ask) -> None:
    result = ask(FrozenHead, lambda: Adapted(trained=False))
    assert result.status is Status.WARN
    assert "low-rank factors" in result.message
    assert ask(FrozenHead, lambda: Adapted(trained=True)).status is Status.PASS
