"""Sums that run over the rows of a batch, as over the risk sets of a survival analysis.

They mean something where the rows are in order: sorted by the program before the sum, or by the
loader. Otherwise the loss of a batch changes with the order in which its rows happen to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.autograd import provenance
from nnaudit.loop.base import Loop, Needs
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.result_tap import ResultTap
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack
from nnaudit.targets.batch import NotSliceableError

_SUMS = frozenset(
    {torch.cumsum, Tensor.cumsum, torch.logcumsumexp, Tensor.logcumsumexp}
)  # fmt: skip
_REORDERING = ("Index", "Gather", "Sort", "Flip")
"""Autograd nodes that put rows in another order."""

_FEWEST = 8


@dataclass(frozen=True)
class RunningSum:
    """A sum over rows in no order.

    Attributes:
        function: ``cumsum`` or ``logcumsumexp``.
        losses: of one batch, and of the same rows in another order.
        noise: how far the first is from itself when computed again.
        location: the user's line that sums.
    """

    function: str
    losses: tuple[float, float]
    noise: float
    location: Location | None


class RunningSums(Probe[RunningSum | None]):
    """The first such sum of a step; None where rows are sorted, or there is none."""

    def measure(self, audit: Audit) -> RunningSum | None:
        """Take a step, and compute the loss with rows in another order where they are summed.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        if loop.lacks(Needs.SAME_BATCH):
            return None
        batch = next(iter(consecutive_batches(loop, 1)), None)
        size = batches.size(batch) if batch is not None else 0
        if size < _FEWEST or _is_sorted(batch, size):
            return None
        tap = _Tap(size)
        try:
            with preserved(loop.subjects), tap:
                loop.step(batch)
            if tap.function:
                losses, noise = _exchanged(loop, batch, size)
                return RunningSum(tap.function, losses, noise, tap.location)
        except (UserCodeError, NotSliceableError, TypeError):
            return None
        return None


def _exchanged(loop: Loop, batch: Any, size: int) -> tuple[tuple[float, float], float]:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    given = [loop.forward(each).loss for each in (batch, batch, batches.rows(batch, order))]
    one, again, other = (float("nan") if loss is None else loss for loss in given)
    return (one, other), abs(one - again)


def _is_sorted(batch: Any, size: int) -> bool:
    """Whether the rows come in the order of some number that each has."""
    for _, values in batches.tensors(batch):
        plain = values.layout is torch.strided and not values.is_complex()
        if plain and values.shape in ((size,), (size, 1)):
            steps = values.detach().flatten().double().diff()
            if bool((steps >= 0).all()) or bool((steps <= 0).all()):
                return True
    return False


class _Tap(ResultTap):
    """Notes the first sum that runs over the rows of the network's outputs as they come."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.function = ""
        self.location: Location | None = None
        self._size = size

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        if func not in _SUMS or self.function:
            return
        given = args[0] if args else kwargs.get("input")
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(given, Tensor) or not given.requires_grad or dim not in (0, -given.ndim):
            return
        if given.shape in ((self._size,), (self._size, 1)) and not _reordered(given):
            self.function, self.location = func.__name__, callstack.user_line()


def _reordered(values: Tensor) -> bool:
    lineage = provenance(values).get("lineage", ())
    return any(name.startswith(_REORDERING) for name in lineage)
