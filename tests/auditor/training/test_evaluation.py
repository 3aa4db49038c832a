"""Differences of outputs, and running the model as it is used."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nnaudit.training.evaluation import distance, eval_mode, rounding


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.ones(4), torch.ones(4), 0.0),
        (torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 1.5]), 0.5),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]), 0.0),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0]), math.inf),
        (torch.ones(4), torch.ones(5), math.inf),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, math.inf),
        ((torch.ones(2), "text"), (torch.ones(2), "other"), 0.0),
        (torch.tensor([3, 4]), torch.tensor([3, 4]), 0.0),
        (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64), 0.0),
    ],
)
def test_distance(one: object, other: object, expected: float) -> None:
    assert distance(one, other) == pytest.approx(expected)


def test_rounding_is_of_the_coarsest_number_type() -> None:
    low = torch.ones(2, dtype=torch.bfloat16)
    assert rounding((torch.ones(2), low)) == 64 * torch.finfo(torch.bfloat16).eps
    assert rounding(torch.ones(2, dtype=torch.long)) < 1e-4


def test_modes_are_put_back_module_by_module() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Dropout(), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Stubborn()
    model.b.eval()
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert (model.training, model.a.training, model.b.training) == (True, True, False)
