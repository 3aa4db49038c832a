"""Turning the knobs of a run for the time of a measurement: learning rate, dropout, output.

They work on any loop, for they act on the optimizers and modules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnaudit.loop.base import Loop
from nnaudit.loop.planned_rate import planned_lr
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import DROPOUT_FUNCTIONS, dropout_rates
from nnaudit.targets.model_inputs import main_tensor


@dataclass
class Rate:
    """What the author's learning rate is multiplied by from the next step on."""

    factor: float


@contextmanager
def constant_lr(loop: Loop, factor: float = 1.0) -> Iterator[Rate]:
    """Hold the learning rate at ``factor`` times the author's own for the time of a ``with``.

    The author's rate is the highest that the plan is known to reach. A warm-up that starts at
    zero, or a schedule of an epoch-long run, means nothing in a run of 100 steps. What is yielded
    changes the factor on the way.
    """
    rate = Rate(factor)
    planned = {
        id(group): planned_lr(loop, group)
        for optimizer in loop.optimizers
        for group in optimizer.param_groups
    }

    def hold(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            if id(group) in planned:
                _set_lr(group, rate.factor * planned[id(group)])

    with ExitStack() as stack:
        for optimizer in loop.optimizers:
            stack.callback(optimizer.register_step_pre_hook(hold).remove)
        yield rate


def is_scheduled(loop: Loop) -> bool:
    """Whether a scheduler moves the learning rate, or has left its marks in a group.

    The rate at the start then says nothing of the rate to come.
    """
    groups = [group for optimizer in loop.optimizers for group in optimizer.param_groups]
    return bool(loop.schedulers) or any("initial_lr" in g or "max_lr" in g for g in groups)


def _set_lr(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    elif group["lr"] is not None:
        group["lr"] = rate


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch every dropout off without leaving train mode, for the time of a ``with``.

    Eval mode would also freeze batch normalisation, and so train another network. Modules are
    switched off by their rate, calls of ``F.dropout`` and of fused attention by interception.
    """
    with ExitStack() as stack:
        for module in model.modules():
            for name in dropout_rates(module):
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, 0.0)
        if not _intercepting():  # of several networks, one is enough: it acts on every call
            stack.enter_context(_NoDropout())
        yield


def _intercepting() -> bool:
    """Whether the calling thread's calls of dropout are intercepted already."""
    overrides: Any = torch.overrides
    modes = overrides._get_current_function_mode_stack()
    return any(isinstance(mode, _NoDropout) for mode in modes)


class _NoDropout(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUT_FUNCTIONS:
            return kwargs["input"] if "input" in kwargs else args[0]
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)


@contextmanager
def output_replaced(
    loop: Loop,
    change: Callable[[Tensor], Tensor],
    choose: Callable[[Any], Tensor | None] = main_tensor,
) -> Iterator[None]:
    """Put ``change(output)`` in place of the main tensor of whatever the model returns.

    ``choose`` may name another of its tensors.

    Where that has another shape the call is another one, as of an agent that acts between its
    steps, and keeps what it returned: a script might remember it for later.
    """

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        main = choose(output)
        if main is None:
            return output
        replacement = change(main)
        if replacement.shape != main.shape:
            return output
        return batches.map_leaves(output, lambda leaf: replacement if leaf is main else leaf)

    handle = loop.model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
