"""GRAD107 on its own; tests/checks/grad/test_gradient_reach.py asks it beside GRAD101."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.detached_graph import DetachedGraph
from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.runner import run_check
from nnaudit.targets import Target


class Net(nn.Module):
    """Two layers; ``between`` is what happens to the features on the way."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x).relu()))


def audited(model: nn.Module) -> Result:
    torch.manual_seed(0)
    x = torch.randn(128, 8)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)
    target = Target(
        model=lambda: model,
        train_loader=loader,
        loss=nn.functional.cross_entropy,
        optimizer=lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1),
    )
    return run_check(DetachedGraph, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


@pytest.mark.parametrize(
    "cut",
    [
        lambda h: h.detach(),
        lambda h: h.data,
        lambda h: torch.tensor(h.tolist()),
        lambda h: torch.from_numpy(h.detach().numpy().copy()),
    ],
    ids=["detach", "data", "list", "numpy"],
)
def test_a_cut_graph_fails_and_names_what_is_cut_off(cut) -> None:
    result = audited(Net(cut))
    assert result.status is Status.FAIL
    assert "first" in result.message + result.module


def test_a_part_that_is_frozen_may_be_cut_off() -> None:
    model = Net(lambda h: h.detach())
    model.first.requires_grad_(False)
    assert audited(model).status is not Status.FAIL


@pytest.mark.parametrize(
    "whole",
    [lambda h: h, lambda h: h + (h.round() - h).detach(), lambda h: h * h.detach().sigmoid()],
)
def test_a_path_that_remains_is_enough(whole) -> None:
    assert audited(Net(whole)).status is Status.PASS
