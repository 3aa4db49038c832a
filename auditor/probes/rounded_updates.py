"""What becomes of updates to low-precision weights, against the same updates of float32 copies."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nnaudit.context import Audit, Probe
from nnaudit.loop.control import constant_lr
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import consecutive_batches

STEPS = 48
SECONDS = 8.0
LOW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RoundedUpdates:
    """Elements of low-precision weights that an optimizer holds, after some steps.

    Attributes:
        dtype: of the weights: ``bfloat16``.
        steps: how many were taken.
        driven: elements that had a gradient in any of them.
        due: those whose float32 copy, rounded to ``dtype``, is another number than at the start.
        lost: those of ``due`` that are bit for bit what they were.
        rate: the highest learning rate.
    """

    dtype: str
    steps: int
    driven: int
    due: int
    lost: int
    rate: float


class RoundedUpdating(Probe[RoundedUpdates | None]):
    """Takes steps, and the same with copies of the optimizers on float32 copies of the weights."""

    def measure(self, audit: Audit) -> RoundedUpdates | None:
        """Return None where no weights of low precision are trained, or an optimizer has no copy.

        The copies are stepped with the gradients that the program's own optimizers were given.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        shadows = [_Shadow(optimizer) for optimizer in loop.optimizers]
        if not any(shadow.low for shadow in shadows):
            return None
        steps, started = 0, time.perf_counter()
        hooks = [s.optimizer.register_step_pre_hook(s.before) for s in shadows]
        try:
            with constant_lr(loop):
                for batch in consecutive_batches(loop, STEPS):
                    audit.clock.check()
                    loop.step(batch)
                    steps += 1
                    if not all(shadow.follow() for shadow in shadows):
                        return None
                    if time.perf_counter() - started > SECONDS:
                        break
        finally:
            for hook in hooks:
                hook.remove()
        counts = [count for shadow in shadows for count in shadow.counts()]
        dtype = next(p.dtype for shadow in shadows for p, *_ in shadow.low)
        return RoundedUpdates(
            dtype=str(dtype).removeprefix("torch."),
            steps=steps,
            driven=sum(driven for driven, _, _ in counts),
            due=sum(due for _, due, _ in counts),
            lost=sum(lost for _, _, lost in counts),
            rate=max(float(g["lr"]) for s in shadows for g in s.optimizer.param_groups),
        )


class _Shadow:
    """Float32 copies of an optimizer's weights, and a copy of the optimizer that steps them."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._held = parameters_of(optimizer)
        self._copies = [p.detach().float().clone().requires_grad_() for p in self._held]
        self._had = [torch.zeros_like(p, dtype=torch.bool) for p in self._held]
        self._gradients: list[list[Tensor | None]] = []
        self.low = [
            (p, p.detach().clone(), copy, had)
            for p, copy, had in zip(self._held, self._copies, self._had, strict=True)
            if p.dtype in LOW and p.requires_grad and p.layout is torch.strided
        ]
        self._own = self._copy_of(optimizer) if self.low else None

    def _copy_of(self, optimizer: Optimizer) -> Optimizer | None:
        """Return an optimizer of the same kind and settings; None for one that takes others."""
        copies = iter(self._copies)
        groups = [
            {**{k: v for k, v in group.items() if k != "params"},
             "params": [next(copies) for _ in group["params"]]}
            for group in optimizer.param_groups
        ]  # fmt: skip
        known = inspect.signature(type(optimizer)).parameters
        settings = {name: v for name, v in optimizer.defaults.items() if name in known}
        if isinstance(optimizer, torch.optim.LBFGS):
            return None  # evaluates the loss at weights of its own
        try:
            return type(optimizer)(groups, **settings)
        except (TypeError, ValueError, RuntimeError):
            return None

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._gradients.append(
            [None if p.grad is None else p.grad.detach().float().clone() for p in self._held]
        )

    def follow(self) -> bool:
        """Step the copies as the optimizer has stepped since; whether that is possible."""
        pending, self._gradients = self._gradients, []
        if not self.low:
            return True
        if self._own is None:
            return False
        for group, theirs in zip(self._own.param_groups, self.optimizer.param_groups, strict=True):
            group.update({name: v for name, v in theirs.items() if name != "params"})
        for gradients in pending:
            for copy, had, gradient in zip(self._copies, self._had, gradients, strict=True):
                copy.grad = gradient
                if gradient is not None:
                    had.logical_or_(gradient.to_dense() != 0)
            self._own.step()
        return True

    def counts(self) -> list[tuple[int, int, int]]:
        """Return, by weight, how many elements were driven, are due to have moved, have not."""
        found = []
        for parameter, start, copy, had in self.low:
            due = had & (copy.detach().to(start.dtype) != start)
            lost = due & (parameter.detach() == start)
            found.append((int(had.sum()), int(due.sum()), int(lost.sum())))
        return found
