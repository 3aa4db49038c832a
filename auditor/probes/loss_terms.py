"""The terms that a total loss is the sum of, and how hard each pulls on the weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.losses import LossCall
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.term_gradients import (
    FirstBackward,
    gradients_by_term,
    parents_of,
    terms_of,
)
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError

BATCHES = 3
"""Batches over which a term must weigh as much: on one it can by chance."""

_NODES = 400
"""How far below a term its loss function is looked for."""

_LEAST = 1e-9
"""A pull below this is rounding."""

_SAME = 1e-4
"""A pull that changes by less of itself does not depend on what was changed."""


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

    def call(self, term: int) -> LossCall | None:
        """Return the call of a loss function that ``term`` is made of; None for none known."""
        index = self.terms[0][term].call
        return self.calls[index] if 0 <= index < len(self.calls) else None

    def name(self, term: int) -> str:
        """Return what a report calls ``term``: its place in the sum, and what it is made of."""
        call = self.call(term)
        made_of = call.kind.replace("_", " ") if call is not None else "hand-written"
        return f"term {term + 1} ({made_of})"


class LossTerms(Probe[Terms]):
    """Takes the loss of a few steps apart, all at the same weights."""

    steps = 8

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
        self._tap = FirstBackward(self._weigh)

    def __enter__(self) -> _Scales:
        self._tap.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tap.__exit__(*error)

    def _weigh(self, root: Tensor) -> None:
        terms = terms_of(root)
        if not terms:
            return
        try:
            gradients = gradients_by_term(root, terms, self._parameters)
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


def _below(node: Any) -> Iterator[int]:
    """Yield the numbers of the nodes under ``node``, nearest first."""
    todo, seen = deque([node]), {node}
    while todo and len(seen) < _NODES:
        node = todo.popleft()
        yield node._sequence_nr()
        for parent in parents_of(node):
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)


def _norm(gradients: list[Tensor | None]) -> float:
    squares = [float(g.abs().float().square().sum()) for g in gradients if g is not None]
    return math.sqrt(sum(squares))
