"""Rows of the training and the validation set, one by one: what is in them, and which are the same.

A row is known by a hash of what the network is given (and, beside it, of the target). Where a data
set can be indexed rows are fetched one at a time: no padding to the longest of a batch, and the
same row looks the same wherever it lies.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs, seed_everything
from nnaudit.loop.batch_target import inputs_and_target
from nnaudit.measure.batch_rows import row_targets
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.row_hashes import row_hashes, thinned
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs

ROWS = 4096
"""Rows read one by one, drawn at random; of a stream its first."""
SECONDS = 3.0
WHOLE_ROWS = 2**16
WHOLE_BYTES = 2**28
"""A data set that lies in memory is read as a whole up to this size."""
SAMPLE = 1024
"""Rows whose values are kept."""

_FETCHED_TWICE = 16


@dataclass(frozen=True)
class Layout:
    """Where in a batch the network's inputs and the targets lie, as paths: ``[0]``, ``['x']``.

    ``texts`` are inputs that are lists of texts, which the step makes numbers of.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, loop: Loop, batch: Any) -> Layout:
        """Find out by the values which tensors of ``batch`` are fed to the network as they are.

        What is neither input nor target is left out, and so are numbers of rows beside a larger
        input; where the inputs are made of something else on the way, everything that is no target
        counts as input.
        """
        fed = inputs_and_target(loop, batch)
        own = {
            path: tensor
            for path, tensor in batches.tensors(batch)
            if tensor.layout is torch.strided  # a sparse one's rows cannot be taken apart
        }
        targets = tuple(
            path for path, tensor in own.items() if batches.paths_of(fed.target, tensor)
        )
        inputs = [path for path, tensor in own.items() if batches.paths_of(fed.inputs, tensor)]
        inputs = inputs or [path for path in own if path not in targets]
        texts = () if inputs else tuple(path for path, _ in _texts(batch))
        inputs = inputs or list(texts) or list(own)
        if any(path in own and own[path].ndim > 1 for path in inputs):
            inputs = [path for path in inputs if not _tells_rows_apart(own[path])]
        return cls(tuple(inputs), targets, texts)

    def fits(self, batch: Any) -> bool:
        """Whether ``batch`` has all that this layout names."""
        return {*self.inputs, *self.targets} <= columns_of(batch).keys()

    def within(self, one: Any) -> Layout:
        """Return the part of it that ``one``, a batch of one row, has.

        Where a batch holds its rows in lists, as in detection, this is the layout of a row.
        """
        there = columns_of(one).keys()
        inputs, targets, texts = (
            tuple(path for path in paths if path in there)
            for paths in (self.inputs, self.targets, self.texts)
        )
        return Layout(inputs, targets, texts) if inputs else self


def columns_of(batch: Any) -> dict[str, Tensor]:
    """The tensors of ``batch`` by path; of lists of texts a hash of each, (rows, 2)."""
    return dict((*_texts(batch), *batches.tensors(batch)))


def _texts(batch: Any) -> Iterator[tuple[str, Tensor]]:
    members: Iterable[tuple[Any, Any]] = ()
    if isinstance(batch, Mapping):
        members = batch.items()
    elif isinstance(batch, (tuple, list)):
        members = enumerate(batch)
    for key, value in members:
        if isinstance(value, (tuple, list)) and value and all(isinstance(v, str) for v in value):
            hashes = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in value]
            numbers = np.frombuffer(b"".join(hashes), np.int64).reshape(-1, 2)
            yield f"[{key!r}]", torch.from_numpy(numbers.copy())


def _tells_rows_apart(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds one whole number per row, another in each: an identifier."""
    if tensor.ndim != 1 or len(tensor) < 8 or tensor.is_floating_point() or tensor.is_complex():
        return False
    return len(torch.unique(tensor)) == len(tensor)


@dataclass(frozen=True)
class Rows:
    """What was read of one of the two sets.

    Attributes:
        inputs: a hash of each row's inputs.
        items: a hash of each row's inputs and targets.
        targets: one per row, as :func:`~nnaudit.measure.batch_rows.row_targets` gives them; None
            where there is none.
        sample: by path, the values of the first :data:`SAMPLE` rows' inputs, each without its
            batch dimension; of large ones every k-th element along each axis.
        total: rows of an epoch; None where that is unknown.
        random: the same row, fetched again under other random numbers, is another.
        whole: rows can be told apart (those of a graph batch in a stream cannot).
    """

    inputs: tuple[bytes, ...]
    items: tuple[bytes, ...]
    targets: NDArray[Any] | None
    sample: dict[str, list[Tensor]]
    total: int | None
    random: bool = False
    whole: bool = True

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def coverage(self) -> float:
        """The share of an epoch's rows that was read; 1 where it is unknown."""
        return min(len(self) / self.total, 1.0) if self.total else 1.0


@dataclass(frozen=True)
class TrainRowsRead:
    """What :class:`TrainRows` measured: the rows, and where in a batch they come from."""

    rows: Rows
    layout: Layout


class TrainRows(Probe[TrainRowsRead]):
    """The rows of the training set."""

    def measure(self, audit: Audit) -> TrainRowsRead:
        """Read all of a data set in memory, else rows drawn at random, else an epoch's first.

        Raises:
            UserCodeError: the loader raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        first = next(iter(loop.batches()), None)
        layout = Layout.of(loop, first)
        one = _one_row(RandomAccess.of(loop.train_loader))
        layout = layout if one is None else layout.within(one)
        return TrainRowsRead(_read(audit, layout, loop.train_loader, loop.batches), layout)


class ValRows(Probe[Rows | None]):
    """The rows of the validation set; None without one or where its batches are of another form."""

    probes = (TrainRows,)

    def measure(self, audit: Audit) -> Rows | None:
        """Read as :class:`TrainRows` does.

        Raises:
            UserCodeError: the loader raised.
            OutOfBudgetError: the time is used up.
        """
        layout, loop = audit.probe(TrainRows).layout, audit.loop
        if loop.lacks(Needs.VAL_LOADER):
            return None
        first = next(iter(loop.val_batches()), None)
        if first is None or not layout.fits(first):
            return None
        return _read(audit, layout, loop.val_loader, loop.val_batches)


def _read(audit: Audit, layout: Layout, loader: Any, epoch: Callable[[], Iterator[Any]]) -> Rows:
    access = RandomAccess.of(loader)
    one = _one_row(access)
    if one is not None and not layout.fits(one):
        access = None
    notes = _Notes(layout)
    columns = _columns(audit, access)
    if columns is not None and {*layout.inputs, *layout.targets} <= columns.keys():
        notes.add_rows(columns, len(columns[layout.inputs[0]]))
        return notes.rows(len(notes.inputs))
    if access is not None:
        try:
            return _looked_up(audit, access, notes)
        except UserCodeError:
            # A data set may need what only the loader gives it (a worker's set-up): go without.
            notes = _Notes(layout)
    # What a script draws by itself is drawn again and again: where an epoch ends is not known.
    ended = notes.read(audit, epoch()) and not getattr(loader, "endless", False)
    return notes.rows(len(notes.inputs) if ended else _length(loader))


def _one_row(access: RandomAccess | None) -> Any:
    """Fetch one row as a batch; None where rows are not fetched one by one, or cannot be."""
    if access is None or access.loader.batch_sampler is None:
        return None
    index = next((i for one in access.index_batches() for i in one), None)
    try:
        return None if index is None else access.fetch([index])
    except UserCodeError:
        return None


def _columns(audit: Audit, access: RandomAccess | None) -> dict[str, Tensor] | None:
    """All of a data set that lies in memory, in a random order, so that the sample is random."""
    columns = access.columns() if access is not None else None
    if columns is None or len(columns[0][1]) > WHOLE_ROWS:
        return None
    if sum(t.numel() * t.element_size() for _, t in columns) > WHOLE_BYTES:
        return None
    if any(t.layout is not torch.strided for _, t in columns):
        return None
    order = np.random.default_rng(audit.seed).permutation(len(columns[0][1]))
    return {path: tensor[torch.from_numpy(order)] for path, tensor in columns}


def _length(loader: Any) -> int | None:
    """Rows of an epoch that was not read to its end."""
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return len(loader.dataset) if hasattr(loader.dataset, "__len__") else None
    return None


def _looked_up(audit: Audit, access: RandomAccess, notes: _Notes) -> Rows:
    """Fetch rows drawn at random, so that any two of them are as likely to be both among them."""
    indices = list(dict.fromkeys(_plain(i) for one in access.index_batches() for i in one))
    order = np.random.default_rng(audit.seed).permutation(len(indices))
    alone = access.loader.batch_sampler is not None
    changes = alone and _random(access, notes, [indices[i] for i in order[:_FETCHED_TWICE]])
    started, total = time.perf_counter(), len(indices) if alone else None
    for i in order:
        audit.clock.check()
        if len(notes.inputs) >= ROWS or time.perf_counter() - started > SECONDS:
            return notes.rows(total, changes)
        fetched = access.fetch([indices[i]])
        if alone:
            notes.add_one(fetched)
        else:
            notes.add_batch(fetched)
    return notes.rows(len(notes.inputs), changes)


def _plain(index: Any) -> Any:
    """An index that can be hashed; lists and slices become tuples of what they hold."""
    if isinstance(index, Tensor) and index.numel() == 1:
        return int(index)
    return tuple(index) if isinstance(index, list) else index


def _random(access: RandomAccess, notes: _Notes, indices: Sequence[Any]) -> bool:
    layout, started = notes.layout, time.perf_counter()
    for count, i in enumerate(indices):
        if count and time.perf_counter() - started > SECONDS / 2:
            break
        if hash_under(access, layout, i, 1) != hash_under(access, layout, i, 2):
            return True
    return False


def hash_under(access: RandomAccess, layout: Layout, index: Any, seed: int) -> bytes:
    """Return the hash of the inputs of row ``index``, fetched under ``seed``.

    Raises:
        UserCodeError: the data set raised.
    """
    seed_everything(seed)
    found = columns_of(access.fetch([index]))
    return b"".join(row_hashes(alone(found[path])[None])[0] for path in layout.inputs)


@dataclass
class _Notes:
    """Gathers :class:`Rows`."""

    layout: Layout
    inputs: list[bytes] = field(default_factory=list)
    items: list[bytes] = field(default_factory=list)
    sample: dict[str, list[Tensor]] = field(default_factory=dict)
    whole: bool = True
    _targets: list[Tensor] | None = field(default_factory=list)

    def read(self, audit: Audit, source: Iterator[Any]) -> bool:
        """Read from ``source`` within the limits; whether that was all."""
        started = time.perf_counter()
        for batch in source:
            late = time.perf_counter() - started > SECONDS
            if self.inputs and (len(self.inputs) >= ROWS or late):
                return False
            audit.clock.check()
            self.add_batch(batch)
        return True

    def add_batch(self, batch: Any) -> None:
        """Add every row of ``batch``; as one where its rows cannot be taken apart."""
        found = columns_of(batch)
        if not self.layout.fits(batch):
            self.whole = False
            return
        n = batches.size([found[path] for path in self.layout.inputs])
        if all(found[path].shape[:1] == (n,) for path in self.layout.inputs):
            self.add_rows(found, n)
        else:
            self.whole = False
            self.add_rows({path: tensor[None] for path, tensor in found.items()}, 1)

    def add_one(self, batch: Any) -> None:
        """Add ``batch``, which was made of one row."""
        found = columns_of(batch)
        self.add_rows({path: alone(tensor)[None] for path, tensor in found.items()}, 1)

    def add_rows(self, columns: Mapping[str, Tensor], n: int) -> None:
        """Add the ``n`` rows of ``columns``."""
        layout = self.layout
        inputs = _joined([row_hashes(columns[path]) for path in layout.inputs])
        rest = [columns[path] for path in layout.targets if path not in layout.inputs]
        answers = [row_hashes(tensor) for tensor in rest if tensor.shape[:1] == (n,)]
        room = max(SAMPLE - len(self.inputs), 0)
        for path in layout.inputs:
            if path in layout.texts:
                continue
            kept = [thinned(row) for row in columns[path][:room]]
            self.sample.setdefault(path, []).extend(kept)
        self.inputs += inputs
        self.items += _joined([inputs, *answers])
        self._keep_targets(rest, n)

    def _keep_targets(self, targets: list[Tensor], n: int) -> None:
        fitting = (t for t in targets if t.shape[:1] == (n,) and t.numel() <= 64 * n)
        first = next(fitting, None)
        if self._targets is None:
            return
        if first is None or (self._targets and self._targets[0].shape[1:] != first.shape[1:]):
            self._targets = None
        else:
            self._targets.append(first.detach().cpu())

    def rows(self, total: int | None, random: bool = False) -> Rows:
        """Return what was gathered."""
        targets = None
        if self._targets and self.whole:
            stacked = torch.cat(self._targets)
            targets = row_targets(ModelInputs((), {}, stacked), len(stacked))
        return Rows(
            tuple(self.inputs), tuple(self.items), targets, self.sample, total, random, self.whole
        )


def alone(tensor: Tensor) -> Tensor:
    """Drop the batch dimension of a batch of one; what has none (a graph's nodes) stays whole."""
    return tensor[0] if tensor.ndim and tensor.shape[0] == 1 else tensor


def _joined(columns: Sequence[Sequence[bytes]]) -> list[bytes]:
    return [b"".join(parts) for parts in zip(*columns, strict=True)]
