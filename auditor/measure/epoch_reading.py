"""What is read of an epoch, in the order in which it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnaudit.context import Audit
from nnaudit.loop.base import Loop
from nnaudit.loop.batch_target import inputs_and_target
from nnaudit.measure.batch_rows import (
    continues,
    first_input,
    is_next_token,
    row_items,
    row_targets,
)
from nnaudit.measure.recurrence import Recurrence, recurrence_of
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs

COMPARED_ROWS = 512

SECONDS = 10.0

_KEPT_ROWS = 256

_JOINTS = 8

_DIGESTED = 4


@dataclass(frozen=True)
class Reading:
    """What was read of an epoch, in the order in which it came.

    Attributes:
        sizes: rows of each batch.
        targets: one value per row, (rows,), or one vector of zeros and ones, (rows, labels); None
            where a row has no single target (segmentation, sequences, reconstruction).
        items: the content of each row as a hash, of the first :data:`COMPARED_ROWS`; of each batch
            where its rows cannot be taken apart.
        inputs: the first input of the first rows, as numbers (rows, ...); None where it has none.
        next_token: the targets are the input tokens, moved by one place or not.
        continues: each batch begins where the one before ended, row by row.
        ended: the epoch ended within what was read.
        repeats: the first batches, three or more, are one and the same, of rows that differ.
        recurrence: how rows come again, where the program makes its batches itself; else None.
    """

    sizes: tuple[int, ...]
    targets: NDArray[Any] | None
    items: tuple[str, ...]
    inputs: NDArray[Any] | None
    next_token: bool
    continues: bool
    ended: bool
    repeats: bool = False
    recurrence: Recurrence | None = None

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return sum(self.sizes)


def read(audit: Audit, rows: int, *, seconds: float = SECONDS) -> Reading:
    """Start an epoch and read until there are ``rows`` rows, or for ``seconds``.

    Two batches are read in any case, so that an epoch of a single batch shows.

    Raises:
        UserCodeError: the loader raised.
        OutOfBudgetError: the time is used up.
    """
    return read_from(audit, audit.loop.batches(), rows, seconds)


def read_from(
    audit: Audit, source: Iterable[Any], rows: int, seconds: float, *, everything: bool = True
) -> Reading:
    """Note down what ``source`` yields; only sizes and targets unless ``everything``."""
    notes = _Notes(audit.loop)
    started = time.perf_counter()
    ended = True
    for batch in source:
        late = time.perf_counter() - started > seconds
        if notes.batches >= 2 and (notes.rows >= rows or late):
            ended = False
            break
        audit.clock.check()
        notes.add(batch, everything)
    return notes.reading(ended)


class _Notes:
    """Gathers a :class:`Reading`, batch by batch."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._sizes: list[int] = []
        self._targets: list[NDArray[Any]] | None = []
        self._items: list[str] = []
        self._inputs: list[NDArray[Any]] = []
        self._next_token = False
        self._previous: ModelInputs | None = None
        self._joints: list[bool] = []
        self._digests: list[str] = []

    @property
    def batches(self) -> int:
        return len(self._sizes)

    @property
    def rows(self) -> int:
        return sum(self._sizes)

    def add(self, batch: Any, everything: bool) -> None:
        fed = inputs_and_target(self._loop, batch)
        targets = row_targets(fed, batches.size(fed.inputs))
        n = batches.size(fed.inputs) if targets is None else len(targets)
        if not self._sizes:
            self._next_token = is_next_token(fed)
        if everything and (self.rows < COMPARED_ROWS or self._loop.makes_batches):
            self._items += row_items(batch, n)
        if everything and self.rows < _KEPT_ROWS and (kept := first_input(fed, n)) is not None:
            self._inputs.append(kept)
        self._sizes.append(n)
        if len(self._digests) < _DIGESTED:
            self._digests.append(batches.digest(batch))
        if self._previous is not None and len(self._joints) < _JOINTS:
            self._joints.append(continues(self._previous, fed))
        self._previous = fed
        if targets is None or (self._targets and self._targets[0].shape[1:] != targets.shape[1:]):
            self._targets = None
        if self._targets is not None and targets is not None:
            self._targets.append(targets)

    def reading(self, ended: bool) -> Reading:
        same_shape = len({each.shape[1:] for each in self._inputs}) == 1
        taken_apart = len(self._items) == self.rows
        return Reading(
            sizes=tuple(self._sizes),
            targets=np.concatenate(self._targets) if self._targets else None,
            items=tuple(self._items[:COMPARED_ROWS]),
            inputs=np.concatenate(self._inputs)[:_KEPT_ROWS] if same_shape else None,
            next_token=self._next_token,
            continues=len(self._joints) > 2 and all(self._joints),
            ended=ended,
            repeats=len(self._digests) > 2 and len(set(self._digests)) == 1 < len(set(self._items)),
            recurrence=recurrence_of(self._items, max(self._sizes))
            if self._loop.makes_batches and taken_apart
            else None,
        )
