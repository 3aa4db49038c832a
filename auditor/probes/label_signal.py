"""How much the targets have to do with the inputs, seen without training the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit import stats
from nnaudit.context import Audit, Probe
from nnaudit.probes.rows import Rows, TrainRows, ValRows

ROWS = 768
"""Rows that are used at most: the time goes with their third power."""
CLEAR = 8.0
"""With so clear a signal no other view is taken."""
NEIGHBOURS = 5
FEWEST = 100

_SHARED = 0.2
"""Share of a column's numbers in other columns: windows share nearly all, measurements few."""

_FLAGS = 10
"""Columns of no more values are flags, which all hold the same numbers."""

_COLUMNS = 1024
_BUCKETS = 512
_MOST_CLASSES_SHARE = 0.25


@dataclass(frozen=True)
class Signal:
    """What the rows of one set show.

    Attributes:
        rows: how many were used.
        z: by view of the inputs and way of looking, deviations from matching targets at random.
        smooth: the inputs are quantities side by side (a picture, a table of measurements), in
            which near means alike. Of words, bits, sounds and pairs one cannot say so.
        telling: rows that can tell: those outside the commonest class, all of a quantity's.
        table: the inputs are one table of measurements, no windows of a series: rows are no frames
            of one recording.
        answers: columns of a table that say the target, as :func:`answers` finds them: the path
            of the inputs in the batch, and the column's number.
    """

    rows: int
    z: dict[str, float]
    smooth: bool
    telling: int
    table: bool = False
    answers: tuple[tuple[str, int], ...] = ()

    @property
    def best(self) -> float:
        """The clearest of the deviations."""
        return max(self.z.values(), default=0.0)


@dataclass(frozen=True)
class Signals:
    """Both sets; None where rows have no single target, or are too few."""

    train: Signal | None
    val: Signal | None


class LabelSignal(Probe[Signals]):
    """Nearest neighbours and a linear fit, each row predicted from the others.

    Each is a table of pairs of rows, which is set against the table of their targets' products.
    """

    probes = (TrainRows, ValRows)

    def measure(self, audit: Audit) -> Signals:
        """Look at the sampled rows of both sets."""
        val = audit.probe(ValRows)
        train = audit.probe(TrainRows).rows
        return Signals(signal_of(train), None if val is None else signal_of(val))


def signal_of(rows: Rows) -> Signal | None:
    """Return what ``rows`` show; None where they have no single target, no one shape, or are few.

    A row whose target is missing (NaN, or a class number below 0) is left out.
    """
    if rows.targets is None or not rows.sample:
        return None
    n = min(ROWS, len(rows.targets), *(len(values) for values in rows.sample.values()))
    targets = rows.targets[:n].reshape(n, -1).astype(np.float64)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(targets).all(1))
    if rows.targets.dtype.kind in "iub":
        known = known & np.asarray((targets >= 0).all(1))
    inputs = [_stacked(values[:n], known) for values in rows.sample.values()]
    if known.sum() < FEWEST or any(each is None for each in inputs):
        return None
    coded, telling = _coded(targets[known], rows.targets.dtype.kind in "iub")
    if not coded.any():
        return None
    products = coded @ coded.T
    z: dict[str, float] = {}
    for name, values in _views([each for each in inputs if each is not None]):
        if values.shape[1] == 0:
            return None  # all rows are the same
        z[f"nearest neighbours on {name}"] = stats.association(neighbours(values), products).z
        if max(z.values()) < CLEAR:
            z[f"ridge regression on {name}"] = stats.association(linear(values), products).z
        if max(z.values()) >= CLEAR:
            break
    smooth = len(inputs) == 1 and _is_smooth(inputs[0])
    said = tuple(
        (path, column)
        for path, values in zip(rows.sample, inputs, strict=True)
        if values is not None
        for column in answers(values, targets[known])
    )
    table = smooth and _is_table(inputs[0])
    return Signal(int(known.sum()), z, smooth, telling, table, said)


def answers(values: Tensor, targets: NDArray[np.float64]) -> list[int]:
    """Return the columns of the table ``values`` (rows, columns) that say the one target of a row.

    Such a column takes one value for each class, and another for each other class; or it is the
    target of a regression up to scale and offset, to 1e-6 in the correlation. Columns of windows of
    a series are none, for noise-free waves repeat; nor is the only column of a table, by which the
    target was made.
    """
    if values.ndim != 2 or not values.is_floating_point() or targets.shape[1] != 1:
        return []
    table = values.double().nan_to_num().numpy()
    kinds, label = np.unique(targets[:, 0], return_inverse=True)
    if table.shape[1] < 2 or len(kinds) < 2:
        return []
    if len(kinds) <= _MOST_CLASSES_SHARE * len(targets):
        return [i for i, column in enumerate(table.T) if _is_renamed(column, label, len(kinds))]
    spread = table.std(0)
    scaled = (table - table.mean(0)) / np.where(spread > 0, spread, 1.0)
    target = (targets[:, 0] - targets.mean()) / targets.std()
    same = np.flatnonzero(np.abs(scaled.T @ target) / len(target) > 1 - 1e-6)
    return [i for i in same.tolist() if not _is_of_series(table, i)]


def _is_table(values: Tensor | None) -> bool:
    """Whether ``values`` (rows, columns) are measurements of different kinds, side by side."""
    if values is None or values.ndim != 2 or values.shape[1] < 2:
        return False
    table = values.double().nan_to_num().numpy()[:, :_COLUMNS]
    measured = [column for column in table.T if len(np.unique(column)) > _FLAGS]
    table = np.stack(measured or [table[:, 0]], 1)
    return not any(_is_of_series(table, column) for column in range(min(table.shape[1], 8)))


def _is_of_series(table: NDArray[np.float64], column: int) -> bool:
    """Whether other columns hold the same numbers: those of a window of a series."""
    others = np.delete(table, column, axis=1)
    return float(np.isin(table[:, column], others).mean()) > _SHARED


def _is_renamed(column: NDArray[np.float64], label: NDArray[np.intp], classes: int) -> bool:
    """Whether ``column`` takes one value for each class, and no value for two."""
    values, code = np.unique(column, return_inverse=True)
    return len(values) == classes == len(np.unique(code * classes + label))


def _stacked(values: list[Tensor], known: NDArray[np.bool_]) -> Tensor | None:
    if len({value.shape for value in values}) != 1 or values[0].numel() == 0:
        return None
    chosen = [value for value, kept in zip(values, known, strict=True) if kept]
    return torch.stack(chosen) if chosen else None


def _coded(targets: NDArray[np.float64], whole: bool) -> tuple[NDArray[np.float64], int]:
    """Targets as centred columns, one per class or the rank of a quantity, and the rows that tell.

    Those are the rows outside the commonest class, which the others do not tell apart.
    """
    kinds = np.unique(targets, axis=0)
    few = len(kinds) <= max(2, _MOST_CLASSES_SHARE * len(targets))
    if targets.shape[1] == 1 and few and (whole or len(kinds) <= 50):
        columns = (targets == kinds.T).astype(np.float64)
        return columns - columns.mean(0), int(len(columns) - columns.sum(0).max())
    ranks = np.stack([stats.rank(column) for column in targets.T], 1)
    ranks -= ranks.mean(0)
    return ranks / np.maximum(ranks.std(0), 1e-12), len(ranks)


def _is_smooth(values: Tensor | None) -> bool:
    """A picture, or a table of quantities that take many values."""
    if values is None:
        return False
    if values.ndim >= 3 and min(values.shape[-2:]) >= 8:
        return True
    if values.ndim != 2 or not values.is_floating_point():
        return False
    table = values.double().nan_to_num()
    kinds = [len(torch.unique(column)) for column in table.T[:64]]
    return float(np.mean([count > 10 for count in kinds])) >= 0.5


# --- views of the inputs ---------------------------------------------------------------------


def _views(inputs: list[Tensor]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield ways to lay out the inputs in which likeness may show: (rows, columns) each."""
    raw = [_thinned(values.double().nan_to_num().reshape(len(values), -1)) for values in inputs]
    table = _standardised(torch.cat(raw, 1))
    yield "raw inputs", table
    words = [v for v in inputs if not v.is_floating_point() and v.ndim == 2]
    if words:
        yield "word counts", _standardised(torch.cat([_bags(v) for v in words], 1))
    waves = [v for v in inputs if v.is_floating_point() and v.ndim > 1 and v.shape[-1] >= 8]
    if waves:
        spectra = [_thinned(_spectrum(values.double().nan_to_num())) for values in waves]
        yield "the spectrum", _standardised(torch.cat(spectra, 1))
    yield "ranks", _ranked(table)


def _thinned(flat: Tensor) -> Tensor:
    return flat[:, :: max(1, -(-flat.shape[1] // _COLUMNS))]


def _spectrum(values: Tensor) -> Tensor:
    picture = values.ndim >= 3 and min(values.shape[-2:]) >= 8
    waves = torch.fft.rfft2(values) if picture else torch.fft.rfft(values)
    return torch.log1p(waves.abs()).flatten(1)


def _bags(words: Tensor) -> Tensor:
    """How often each word occurs, in :data:`_BUCKETS` buckets."""
    buckets = words.long().remainder(_BUCKETS)
    ones = torch.ones_like(buckets, dtype=torch.float64)
    return torch.zeros(len(words), _BUCKETS, dtype=torch.float64).scatter_add_(1, buckets, ones)


def _standardised(table: Tensor) -> NDArray[np.float64]:
    values = np.asarray(table)
    spread = values.std(0)
    varying = spread > 1e-12
    scaled: NDArray[np.float64] = (values[:, varying] - values[:, varying].mean(0)) / spread[
        varying
    ]
    return scaled


def _ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    order = values.argsort(0, kind="stable").argsort(0, kind="stable")
    return order / max(len(values) - 1, 1) - 0.5


def neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mark the nearest rows of each row (n, n)."""
    n = len(values)
    squares = (values**2).sum(1)
    distance = squares[:, None] + squares - 2 * values @ values.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, min(NEIGHBOURS, n - 2), axis=1)[:, :NEIGHBOURS]
    table = np.zeros((n, n))
    table[np.arange(n)[:, None], nearest] = 1.0
    return table


def linear(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight of each row's target in another's prediction by a ridge regression (n, n).

    The penalty is half the mean diagonal of the kernel: the right order of size where a tenth of
    the variance is explained. Each row is predicted without itself.
    """
    n = len(values)
    kernel = values @ values.T
    penalty = 0.5 * max(float(np.trace(kernel)) / n, 1e-12)
    hat = np.linalg.solve(kernel + penalty * np.eye(n), kernel)
    weights: NDArray[np.float64] = hat / np.maximum(1 - np.diag(hat), 1e-6)[:, None]
    return weights
