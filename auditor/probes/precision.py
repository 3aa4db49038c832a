"""In which precision a step computes, and what low precision loses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop, seed_everything
from nnaudit.loop.control import without_dropout
from nnaudit.loop.trace import louder_losses, parameters_of, patched
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.targets import batch as batches
from nnaudit.training.fitting import updates_by

LOW = (torch.float16, torch.bfloat16)
_CASTABLE = (
    nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase,
    nn.MultiheadAttention,
)  # fmt: skip


@dataclass
class Precision:
    """What :class:`PrecisionUse` saw in one step.

    Attributes:
        autocasts: dtypes of the autocast regions that were entered while enabled.
        layers: of the layers that autocast speeds up and gradients flow through, the dtype of
            each one's output, by name.
        half: modules whose float16 outputs gradients flow through.
        half_parameters: how many trainable parameters are float16.
    """

    autocasts: set[torch.dtype] = field(default_factory=set)
    layers: dict[str, torch.dtype] = field(default_factory=dict)
    half: list[str] = field(default_factory=list)
    half_parameters: int = 0


class PrecisionUse(Probe[Precision]):
    """The precision of each layer's output in one training step."""

    def measure(self, audit: Audit) -> Precision:
        """Take one step.

        Raises:
            UserCodeError: the step raised.
        """
        loop, seen = audit.loop, Precision()
        seen.half_parameters = sum(
            p.requires_grad and p.dtype is torch.float16
            for optimizer in loop.optimizers
            for p in parameters_of(optimizer)
        )
        with ExitStack() as stack:
            stack.enter_context(patched(torch.autocast, "__enter__", _entering(loop, seen)))
            for model in loop.models:
                for name, module in model.named_modules():
                    if isinstance(module, torch.jit.ScriptModule):
                        continue
                    hook = module.register_forward_hook(_looking(name, seen))
                    stack.callback(hook.remove)
            loop.step(next(iter(consecutive_batches(loop, 1))))
        return seen


def _entering(loop: Loop, seen: Precision) -> Callable[[Any], Any]:
    def make(real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def enter(region: Any) -> Any:
            result = real(region)
            kind = loop.device.type
            if torch.is_autocast_enabled(kind) and torch.is_grad_enabled():
                seen.autocasts.add(torch.get_autocast_dtype(kind))
            return result

        return enter

    return make


def _looking(name: str, seen: Precision) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        tensor = next((t for _, t in batches.tensors(output) if t.is_floating_point()), None)
        if tensor is None or not tensor.requires_grad:
            return
        if isinstance(module, _CASTABLE):
            seen.layers[name] = tensor.dtype
        if tensor.dtype is torch.float16 and name not in seen.half:
            seen.half.append(name)

    return hook


def underflow(audit: Audit, batch: Any) -> float | None:
    """Return the share of gradient elements that are zero only because they are too small.

    The step is taken twice at the same weights with the same random numbers, the second time with
    the loss multiplied by 2^10 (by less where that overflows): what is zero the first time and
    not the second was lost. None where no such factor leaves the gradients finite.

    Raises:
        UserCodeError: a step raised.
    """
    plain = _gradients(audit, batch, 1.0)
    for exponent in (10, 7, 4):
        loud = _gradients(audit, batch, 2.0**exponent)
        if loud and all(bool(torch.isfinite(g).all()) for g in loud):
            pairs = list(zip(plain, loud, strict=False))
            lost = sum(int(((a == 0) & (b != 0)).sum()) for a, b in pairs)
            there = sum(int((b != 0).sum()) for _, b in pairs)
            return lost / there if there else 0.0
    return None


def _gradients(audit: Audit, batch: Any, factor: float) -> list[Tensor]:
    loop, found = audit.loop, []

    def read(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in parameters_of(optimizer):
            gradient = parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                found.append(gradient.detach().clone())

    with ExitStack() as stack:
        for model in loop.models:
            stack.enter_context(without_dropout(model))
        for optimizer in loop.optimizers:
            stack.callback(optimizer.register_step_pre_hook(read).remove)
        stack.enter_context(updates_by(loop, None))
        stack.enter_context(louder_losses(factor))
        seed_everything(audit.seed)
        loop.step(batch)
    return found
