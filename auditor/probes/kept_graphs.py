"""Whether autograd graphs stay alive after their step: how many nodes are reachable, by step."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.measure.living import living
from nnaudit.state.collector import older_objects_hidden
from nnaudit.targets import batch as batches

SETTLING = 3
"""Steps before the first count: a loop holds on to its last loss and output, and to first ones."""

COUNTS = 8
"""Counts after as many steps. Growth in every one of them is no accident on one and the same batch,
on which every step builds the same graph. The first that shows none ends the counting."""

MOST_NODES = 200_000


@dataclass(frozen=True)
class Kept:
    """What :class:`KeptGraphs` saw after each of the counted steps.

    Attributes:
        nodes: autograd nodes that some live tensor leads to.
        tensors: live tensors that have a history.
        kinds: those of which there are more at the end than at the beginning, by the name of the
            node that made them and their shape, with how many more.
    """

    nodes: tuple[int, ...]
    tensors: tuple[int, ...]
    kinds: tuple[tuple[str, int], ...]


class KeptGraphs(Probe[Kept]):
    """The same batch, step after step; between the steps what is alive is counted."""

    def measure(self, audit: Audit) -> Kept:
        """Take the steps.

        Raises:
            UserCodeError: the user's code raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        batch = batches.clone(next(iter(loop.batches())))
        for _ in range(SETTLING):
            loop.step(batch)
        nodes: list[int] = []
        tensors: list[int] = []
        kinds: list[Counter[str]] = []
        with _older_tensors() as older:
            for _ in range(COUNTS):
                audit.clock.check()
                loop.step(batch)
                alive = _with_history(older)
                nodes.append(_reachable(alive))
                tensors.append(len(alive))
                kinds.append(Counter(_kind(tensor) for tensor in alive))
                del alive
                if nodes[-1] <= max(nodes[-2:-1], default=-1):
                    break
        more = kinds[-1] - kinds[0]
        return Kept(tuple(nodes), tuple(tensors), tuple(more.most_common(3)))


@contextmanager
def _older_tensors() -> Iterator[list[weakref.ref[Tensor]]]:
    """Yield the tensors there are, which :func:`living` does not find in the block."""
    tensors = [weakref.ref(tensor) for tensor in living(Tensor)]
    with older_objects_hidden() as hidden:
        yield tensors if hidden else []


def _with_history(older: list[weakref.ref[Tensor]]) -> list[Tensor]:
    gc.collect()
    still = [tensor for reference in older if (tensor := reference()) is not None]
    return [tensor for tensor in (*still, *living(Tensor)) if tensor.grad_fn is not None]


def _kind(tensor: Tensor) -> str:
    return f"{type(tensor.grad_fn).__name__} {tuple(tensor.shape)}"


def _reachable(tensors: Iterable[Tensor]) -> int:
    """Count the nodes that the graphs of ``tensors`` have, each once."""
    pending: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen = set(pending)
    while pending and len(seen) < MOST_NODES:
        for node, _ in pending.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                pending.append(node)
    return len(seen)
