"""The network as it is used after training: in eval mode, without gradients, on one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.errors import user_code
from nnaudit.loop.base import Loop
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs

IN_PARTS = "The network has no forward() of its own: its parts are called one by one."
"""Why a check that calls the network does not apply, where
:func:`~nnaudit.targets.model_inputs.has_forward` says so."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Call ``model.eval()`` for the time of a ``with``, then put every module's mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        with user_code("switching the model to eval mode"):
            model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def fed_to(loop: Loop, batch: Any) -> ModelInputs:
    """Return what the model is called with for ``batch``, on its device.

    Taken apart once: a script may draw random numbers on the way to its model.

    Raises:
        UserCodeError: that could not be found out.
    """
    return loop.called_with(batches.to_device(batch, loop.device))


def evaluate(loop: Loop, fed: ModelInputs) -> Any:
    """Return the output in eval mode of ``loop``'s model for ``fed``, detached.

    Not :meth:`~nnaudit.loop.base.Loop.forward`: a user's ``training_step`` may set the mode.

    Raises:
        UserCodeError: the model cannot be called in this way, or raised.
    """
    args, kwargs = batches.clone((fed.args, fed.kwargs))
    with eval_mode(loop.model), torch.no_grad(), user_code("running the model in eval mode"):
        output = loop.model(*args, **kwargs)
    return batches.map_leaves(output, _copied)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def distance(one: Any, other: Any) -> float:
    """Return the largest difference of two outputs, against the size of the first.

    Infinite where they differ in form. Equal NaNs do not differ.
    """
    first, second = list(batches.tensors(one)), list(batches.tensors(other))
    if [(path, t.shape) for path, t in first] != [(path, t.shape) for path, t in second]:
        return float("inf")
    return max((_distance(a, b) for (_, a), (_, b) in zip(first, second, strict=True)), default=0.0)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Return, element by element, whether two tensors agree; NaN agrees with NaN."""
    return (a == b) | (a.isnan() & b.isnan())


def _distance(a: Tensor, b: Tensor) -> float:
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    a, b = a.detach().to(torch.complex128 if a.is_complex() else torch.float64), b.detach()
    b = b.to(a.device, a.dtype)
    same = agreement(a, b)
    if bool(same.all()):
        return 0.0
    gap = torch.where(same, torch.zeros_like(a), a - b).abs()
    if not bool(torch.isfinite(gap).all()):
        return float("inf")
    known = a.abs()[torch.isfinite(a.abs())]
    scale = float(known.square().mean().sqrt()) if known.numel() else 0.0
    return float(gap.max()) / max(scale, 1e-30)


def rounding(output: Any) -> float:
    """Return 64 units of the coarsest rounding among the tensors of ``output``."""
    dtypes = {t.dtype for _, t in batches.tensors(output) if t.is_floating_point()}
    return 64 * max((torch.finfo(dtype).eps for dtype in dtypes), default=2.0**-23)
