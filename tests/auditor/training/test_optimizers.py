"""What an optimizer's class tells of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnaudit.training.optimizers import decouples_decay, is_adaptive, is_scale_free


def first_step(kind: Any, scale: float, **settings: float) -> float:
    """Return how far a parameter moves when its gradient is ``scale``."""
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = kind([weight], **settings)
    weight.grad = torch.tensor(scale)
    optimizer.step()
    return -weight.item()


@pytest.mark.parametrize(
    "kind",
    [
        torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam,
        torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Rprop,
        torch.optim.SGD, torch.optim.ASGD,
    ],
)  # fmt: skip
def test_a_method_is_scale_free_where_its_first_step_is(kind: Any) -> None:
    moved = [first_step(kind, scale, lr=0.1) for scale in (1.0, 8.0)]
    free = moved[1] == pytest.approx(moved[0], rel=1e-3)
    # RAdam's first steps are plain momentum, until enough gradients were seen.
    assert is_scale_free(kind([torch.nn.Parameter(torch.zeros(1))])) is (
        free or kind is torch.optim.RAdam
    )


def test_a_class_derived_from_adam_is_scale_free() -> None:
    class WithWarmup(torch.optim.Adam):
        pass

    assert is_scale_free(WithWarmup([torch.nn.Parameter(torch.zeros(1))]))


@pytest.mark.parametrize(
    ("kind", "adaptive", "decoupled"),
    [
        (torch.optim.Adam, True, False),
        (torch.optim.AdamW, True, True),
        (torch.optim.RMSprop, True, False),
        (torch.optim.SGD, False, False),
        (torch.optim.LBFGS, False, False),
    ],
)
def test_what_a_method_divides_by_and_how_it_decays(
    kind: Any, adaptive: bool, decoupled: bool
) -> None:
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))])
    assert is_adaptive(optimizer) is adaptive
    assert decouples_decay(optimizer) is decoupled
