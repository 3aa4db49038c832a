"""The taxonomy of layers holds what torch offers."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.targets.layers import (
    DROPOUT_FUNCTIONS,
    NORMS,
    Dropout,
    attention_dropout,
    dropout_rates,
    is_dropping,
)


def torch_layers(*words: str) -> list[type[nn.Module]]:
    """Torch's own modules with one of ``words`` in their name, made public by ``torch.nn``."""
    return [
        kind
        for name, kind in vars(nn).items()
        if inspect.isclass(kind) and any(word in name for word in words)
    ]


def test_every_dropout_of_torch_is_known() -> None:
    assert set(torch_layers("Dropout")) == {
        kind for kind in torch_layers("Dropout") if issubclass(kind, Dropout)
    }
    public = {
        function
        for space in (torch, F)
        for name, function in vars(space).items()
        if "dropout" in name.lower() and not name.startswith("_") and callable(function)
    }
    assert public - {torch.native_dropout} == set(DROPOUT_FUNCTIONS)


def test_every_normalisation_of_torch_is_known() -> None:
    # CrossMapLRN2d and LocalResponseNorm divide by what is near, and have no weights.
    known = {kind for kind in torch_layers("Norm") if issubclass(kind, NORMS)}
    assert set(torch_layers("Norm")) - known == {nn.LocalResponseNorm}


@pytest.mark.parametrize(
    ("args", "kwargs", "drops"),
    [
        ((None,), {}, True),
        ((None, 0.0), {}, False),
        ((None, 0.5, False), {}, False),
        ((None,), {"training": False}, False),
        ((None, 0.5), {"train": False}, False),
        ((None,), {"p": 0.1, "training": True}, True),
    ],
)
def test_whether_a_call_drops(args: tuple[object, ...], kwargs: dict[str, object], drops: bool):
    assert is_dropping(args, kwargs) is drops


def test_the_rate_of_fused_attention() -> None:
    assert attention_dropout((1, 2, 3), {}) == 0.0
    assert attention_dropout((1, 2, 3, None, 0.2), {}) == 0.2
    assert attention_dropout((1, 2, 3), {"dropout_p": 0.1}) == 0.1


class DropPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.3


@pytest.mark.parametrize(
    ("layer", "rates"),
    [
        (nn.Dropout(0.1), {"p": 0.1}),
        (nn.AlphaDropout(0.2), {"p": 0.2}),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.4), {"dropout": 0.4}),
        (nn.MultiheadAttention(4, 1, dropout=0.5), {"dropout": 0.5}),
        (DropPath(), {"drop_prob": 0.3}),
        (nn.Linear(1, 1), {}),
    ],
)
def test_the_rates_of_a_layer(layer: nn.Module, rates: dict[str, float]) -> None:
    assert dropout_rates(layer) == rates
