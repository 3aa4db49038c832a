"""Whether labels reach the network: inputs beside targets, and training on permuted labels."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.control import constant_lr
from nnaudit.loop.losses import LossCall
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.training.fitting import without_input
from nnaudit.training.loss_bounds import best_constant, input_tensors
from nnaudit.training.loss_reader import LossReader
from nnaudit.training.stopwatch import Stopwatch

ROWS = 512
"""Rows of which the inputs are held beside the targets."""

_STEPS, _FEWEST, _SECONDS = 80, 20, 5.0
_BELOW = 0.1


def training_columns(audit: Audit) -> tuple[list[Tensor], Tensor]:
    """Return the model's inputs over the first rows, each (N, D), and the targets (N,).

    Both are empty where rows have several targets or inputs of different widths.
    """
    nothing: tuple[list[Tensor], Tensor] = ([], torch.empty(0))
    feds: list[ModelInputs] = []
    rows = 0
    with preserved(audit.loop.subjects):
        for batch in consecutive_batches(audit.loop, ROWS):
            try:
                feds.append(audit.loop.split_batch(batch))
            except UserCodeError:
                return nothing
            rows += batches.size(batch)
            if rows >= ROWS:
                break
    targets = [fed.target for fed in feds]
    if not all(isinstance(t, Tensor) and t.ndim > 0 for t in targets):
        return nothing
    inputs = [input_tensors(fed, len(t)) for fed, t in zip(feds, targets, strict=True)]
    try:
        target = torch.cat([t.reshape(len(t), -1) for t in targets])
        joined = [
            torch.cat([t.reshape(len(t), -1) for t in column])
            for column in zip(*inputs, strict=True)
        ]
    except (RuntimeError, ValueError):  # of another width in each batch
        return nothing
    if target.shape[1] != 1:
        return nothing
    return joined, target[:, 0]


@dataclass(frozen=True)
class Permuted:
    """A training on labels that are permuted within every batch, anew each time."""

    losses: tuple[float, ...]
    constant: float

    @property
    def _last(self) -> tuple[float, ...]:
        return self.losses[len(self.losses) // 2 :]

    @property
    def usable(self) -> bool:
        """Whether there were enough steps, and all losses are numbers."""
        finite = all(math.isfinite(loss) for loss in (*self.losses, self.constant))
        return finite and len(self.losses) >= _FEWEST

    @property
    def mean(self) -> float:
        """The mean loss of the last half."""
        return statistics.mean(self._last)

    @property
    def leaks(self) -> bool:
        """Whether it is below the best constant's beyond chance, and by a tenth."""
        if not self.usable:
            return False
        gain = self.constant - self.mean
        return gain > max(
            4 * statistics.stdev(self._last) / math.sqrt(len(self._last)),
            _BELOW * abs(self.constant),
        )


def permuted_run(audit: Audit, path: str) -> Permuted:
    """Train on batches of which the tensor at ``path`` is permuted; the state is put back.

    Raises:
        OutOfBudgetError: the time is used up.
    """
    loop, watch = audit.loop, Stopwatch()
    generator = torch.Generator().manual_seed(audit.seed)
    losses: list[float] = []
    calls: list[LossCall] = []
    reader = LossReader(loop)
    with preserved(loop.subjects), constant_lr(loop):
        for batch in consecutive_batches(loop, _STEPS):
            audit.clock.check()
            mixed = _permuted_at(batches.clone(batch), path, generator)
            try:
                step = loop.step(mixed, losses=not len(losses) % 4)
            except UserCodeError:
                break
            losses.append(step.loss)
            seen = step.observation
            main = reader.call(mixed, seen) if seen is not None else None
            calls += [without_input(main)] if main is not None else []
            slow = len(losses) == 3 and _FEWEST * watch.seconds > 3 * _SECONDS
            if slow or watch.seconds > _SECONDS:  # there will be no time for enough of them
                break
    constant = best_constant(calls) if calls else None
    return Permuted(tuple(losses), math.nan if constant is None else constant)


def _permuted_at(batch: Any, path: str, generator: torch.Generator) -> Any:
    """Return ``batch`` with the rows of its tensor at ``path`` in a random order."""
    paths = iter([p for p, _ in batches.leaves(batch)])

    def permute(leaf: Any) -> Any:
        if next(paths) != path or not isinstance(leaf, Tensor):
            return leaf
        return leaf[torch.randperm(len(leaf), generator=generator).to(leaf.device)]

    return batches.map_leaves(batch, permute)
