"""What the training data hold: the values of every field of every batch, read once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.random_access import RandomAccess
from nnaudit.targets import batch as batches

ROWS = 2048
SECONDS = 10.0
MORE_ROWS = 256
MORE_SECONDS = 3.0
MOST_BATCHES = 512
MOST_BYTES = 2 * 2**30
"""A data set that lies in memory is looked through as a whole up to this size."""

_MOST_DISTINCT = 100_000
_ROWS_LISTED = 20


@dataclass
class Field:
    """The values of one field (``[1]``, ``['labels']``) of the batches that were read.

    Attributes:
        rows: how many rows were looked at.
        missing, infinite: elements that are NaN, and that are +inf or -inf.
        positive_infinite: those of ``infinite`` that are +inf.
        bad_rows: the first rows that hold such elements, counted from the first row read.
        low, high: the smallest and largest finite value; of an empty field inf and -inf.
        counts: how often each value occurs; None unless the field holds whole numbers of few kinds.
    """

    path: str
    dtype: torch.dtype
    rows: int = 0
    missing: int = 0
    infinite: int = 0
    positive_infinite: int = 0
    bad_rows: list[int] = field(default_factory=list)
    low: float = float("inf")
    high: float = float("-inf")
    counts: dict[int, int] | None = None

    @property
    def bad(self) -> int:
        """How many elements are not finite."""
        return self.missing + self.infinite

    def add(self, values: Tensor) -> None:
        """Look through ``values`` (rows, ...)."""
        first, self.rows = self.rows, self.rows + (values.shape[0] if values.ndim else 1)
        if values.numel() == 0:
            return
        if values.is_floating_point() or values.is_complex():
            self._add_floats(values, first)
        else:
            self._add_whole(values)

    def _add_floats(self, values: Tensor, first: int) -> None:
        real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
        finite = torch.isfinite(real)
        if bool(finite.all()):
            kept = real
        else:
            missing = torch.isnan(real)
            self.missing += int(missing.sum())
            self.infinite += int((~finite & ~missing).sum())
            self.positive_infinite += int((real == float("inf")).sum())
            rows = (~finite).reshape(real.shape[0] if real.ndim else 1, -1).any(1).nonzero()
            more = [first + i for i in rows.flatten().tolist()]
            self.bad_rows += more[: _ROWS_LISTED - len(self.bad_rows)]
            kept = real[finite]
        if kept.numel():
            self.low = min(self.low, float(kept.min()))
            self.high = max(self.high, float(kept.max()))

    def _add_whole(self, values: Tensor) -> None:
        self.low, self.high = (
            min(self.low, float(values.min())),
            max(self.high, float(values.max())),
        )
        if self.counts is None:
            return
        kinds, counts = torch.unique(values.to(torch.int64), return_counts=True)
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            self.counts[kind] = self.counts.get(kind, 0) + count
        if len(self.counts) > _MOST_DISTINCT:
            self.counts = None


@dataclass(frozen=True)
class Contents:
    """What :class:`TrainingData` read.

    Attributes:
        fields: by path in a batch, in the order of the batch.
        rows: rows read from the loader.
        bad_batch: the first batch with an element that is not finite; None when there is none.
        first_batch: the first batch of all.
        whole: the data set lies in memory and every row of it was looked at.
        ended: what was read is all of an epoch.
    """

    fields: dict[str, Field]
    rows: int
    first_batch: Any
    bad_batch: Any
    whole: bool
    ended: bool

    @property
    def bad_fields(self) -> tuple[Field, ...]:
        """The fields with elements that are not finite."""
        return tuple(each for each in self.fields.values() if each.bad)


class TrainingData(Probe[Contents]):
    """The values of the training data: the beginning of an epoch, and what is cheap beyond."""

    def measure(self, audit: Audit) -> Contents:
        """Read up to :data:`ROWS` rows, then all of a data set in memory, or some rows further on.

        Raises:
            UserCodeError: the loader raised.
            OutOfBudgetError: the time is used up.
        """
        notes = _Notes()
        ended = notes.read(audit, audit.loop.batches(), ROWS, SECONDS)
        rows = notes.rows
        access = RandomAccess.of(audit.loop.train_loader)
        columns = access.columns() if access is not None and not ended else None
        whole = columns is not None and notes.add_columns(columns)
        if access is not None and columns is not None and whole and notes.bad_batch is None:
            notes.keep_bad_batch(access, columns)
        if access is not None and not ended and not whole:
            notes.look_further(audit, access)
        return Contents(notes.fields, rows, notes.first_batch, notes.bad_batch, whole, ended)


class _Notes:
    """Gathers :class:`Contents`."""

    def __init__(self) -> None:
        self.fields: dict[str, Field] = {}
        self.first_batch: Any = None
        self.bad_batch: Any = None
        self.rows = 0
        self._usual = 1

    def read(self, audit: Audit, source: Iterator[Any], rows: int, seconds: float) -> bool:
        """Look through what ``source`` yields within the limits; whether that was all."""
        started, most = time.perf_counter(), self.rows + rows
        for count, batch in enumerate(source):
            if count and (
                self.rows >= most
                or count >= MOST_BATCHES
                or time.perf_counter() - started > seconds
            ):
                return False
            audit.clock.check()
            self._add_batch(batch)
        return True

    def _add_batch(self, batch: Any) -> None:
        if self.first_batch is None:
            self.first_batch = batch
            self._usual = max(batches.size(batch), 1)
        before = self._bad
        for path, tensor in batches.tensors(batch):
            self._add(path, tensor)
        self.rows += max(batches.size(batch), 1)
        if self._bad > before and self.bad_batch is None:
            self.bad_batch = batch

    @property
    def _bad(self) -> int:
        return sum(each.bad for each in self.fields.values())

    def _add(self, path: str, tensor: Tensor) -> None:
        values = _dense(tensor.detach())
        whole = not (values.is_floating_point() or values.is_complex())
        fresh = Field(path, values.dtype, counts={} if whole else None)
        self.fields.setdefault(path, fresh).add(values)

    def add_columns(self, columns: tuple[tuple[str, Tensor], ...]) -> bool:
        """Look through a data set that is in memory instead of what was read; whether it is small.

        The same rows would be counted twice else.
        """
        if sum(t.numel() * t.element_size() for _, t in columns) > MOST_BYTES:
            return False
        for path, tensor in columns:
            self.fields.pop(path, None)
            self._add(path, tensor)
        return True

    def keep_bad_batch(self, access: RandomAccess, columns: tuple[tuple[str, Tensor], ...]) -> None:
        """Make a batch of the first bad row and its neighbours, as the loader would."""
        bad = [row for each in self.fields.values() for row in each.bad_rows]
        if bad:
            last = len(columns[0][1])
            start = max(0, min(*bad, last - self._usual))
            self.bad_batch = access.fetch(range(start, min(start + self._usual, last)))

    def look_further(self, audit: Audit, access: RandomAccess) -> None:
        """Look up rows spread over the data set."""
        try:
            spread = access.spread(MORE_ROWS)
            size = 1 if access.loader.batch_sampler is None else self._usual
            chunks = (spread[i : i + size] for i in range(0, len(spread), size))
            fetched = (access.fetch(chunk) for chunk in chunks)
            self.read(audit, fetched, MORE_ROWS, MORE_SECONDS)
        except UserCodeError:
            # A data set may need what only the loader gives it (a worker's set-up): go without.
            return


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()
