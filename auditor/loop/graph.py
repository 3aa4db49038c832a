"""What becomes of the outputs of modules: whose input they are, and which units are ever active."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.targets import batch as batches

LOSS = "loss"
"""The consumer that is no module: a loss function's input."""

FUNCTION = "F.dropout"
"""The producer that is no module: a dropout that is called as a function."""

_BENT: dict[Any, str] = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6), "relu"
    ),
    **dict.fromkeys(
        (torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid), "sigmoid"
    ),
    **dict.fromkeys((torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh), "tanh"),
}
"""Activation functions that have a flat part, by every name they are called by."""

_FLAT = 1e-3
"""How near to its bound a sigmoid or tanh is called saturated: it passes on a 500th there."""


@dataclass(frozen=True)
class Firing:
    """Which units of one activation function were anywhere but in its flat part.

    Attributes:
        after: the last module that ended before; empty for none.
        kind: ``relu``, ``sigmoid`` or ``tanh``.
        active: by unit (channel or feature), whether it was for any sample, shape (C,).
    """

    after: str
    kind: str
    active: Tensor


def firing(
    func: Callable[..., Any], output: Any, after: str, channels_first: bool
) -> Firing | None:
    """Look at what the activation function ``func`` returned; None when it is none of them.

    ``channels_first`` settles where the units of an output with three or more dimensions lie.
    """
    kind = _BENT.get(func)
    if kind is None or not isinstance(output, Tensor) or not output.requires_grad:
        return None
    if output.ndim < 2 or not output.numel() or output.layout is not torch.strided:
        return None
    values = output.detach()
    units = 1 if channels_first or values.ndim == 2 else values.ndim - 1
    if kind == "relu":
        alive = values > 0
    else:
        low = _FLAT if kind == "sigmoid" else _FLAT - 1.0
        alive = (values > low) & (values < 1.0 - _FLAT)
    others = [d for d in range(values.ndim) if d != units]
    return Firing(after, kind, alive.any(dim=others).cpu())


class Makers:
    """Remembers which module, or dropout, made a tensor, as long as the tensor lives."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def note(self, output: Any, name: str) -> None:
        """The tensors of ``output`` come from ``name``; what was known of them is forgotten."""
        for _, tensor in batches.tensors(output):
            self._made[id(tensor)] = (weakref.ref(tensor), name)

    def of(self, tensor: Any) -> str | None:
        """Return who made ``tensor``; None where something else than a module did."""
        reference, name = self._made.get(id(tensor), (None, ""))
        return name if reference is not None and reference() is tensor else None
