"""Whether weights change over some steps, and what would explain that they do not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit
from nnaudit.loop.base import Loop
from nnaudit.loop.control import constant_lr
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.training.evaluation import agreement
from nnaudit.training.optimizers import is_adaptive

_ULPS = 10.0


@dataclass
class Movement:
    """What became of one parameter of the model in some steps.

    Attributes:
        owned: an optimizer holds it.
        gradient: the largest norm of its gradient at a step.
        lr: the highest learning rate it was given.
        stepped: an optimizer's step changed it.
        moved: it is another than at the beginning.
        visible: an update of that gradient and rate would be more than rounding.
        dtype: its precision.
    """

    parameter: str
    owned: bool
    dtype: torch.dtype
    gradient: float = 0.0
    lr: float = 0.0
    stepped: bool = False
    moved: bool = False
    visible: bool = False


def movements(audit: Audit, steps: int) -> list[Movement]:
    """Take ``steps`` steps and return what became of every trainable parameter of the model.

    They are taken at the rate that the author plans for: a warm-up may begin at zero.

    Raises:
        UserCodeError: a step raised.
        OutOfBudgetError: the time is used up.
    """
    loop = audit.loop
    watched = {name: p for name, p in loop.model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in watched.items()}
    owned = {id(p) for optimizer in loop.optimizers for p in parameters_of(optimizer)}
    found = {n: Movement(n, id(p) in owned, p.dtype) for n, p in watched.items()}
    with ExitStack() as stack:
        stack.enter_context(constant_lr(loop))
        watch = _Watch(watched, found)
        for optimizer in loop.optimizers:
            stack.callback(optimizer.register_step_pre_hook(watch.before).remove)
            stack.callback(optimizer.register_step_post_hook(watch.after).remove)
        for batch in consecutive_batches(loop, steps):
            audit.clock.check()
            loop.step(batch)
            watch.orphans(loop)
    for name, parameter in watched.items():
        found[name].moved = not same(parameter, start[name])
    return list(found.values())


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN being equal to NaN."""
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and bool(agreement(a, b).all())


class _Watch:
    def __init__(self, watched: Mapping[str, Tensor], found: dict[str, Movement]) -> None:
        self._names = {id(p): name for name, p in watched.items()}
        self._watched = watched
        self._found = found
        self._before: dict[str, Tensor] = {}

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is None:
                    continue
                self._look(name, parameter)
                self._before[name] = parameter.detach().clone()
                seen, rate = self._found[name], float(group.get("lr", 1.0))
                seen.lr = max(seen.lr, rate)
                seen.visible |= _is_visible(optimizer, parameter, rate)

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in parameters_of(optimizer):
            name = self._names.get(id(parameter))
            if name in self._before:
                seen = self._found[name]
                seen.stepped |= not same(parameter, self._before.pop(name))
                self._look(name, parameter)  # a closure makes its gradients within the step

    def orphans(self, loop: Loop) -> None:
        """Look at the gradients that no optimizer used."""
        for name, parameter in self._watched.items():
            if not self._found[name].owned:
                self._look(name, parameter)

    def _look(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            values = parameter.grad.detach()
            values = values.to_dense() if values.layout is not torch.strided else values
            size = float(torch.linalg.vector_norm(values.abs().float()))
            self._found[name].gradient = max(self._found[name].gradient, size)


def _is_visible(optimizer: torch.optim.Optimizer, parameter: Tensor, rate: float) -> bool:
    """Whether some element would change by more than its rounding.

    By plain gradient descent the update is rate x gradient; adaptive ones make it about the rate.
    """
    gradient = parameter.grad
    if gradient is None or rate == 0.0 or not parameter.numel():
        return False
    values = gradient.detach()
    values = values.to_dense() if values.layout is not torch.strided else values
    update = rate * values.abs().float()
    if is_adaptive(optimizer):
        update = torch.where(values.abs().float() > 1e-6, rate, update)
    rounding = torch.finfo(parameter.dtype).eps * parameter.detach().abs().float()
    return bool((update > _ULPS * rounding).any())
