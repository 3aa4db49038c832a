"""The terms that a total loss is the sum of, and the gradient of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.control import output_replaced
from nnaudit.loop.trace import patched
from nnaudit.state.snapshot import preserved

MOST_TERMS = 8
"""Sums of more terms than this, such as one over layers, are not taken apart."""

_SCALING = (
    "CloneBackward", "DivBackward", "MulBackward", "NegBackward", "SqueezeBackward",
    "ToCopyBackward", "ViewBackward",
)  # fmt: skip
"""Nodes that a total loss goes through as a whole: a weight, an accumulation count."""


def terms_of(root: Tensor) -> list[Any]:
    """Return the autograd nodes that ``root`` is the sum of, in order; empty for one term only."""
    terms = list(_terms(root.grad_fn))
    return terms if 2 <= len(set(terms)) <= MOST_TERMS else []


def gradients_by_term(
    root: Tensor, terms: Sequence[Any], inputs: Sequence[Tensor]
) -> list[list[Tensor | None]]:
    """Return the gradient of each of ``terms`` on ``inputs``; None where a term has no part.

    Raises:
        RuntimeError: the graph can be walked only once.
    """
    return [_gradient(root, terms, only, inputs) for only in range(len(terms))]


def _gradient(
    root: Tensor, terms: Sequence[Any], only: int, inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradient of one term: the others are given zeros to go back with."""
    with ExitStack() as stack:
        for i, node in enumerate(terms):
            if i != only:
                stack.callback(node.register_prehook(_nothing).remove)
        found = torch.autograd.grad(root, inputs, retain_graph=True, allow_unused=True)
    # Where only zeros arrive, a term has no part.
    return [None if g is None or not bool(g.abs().max() > 0) else g for g in found]


def _nothing(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None else torch.zeros_like(g) for g in gradients)


class FirstBackward:
    """Shows ``look`` the first scalar that is back-propagated in a ``with`` block, before it is."""

    def __init__(self, look: Callable[[Tensor], None]) -> None:
        self._look = look
        self._stack = ExitStack()
        self._done = False

    def __enter__(self) -> FirstBackward:
        self._stack.enter_context(patched(torch.autograd, "backward", self._tapped))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _tapped(self, real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            root = tensors if isinstance(tensors, Tensor) else next(iter(tensors), None)
            if isinstance(root, Tensor) and root.numel() == 1 and not self._done:
                self._done = True
                self._look(root)
            real(tensors, *args, **kwargs)

        return backward


# --- on the output --------------------------------------------------------------------------------


def output_gradients(loop: Loop, batch: Any, output: Tensor) -> tuple[Tensor, ...] | None:
    """Return the gradient of each term on the model's output, were this ``output``.

    One tensor of its shape for each term, or for the total loss where that has one term; zeros of a
    term that the output has no part in. None where the step calls the model more than once, fails
    with such an output, or back-propagates no number that comes of it. The state is put back.
    """
    tap = _OutputTap(output)
    try:
        with preserved(loop.subjects), output_replaced(loop, tap.replace), FirstBackward(tap.look):
            loop.step(batch)
    except (UserCodeError, RuntimeError):
        return None
    return tap.found if tap.calls == 1 else None


class _OutputTap:
    """Puts ``output`` in place of the model's, and differentiates what becomes of it."""

    def __init__(self, output: Tensor) -> None:
        self.calls = 0
        self.found: tuple[Tensor, ...] | None = None
        self._output = output.detach()
        self._leaf: Tensor | None = None

    def replace(self, real: Tensor) -> Tensor:
        if real.shape != self._output.shape or not real.requires_grad:
            return real
        self.calls += 1
        self._leaf = self._output.to(real.dtype).clone().requires_grad_()
        return self._leaf + 0.0 * real  # the parameters keep their gradients, of zero

    def look(self, root: Tensor) -> None:
        if self._leaf is None:
            return
        terms = terms_of(root)
        if terms:
            found = gradients_by_term(root, terms, [self._leaf])
        else:
            found = [
                list(torch.autograd.grad(root, [self._leaf], retain_graph=True, allow_unused=True))
            ]
        self.found = tuple(
            torch.zeros_like(self._output) if g is None else g.detach() for (g,) in found
        )


# --- the sum --------------------------------------------------------------------------------------


def _terms(node: Any) -> Iterator[Any]:
    """Yield the nodes that ``node`` is the sum of, in order."""
    while node is not None and (_scales(node) or _reduces_a_stack(node)):
        node = next(iter(parents_of(node)), None)
    if node is not None:
        yield from _summands(node)


def sums_of(root: Tensor) -> Iterator[Any]:
    """Yield the autograd nodes between ``root`` and its terms that add these up."""
    todo = [root.grad_fn]
    while todo:
        node = todo.pop()
        if node is None:
            continue
        if _scales(node) and not _adds(node):
            todo += parents_of(node)
        elif _adds(node):
            yield node
            todo += parents_of(node)


def _adds(node: Any) -> bool:
    return bool(node.name().startswith(("AddBackward", "SubBackward")))


def _summands(node: Any) -> Iterator[Any]:
    """Yield what is added up; a weighted sum within the sum is one term."""
    parents = parents_of(node)
    if node.name().startswith(("AddBackward", "SubBackward", "StackBackward")) and len(parents) > 1:
        for parent in parents:
            yield from _summands(parent)
    else:
        yield node


def _reduces_a_stack(node: Any) -> bool:
    parents = parents_of(node)
    reduces = node.name().startswith(("MeanBackward", "SumBackward"))
    return reduces and len(parents) == 1 and parents[0].name().startswith("StackBackward")


def _scales(node: Any) -> bool:
    """Whether ``node`` only multiplies what one other node made."""
    return len(parents_of(node)) == 1 and bool(node.name().startswith(_SCALING))


def parents_of(node: Any) -> list[Any]:
    """Return the nodes that ``node`` was made of, leaves left out.

    A leaf that is added (a learned weight of a loss) is a term without a graph of its own.
    """
    return [p for p, _ in node.next_functions if p is not None and "AccumulateGrad" not in p.name()]
