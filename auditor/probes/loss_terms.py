"""The terms that a total loss is the sum of, and how hard each pulls on the weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.losses import LossCall
from nnaudit.loop.trace import parameters_of, patched
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError

BATCHES = 3
"""Batches over which a term must weigh as much: on one it can by chance."""

_TERMS = 8
"""Sums of more terms than this, such as one over layers, are not taken apart."""

_NODES = 400
"""How far below a term its loss function is looked for."""

_LEAST = 1e-9
"""A pull below this is rounding."""

_SAME = 1e-4
"""A pull that changes by less of itself does not depend on what was changed."""

_SCALING = (
    "CloneBackward", "DivBackward", "MulBackward", "NegBackward", "SqueezeBackward",
    "ToCopyBackward", "ViewBackward",
)  # fmt: skip
"""Nodes that a total loss goes through as a whole: a weight, an accumulation count."""


@dataclass(frozen=True)
class Term:
    """One term of a total loss on one batch.

    Attributes:
        call: which of the step's calls of a loss function it is made of; -1 for none known.
        pull: the norm of its gradient on the parameters that all terms share.
        growth: by how much that grows when each row of the batch comes twice: 1 for a mean over the
            rows, 2 for a sum; None where it was not measured.
        of_targets: whether that changes when the rows' targets are exchanged; None where it was not
            measured.
    """

    call: int
    pull: float
    growth: float | None = None
    of_targets: bool | None = None


@dataclass(frozen=True)
class Terms:
    """What :class:`LossTerms` found.

    Attributes:
        terms: by batch, the terms in the order of the sum; empty where there is one only.
        calls: the loss functions called in the first step.
        batch: the first batch, as the loader made it.
    """

    terms: tuple[tuple[Term, ...], ...]
    calls: tuple[LossCall, ...]
    batch: Any


class LossTerms(Probe[Terms]):
    """Takes the loss of a few steps apart, all at the same weights."""

    def measure(self, audit: Audit) -> Terms:
        """Take a step on each of :data:`BATCHES` batches, or one where there is one term.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        found: list[tuple[Term, ...]] = []
        calls: tuple[LossCall, ...] = ()
        some = list(consecutive_batches(loop, BATCHES))
        for batch in some:
            audit.clock.check()
            with preserved(loop.subjects), _Scales(loop) as scales:
                seen = loop.step(batch, losses=True).observation
            if seen is None or not scales.found:
                break
            calls = calls or tuple(seen.loss_calls)
            terms = tuple(_named(each, seen.loss_calls) for each in scales.found)
            found.append(terms if found else _tried_out(loop, batch, terms))
        return Terms(tuple(found), calls, some[0])


def _tried_out(loop: Loop, batch: Any, terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """Return ``terms`` with what becomes of them on two other batches made of ``batch``."""
    doubled = _pulls(loop, _doubled, batch, len(terms))
    exchanged = _pulls(loop, _exchanged, batch, len(terms))
    return tuple(
        replace(
            term,
            growth=doubled[i] / term.pull if doubled and term.pull > _LEAST else None,
            of_targets=abs(exchanged[i] - term.pull) > _SAME * term.pull if exchanged else None,
        )
        for i, term in enumerate(terms)
    )


def _pulls(loop: Loop, make: Callable[[Loop, Any], Any], batch: Any, count: int) -> list[float]:
    """Return the pulls of ``count`` terms on what ``make`` makes of ``batch``; else nothing."""
    try:
        other = make(loop, batch)
        with preserved(loop.subjects), _Scales(loop) as scales:
            loop.step(other)
    except (NotSliceableError, UserCodeError, RuntimeError, IndexError):
        return []
    return [pull for _, pull in scales.found] if len(scales.found) == count else []


def _doubled(loop: Loop, batch: Any) -> Any:
    """Return ``batch`` with every row twice."""
    size = batches.size(batch)
    return batches.rows(batch, [*range(size), *range(size)])


def _exchanged(loop: Loop, batch: Any) -> Any:
    """Return ``batch`` with the targets of its rows in reverse order.

    Raises:
        NotSliceableError: it has none.
    """
    targets = [t for _, t in batches.tensors(loop.split_batch(batch).target) if t.ndim]
    if not targets:
        raise NotSliceableError("there are no targets")

    def turned(leaf: Any) -> Any:
        known = isinstance(leaf, Tensor) and any(batches.same_values(leaf, t) for t in targets)
        return leaf.flip(0) if known else leaf

    return batches.map_leaves(batch, turned)


def _named(found: tuple[frozenset[int], float], calls: list[LossCall]) -> Term:
    orders, pull = found
    own = [i for i, call in enumerate(calls) if call.order in orders]
    return Term(own[0] if len(own) == 1 else -1, pull)


class _Scales:
    """Weighs the terms of the first scalar that is back-propagated in a ``with`` block.

    Attributes:
        found: by term, the numbers of the autograd nodes under it, and its pull.
    """

    def __init__(self, loop: Loop) -> None:
        self.found: list[tuple[frozenset[int], float]] = []
        self._parameters = list(
            {
                id(p): p for o in loop.optimizers for p in parameters_of(o) if p.requires_grad
            }.values()
        )
        self._stack = ExitStack()
        self._done = False

    def __enter__(self) -> _Scales:
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
                self._weigh(root)
            real(tensors, *args, **kwargs)

        return backward

    def _weigh(self, root: Tensor) -> None:
        terms = list(_terms(root.grad_fn))
        if not 2 <= len(set(terms)) <= _TERMS:
            return
        try:
            gradients = [self._gradient(root, terms, each) for each in range(len(terms))]
        except RuntimeError:  # a graph that can be walked once
            return
        shared = [
            i for i in range(len(self._parameters)) if all(g[i] is not None for g in gradients)
        ]
        if shared:
            self.found = [
                (frozenset(_below(node)), _norm([gradient[i] for i in shared]))
                for node, gradient in zip(terms, gradients, strict=True)
            ]

    def _gradient(self, root: Tensor, terms: list[Any], only: int) -> list[Tensor | None]:
        """Return the gradient of one term: the others are given zeros to go back with."""
        with ExitStack() as stack:
            for i, node in enumerate(terms):
                if i != only:
                    stack.callback(node.register_prehook(_nothing).remove)
            found = torch.autograd.grad(
                root, self._parameters, retain_graph=True, allow_unused=True
            )
        # Where only zeros arrive, a term has no part.
        return [None if g is None or not bool(g.abs().max() > 0) else g for g in found]


def _nothing(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None else torch.zeros_like(g) for g in gradients)


def _terms(node: Any) -> Iterator[Any]:
    """Yield the nodes that ``node`` is the sum of, in order."""
    while node is not None and (_scales(node) or _reduces_a_stack(node)):
        node = next(iter(_parents(node)), None)
    if node is not None:
        yield from _summands(node)


def _summands(node: Any) -> Iterator[Any]:
    """Yield what is added up; a weighted sum within the sum is one term."""
    parents = _parents(node)
    if node.name().startswith(("AddBackward", "SubBackward", "StackBackward")) and len(parents) > 1:
        for parent in parents:
            yield from _summands(parent)
    else:
        yield node


def _reduces_a_stack(node: Any) -> bool:
    parents = _parents(node)
    reduces = node.name().startswith(("MeanBackward", "SumBackward"))
    return reduces and len(parents) == 1 and parents[0].name().startswith("StackBackward")


def _scales(node: Any) -> bool:
    """Whether ``node`` only multiplies what one other node made."""
    return len(_parents(node)) == 1 and bool(node.name().startswith(_SCALING))


def _parents(node: Any) -> list[Any]:
    # A leaf that is added (a learned weight of a loss) is a term without a graph of its own.
    return [p for p, _ in node.next_functions if p is not None and "AccumulateGrad" not in p.name()]


def _below(node: Any) -> Iterator[int]:
    """Yield the numbers of the nodes under ``node``, nearest first."""
    todo, seen = deque([node]), {node}
    while todo and len(seen) < _NODES:
        node = todo.popleft()
        yield node._sequence_nr()
        for parent in _parents(node):
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)


def _norm(gradients: list[Tensor | None]) -> float:
    squares = [float(g.abs().float().square().sum()) for g in gradients if g is not None]
    return math.sqrt(sum(squares))
