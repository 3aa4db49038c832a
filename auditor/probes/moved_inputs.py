"""The same loss with inputs that have changed places: whether it matters which input a row has.

It needs no reading of the loss: the user's own is asked, so that composite and hand-written ones
can be judged, too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.measure.eval_result import mean_loss
from nnaudit.probes.rows import Layout
from nnaudit.targets import batch as batches

ORDERS = 10
BATCHES = 3
LEAST_ROWS = 8
SURE = 8.0
"""Student's t on 9 degrees of freedom: by chance once in 90,000 times."""

_EFFECT = 0.01


@dataclass(frozen=True)
class MovedInputs:
    """Mean losses of the same batches, in eval mode.

    Attributes:
        loss: as they are.
        moved: with the inputs of the rows in other orders, each drawn at random.
    """

    loss: float
    moved: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of those with moved inputs."""
        return statistics.mean(self.moved)

    @property
    def matters(self) -> bool:
        """Whether the loss is lower where each row has its own input.

        If inputs told nothing of targets, the order that they came in would be one like the others.
        """
        spread = statistics.stdev(self.moved) * math.sqrt(1 + 1 / len(self.moved))
        fall = self.mean - self.loss
        return fall > max(SURE * spread, _EFFECT * abs(self.mean))


def moved_inputs(audit: Audit, some: Sequence[Any]) -> MovedInputs | None:
    """Compare the loss of ``some`` batches with that of the same ones with moved inputs.

    None where inputs cannot be told from the rest, or the loss cannot be computed.

    Raises:
        OutOfBudgetError: the time is used up.
    """
    loop, chosen = audit.loop, list(some[:BATCHES])
    generator = torch.Generator().manual_seed(audit.seed)
    moved: list[float] = []
    try:
        for _ in range(ORDERS):
            others = [_with_moved_inputs(loop, batch, generator) for batch in chosen]
            if not others or any(other is None for other in others):
                return None
            moved.append(mean_loss(audit, others))
        loss = mean_loss(audit, chosen)
    except UserCodeError:
        return None
    if not all(math.isfinite(each) for each in (loss, *moved)):
        return None
    return MovedInputs(loss, tuple(moved))


def _with_moved_inputs(loop: Loop, batch: Any, generator: torch.Generator) -> Any:
    """Return ``batch`` with the inputs of its rows in another order; None where that cannot be."""
    layout = Layout.of(loop, batch)
    leaves = dict(batches.leaves(batch))
    rows = batches.size(batch)
    own = [leaves.get(path) for path in set(layout.inputs) - set(layout.targets)]
    given = [each for each in own if isinstance(each, Tensor) and each.shape[:1] == (rows,)]
    rest = [each for each in leaves.values() if not any(each is one for one in given)]
    if rows < LEAST_ROWS or not given or len(given) < len(layout.inputs) or not rest:
        return None
    order = torch.randperm(rows, generator=generator)

    def moved(leaf: Any) -> Any:
        is_input = any(leaf is each for each in given)
        return leaf[order.to(leaf.device)] if is_input else leaf

    return batches.map_leaves(batch, moved)
