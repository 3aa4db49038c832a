"""Pairs of scores that a ranking loss compares: of what was chosen, and of what was drawn beside.

The model is called twice in a step, with one query (a user) and two items. The item of one call is
the data set's: it is the same whenever its row is read. That of the other is drawn at random: in
the data set, so that it differs between two readings, or in the step, so that it is in no field of
the batch. So the first is the positive one, whatever it is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.autograd import graph_of
from nnaudit.loop.base import seed_everything
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.random_access import RandomAccess
from nnaudit.probes.rows import columns_of
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches

_ROWS = 32
"""Rows that are read twice."""

_DISTANCES = ("Norm", "Cdist", "EuclideanDist", "Pow", "Abs", "Sqrt", "Neg", "Rsqrt")
"""Parts of the names of operations that make of two vectors what is the lower the nearer."""


@dataclass(frozen=True)
class RankedPairs:
    """How the loss pulls at the scores of both calls.

    Attributes:
        rows: the rows of the batch.
        chosen: the share of the scores of chosen items whose increase raises the loss, of those
            that it depends on.
        drawn: the same of the items that were drawn.
    """

    rows: int
    chosen: float
    drawn: float


class RankedScores(Probe[RankedPairs | None]):
    """Watches one step; None where the model is not called with such a pair, or gives distances."""

    steps = 1

    def measure(self, audit: Audit) -> RankedPairs | None:
        """Take the step, and read some rows of the data set twice.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        batch = next(iter(consecutive_batches(loop, 1)), None)
        if batch is None or isinstance(loop.model, torch.jit.ScriptModule):
            return None
        loop.prepare(batch)
        calls: list[_Call] = []
        hook = loop.model.register_forward_hook(_noting(calls), with_kwargs=True)
        try:
            loop.step(batch)
        except UserCodeError:
            return None
        finally:
            hook.remove()
        pair = _pair(calls)
        if pair is None:
            return None
        changing = _changing(RandomAccess.of(loop.train_loader), audit)
        sides = {_is_drawn(batch, item, changing): call for call, item in pair}
        if len(sides) < 2:
            return None
        chosen, drawn = _rising(sides[False].gradients), _rising(sides[True].gradients)
        if chosen is None or drawn is None:
            return None
        return RankedPairs(batches.size(batch), chosen, drawn)


@dataclass(eq=False)
class _Call:
    """A call of the model that gradients flow through: its tensors, and those of its output."""

    given: list[Tensor]
    gradients: list[Tensor] = field(default_factory=list)


def _noting(calls: list[_Call]) -> Any:
    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (isinstance(output, Tensor) and output.requires_grad and output.grad_fn is not None):
            return
        given = [t.detach().clone() for _, t in batches.tensors((args, kwargs))]
        call = _Call(given)
        calls.append(call)
        graph = graph_of(output)
        names = graph.operations if graph is not None else {_DISTANCES[0]}
        if not any(part in name for name in names for part in _DISTANCES):
            keep = call.gradients.append
            hook: Any = output.register_hook
            hook(lambda gradient: keep(gradient.detach().clone()))

    return note


def _pair(calls: list[_Call]) -> list[tuple[_Call, Tensor]] | None:
    """Return both calls, each with the one whole-number argument in which they differ."""
    if len(calls) != 2 or len(calls[0].given) != len(calls[1].given):
        return None
    differing = [
        (a, b)
        for a, b in zip(calls[0].given, calls[1].given, strict=True)
        if a.shape != b.shape or not torch.equal(a, b)
    ]
    if len(differing) != 1 or len(calls[0].given) < 2:
        return None
    if any(t.is_floating_point() or t.is_complex() for t in differing[0]):
        return None
    return list(zip(calls, differing[0], strict=True))


def _changing(access: RandomAccess | None, audit: Audit) -> set[str]:
    """Return the fields that differ when the same rows are read again, under other seeds."""
    if access is None or access.loader.batch_sampler is None:
        return set()
    try:
        with preserved(audit.loop.subjects):
            found, rows = [], access.spread(_ROWS)
            for seed in (1, 2):
                seed_everything(seed)
                found.append(columns_of(access.fetch(rows)))
    except UserCodeError:
        return set()
    one, other = found
    return {
        path
        for path, values in one.items()
        if path not in other or not torch.equal(values, other[path])
    }


def _is_drawn(batch: Any, item: Tensor, changing: set[str]) -> bool:
    """Whether ``item`` was drawn at random: in the data set, or in the step."""
    paths = batches.paths_of(batch, item)
    return not paths or all(path in changing for path in paths)


def _rising(gradients: list[Tensor]) -> float | None:
    """Return the share of positive numbers among those that are not 0; None for few of them."""
    if len(gradients) != 1:
        return None
    felt = gradients[0][gradients[0] != 0]
    return float((felt > 0).float().mean()) if felt.numel() >= 8 else None
