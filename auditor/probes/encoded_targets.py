"""Columns of a table that are the mean target of the rows with the same value, over both sets.

Such a column stands for a category by what its rows' targets are in the mean (target encoding).
Computed before the split, it tells of validation rows what their own targets are.

Of each group g of rows with one value e, with n rows and a sum s of targets, the smoothed mean is
e = (s + a m) / (n + a), m being the mean of all rows and a the weight of it (0 without smoothing).
Standardised columns and targets are linear in these. So e n is linear in e, s, n and 1, and where
the groups' numbers fulfil that exactly, and only with validation's sums among them, the column was
made with validation's targets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.random_access import RandomAccess
from nnaudit.probes.rows import TrainRows, columns_of

MOST_ROWS = 2**16
_MOST_COLUMNS = 256

_TIMED, _SECONDS = 32, 3.0
"""Rows that are read to tell how long all take, and how long they may."""

FEWEST_GROUPS = 30
"""Five times as many as there are unknown numbers: they cannot fit by accident."""

_ROWS_EACH = 1.5
"""Rows per group, in the mean, below which a column has a value for each row."""

_EXACT, _BEYOND = 1e-4, 1e-2
"""Residuals, of the deviation of what is fitted: what float32 leaves of it, and a hundred times."""

_WITHIN = 0.05
"""Deviation of targets within groups, of all: below it the column says the target by itself."""


@dataclass(frozen=True)
class EncodedTarget:
    """A column that validation's targets are in.

    Attributes:
        path, column: where in a batch.
        groups: how many values it has.
        residual: how far the groups are from the mean over both sets, as a share of the deviation.
        training: the same of the mean over training rows alone.
    """

    path: str
    column: int
    groups: int
    residual: float
    training: float


class EncodedTargets(Probe[EncodedTarget | None]):
    """The first column of the kind; None where there is none, or not all rows can be read."""

    probes = (TrainRows,)

    def measure(self, audit: Audit) -> EncodedTarget | None:
        """Read both sets as a whole.

        Raises:
            UserCodeError: a sampler of the user's raised.
        """
        layout = audit.probe(TrainRows).layout
        train = _all_rows(RandomAccess.of(audit.loop.train_loader))
        val = _all_rows(RandomAccess.of(audit.loop.val_loader))
        if train is None or val is None:
            return None
        for target in layout.targets:
            for path in layout.inputs:
                if {path, target} <= train.keys() and {path, target} <= val.keys():
                    found = encoded(train[path], train[target], val[path], val[target])
                    if found is not None:
                        column, groups, residual, training = found
                        return EncodedTarget(path, column, groups, residual, training)
        return None


def _all_rows(access: RandomAccess | None) -> dict[str, Tensor] | None:
    """Return all rows of a set by path, or None where it is large, or not made of tables."""
    if access is None or access.loader.batch_sampler is None:
        return None
    columns = access.columns()
    if columns is not None:
        small = all(len(each) <= MOST_ROWS for _, each in columns)
        return dict(columns) if small else None
    indices = [i for one in access.index_batches() for i in one]
    if len(set(map(repr, indices))) < len(indices) or len(indices) >= MOST_ROWS:
        return None
    try:
        one = columns_of(access.fetch(indices[:1])).values()
        started = time.perf_counter()
        some = indices[:_TIMED]
        access.fetch(some)
        seconds = (time.perf_counter() - started) * len(indices) / max(len(some), 1)
        is_table = sum(each.numel() for each in one) <= 2 * _MOST_COLUMNS
        return columns_of(access.fetch(indices)) if is_table and seconds < _SECONDS else None
    except UserCodeError:
        return None


def encoded(
    train: Tensor, train_targets: Tensor, val: Tensor, val_targets: Tensor
) -> tuple[int, int, float, float] | None:
    """Return column, groups and both residuals of the first column that is such a mean.

    Args:
        train, val: tables (rows, columns).
        train_targets, val_targets: one number for each row, in any unit.
    """
    tables = [each for each in (train, val) if each.ndim == 2 and each.is_floating_point()]
    targets = [
        each.reshape(-1).double().numpy()
        for each, table in zip((train_targets, val_targets), (train, val), strict=True)
        if each.numel() == len(table) and not each.is_complex()
    ]
    if len(tables) < 2 or len(targets) < 2 or train.shape[1] != val.shape[1]:
        return None
    if train.shape[1] > _MOST_COLUMNS or not all(np.isfinite(each).all() for each in targets):
        return None
    for column in range(train.shape[1]):
        both = torch.cat([train[:, column], val[:, column]]).double().numpy()
        values, group = np.unique(both, return_inverse=True)
        several = FEWEST_GROUPS <= len(values) <= len(both) / _ROWS_EACH
        if not several or not np.isfinite(values).all():
            continue
        found = _residuals(values, group[: len(train)], group[len(train) :], targets)
        if found is not None and found[0] < _EXACT and found[1] > _BEYOND:
            return column, len(values), *found
    return None


def _residuals(
    values: NDArray[np.float64],
    train: NDArray[np.intp],
    val: NDArray[np.intp],
    targets: list[NDArray[np.float64]],
) -> tuple[float, float] | None:
    """Return how far groups are from the formula, with and without the sums of validation.

    None where targets hardly vary within the groups.
    """
    blocks: list[NDArray[np.float64]] = []
    for group, target in zip((train, val), targets, strict=True):
        deviation = float(target.std())
        if deviation == 0.0:
            return None
        target = (target - target.mean()) / deviation  # noqa: PLW2901
        rows = np.bincount(group, minlength=len(values)).astype(np.float64)
        sums = np.bincount(group, target, len(values)).astype(np.float64)
        within = target - (sums / np.maximum(rows, 1.0))[group]
        if float(within[rows[group] > 1].std() if (rows > 1).any() else 0.0) < _WITHIN:
            return None
        blocks += [sums, rows]
    sums, rows, val_sums, val_rows = blocks
    spread = float(values.std())
    value = (values - values.mean()) / (spread if spread > 0 else 1.0)
    fitted = value * (rows + val_rows)
    known: list[NDArray[np.float64]] = [value, sums, rows, val_rows, np.ones(len(values))]
    return _left([*known, val_sums], fitted), _left(known, fitted)


def _left(columns: list[NDArray[np.float64]], fitted: NDArray[np.float64]) -> float:
    """Return the deviation that least squares leave, as a share of that of ``fitted``."""
    table = np.stack(columns, 1)
    solution = np.linalg.lstsq(table, fitted, rcond=None)[0]
    whole = float(fitted.std())
    return float((fitted - table @ solution).std() / whole) if whole > 0 else 0.0
