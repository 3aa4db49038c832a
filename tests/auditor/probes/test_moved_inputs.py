"""The loss itself tells whether it matters which input a row has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.moved_inputs import MovedInputs, moved_inputs
from nnaudit.targets.target import Target

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def composite(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean() + 0.1 * output.square().mean()


def moved(targets: Tensor) -> MovedInputs | None:
    model = nn.Linear(4, 1)
    nn.init.ones_(model.weight)
    pairs = list(zip(X.split(32), targets.split(32), strict=True))
    loop = DirectLoop(Target(model, pairs, loss=composite), torch.device("cpu"), seed=0)
    return moved_inputs(Audit(loop), pairs)


def test_a_row_that_has_its_own_input_costs_less() -> None:
    found = moved(Y)
    assert found is not None
    assert found.matters
    assert found.loss < min(found.moved)


def test_targets_that_belong_to_other_rows_cost_the_same() -> None:
    for seed in range(40):
        order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
        found = moved(Y[order])
        assert found is not None
        assert not found.matters


def test_nothing_is_said_where_inputs_are_all_there_is() -> None:
    assert moved(X) is None
