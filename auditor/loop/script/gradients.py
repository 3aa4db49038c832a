"""Gradients of a script's step that is only looked at: none are computed where none are needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer


def reaches_inputs(root: Tensor, models: Iterable[nn.Module]) -> bool:
    """Whether back-propagating ``root`` reaches more than the weights of the ``models``.

    Adversarial training uses gradients of its inputs.
    """
    known = {id(parameter) for model in models for parameter in model.parameters()}
    stack: list[Any] = [root.grad_fn]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            return True
        stack += [parent for parent, _ in node.next_functions]
    return False


def fill_with_zeros(optimizers: Iterable[Optimizer], models: Iterable[nn.Module] = ()) -> None:
    """Give every parameter without a gradient one of zero: a gradient scaler insists on some.

    So does a program that copies the gradients of its ``models`` to master weights.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None and parameter.requires_grad:
                    zero = torch.zeros_like(parameter)
                    sparse = isinstance(optimizer, torch.optim.SparseAdam)
                    parameter.grad = zero.to_sparse() if sparse else zero
    for model in models:
        for parameter in model.parameters():
            if parameter.grad is None and parameter.requires_grad and not is_lazy(parameter):
                parameter.grad = torch.zeros_like(parameter)
