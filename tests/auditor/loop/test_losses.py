"""The table of loss functions against what torch offers, and what a call of one is recorded as."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import loss as torch_losses

from nnaudit.loop.losses import LOSS_FUNCTIONS
from nnaudit.loop.observer import Observer

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def test_every_loss_function_of_torch_is_in_the_table() -> None:
    offered = {
        name
        for name, function in vars(F).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and (name.endswith("_loss") or "entropy" in name or name == "kl_div")
    }
    known = {function.__name__ for function in LOSS_FUNCTIONS}
    assert offered - known == set(), "add them to LOSS_FUNCTIONS in auditor/loop/losses.py"
    assert known - offered == set()


@pytest.mark.parametrize("name", torch_losses.__all__)
def test_every_loss_module_of_torch_computes_by_a_function_of_the_table(name: str) -> None:
    source = textwrap.dedent(inspect.getsource(getattr(torch_losses, name).forward))
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert called & {function.__name__ for function in LOSS_FUNCTIONS}


def test_names_are_told_apart() -> None:
    assert len(set(LOSS_FUNCTIONS.values())) == len(LOSS_FUNCTIONS)


def recorded(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Any:
    with Observer(model) as observer:
        loss(model(X)).backward()
    (call,) = observer.observation.loss_calls
    return call


def test_a_triplet_with_a_distance_of_its_own_is_a_loss_that_compares_no_target() -> None:
    criterion = nn.TripletMarginWithDistanceLoss(distance_function=nn.PairwiseDistance())
    call = recorded(nn.Linear(4, 3), lambda z: criterion(z, z.roll(1, 0), z.roll(2, 0)))
    assert call.kind == "triplet_margin_with_distance"
    assert not call.compares


fused = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no fused cross-entropy"
)


@fused
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"label_smoothing": 0.1}])
def test_a_fused_cross_entropy_is_one_of_logits(options: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.randn(3, 5))

    def loss(hidden: Tensor) -> Tensor:
        value: Tensor = F.linear_cross_entropy(hidden, weight, Y, **options)
        return value

    call = recorded(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), loss)
    assert call.kind == "cross_entropy"
    assert call.input.shape == (8, 3)
    assert torch.equal(call.target, Y)
    assert call.recompute(call.input) == pytest.approx(call.value)
    assert "Relu" not in call.producer


@fused
def test_the_module_of_the_fused_cross_entropy_is_seen_too() -> None:
    criterion = nn.LinearCrossEntropyLoss(5, 3)
    call = recorded(nn.Linear(4, 5), lambda hidden: criterion(hidden, Y))
    assert (call.kind, call.input.shape) == ("cross_entropy", (8, 3))
