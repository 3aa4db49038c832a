"""How much two runs of the same computation differ: what counts as a change and what does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

REPEATS = 10.0
"""A change counts when it is this many times what two identical runs differ by."""

ROUNDINGS = 64.0
"""... and this many roundings of the largest value: a few sums in another order make several."""


def tolerance(first: Tensor, second: Tensor, *, eps: float = 0.0) -> float:
    """Return the largest difference from ``first`` that says nothing.

    ``first`` and ``second`` are the results of two identical runs, of any one shape. ``eps`` is
    the relative rounding of the computation, at least that of their dtype.
    """
    if not first.numel():
        return 0.0
    rounding = max(eps, _eps(first.dtype))
    difference = float((first.double() - second.double()).abs().max())
    return max(REPEATS * difference, ROUNDINGS * rounding * float(first.double().abs().max()))


def eps_of(model: nn.Module) -> float:
    """Return the coarsest rounding among the floating point parameters of ``model``."""
    return max((_eps(p.dtype) for p in model.parameters() if not is_lazy(p)), default=0.0)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0
