"""Which random numbers a forward pass draws: who switched a dropout on, and whose it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.measure.randomness import Draw, RandomnessTap


class Own(nn.Module):
    """A user's layer, and what it draws by."""

    def __init__(self, draw: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(self, x)


def draws(model: nn.Module, *rest: nn.Module) -> list[Draw]:
    with torch.random.fork_rng(), RandomnessTap([model]) as tap:
        nn.Sequential(model, *rest)(torch.ones(2, 4, 4))
    return tap.draws


def declared(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(
        x,
        p=0.5,
        training=True,
    )


def forgotten(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x)  # training=True is the default


def followed(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, training=module.training)


@pytest.mark.parametrize(
    ("draw", "said"), [(declared, True), (forgotten, False), (followed, False)]
)
def test_a_dropout_called_as_a_function_is_declared_by_its_call(
    draw: Callable[[nn.Module, Tensor], Tensor], said: bool
) -> None:
    (found,) = draws(Own(draw))
    assert (found.dropout, found.by_module, found.declared) == (True, False, said)
    assert found.location is not None
    assert found.location.file == __file__


def test_a_dropout_of_a_layer_is_the_layers() -> None:
    (found,) = draws(nn.Dropout(0.5))
    assert (found.by_module, found.outside) == (True, False)
    assert found.location is not None
    assert found.location.line == draws.__code__.co_firstlineno + 2


def test_a_layer_that_is_no_part_of_the_model_is_outside() -> None:
    (found,) = draws(nn.Identity(), nn.Dropout(0.5))
    assert (found.by_module, found.outside) == (True, True)


class Late(nn.Dropout):
    """A user's subclass: its own method draws, and torch's after it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_subclass_of_a_layer_draws_as_the_layer() -> None:
    (found,) = draws(Late(0.5))
    assert found.by_module


def test_attention_draws_for_its_layer() -> None:
    found = draws(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True))
    assert len(found) >= 3
    assert all(each.dropout and each.by_module and not each.outside for each in found)
