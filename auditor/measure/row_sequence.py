"""Whether rows that follow one another are moments of one sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnaudit import stats
from nnaudit.measure.epoch_reading import Reading
from nnaudit.measure.epoch_targets import Targets

_COLUMNS = 1024
"""Columns of long rows that are compared."""


def views_of(inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Rows as they are, and what of them outlasts an augmentation.

    The magnitudes of a spectrum outlast a shift or a crop; sorted values a flip, too.
    """
    flat = inputs.reshape(len(inputs), -1)
    if flat.shape[1] < 8 or not np.isfinite(flat).all():
        return (flat,)
    axes = tuple(range(1, inputs.ndim))[-2:]
    return flat, np.abs(np.fft.rfftn(inputs, axes=axes)).reshape(len(flat), -1), np.sort(flat, 1)


def columns_of(*inputs: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Flatten and standardise; columns constant or not finite in any are left out of all."""
    flat = [each.reshape(len(each), -1).astype(np.float64) for each in inputs]
    step = max(1, -(-flat[0].shape[1] // _COLUMNS))
    thin = [each[:, ::step] for each in flat]
    finite = np.all([np.isfinite(each).all(0) for each in thin], axis=0)
    thin = [each[:, finite] for each in thin]
    varying = np.all([each.std(0) > 0 for each in thin], axis=0)
    return [(each[:, varying] - each[:, varying].mean(0)) / each.std(0)[varying] for each in thin]


def without_group_means(rows: NDArray[np.float64], groups: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``rows`` (rows, columns) less the mean of the group that each belongs to."""
    centred = rows.copy()
    for group in np.unique(groups):
        members = groups == group
        centred[members] -= centred[members].mean(0)
    return centred


def sequence_of(reading: Reading, targets: Targets | None) -> str:
    """Say what shows that consecutive rows are moments of one sequence; empty if nothing does.

    Windows that overlap show it exactly. Else both must hold: rows are much nearer to the next row
    of their class than to any row of it, and the targets are serially correlated without being
    merely sorted.
    """
    inputs = reading.inputs
    if inputs is None or len(inputs) < 16:
        return ""
    if _overlap(inputs):
        return "consecutive inputs overlap"
    if targets is None or len(targets.values) < len(inputs):
        return "consecutive inputs are almost equal" if _close(inputs, None) else ""
    values = targets.values[: len(inputs)]
    if targets.discrete:
        changing = len(np.unique(values)) > 1
        persistent = not changing or stats.equal_neighbours(values).z > 4
        close = _close(inputs, values)
    else:
        rising = abs(stats.spearman(np.arange(len(values)), values)) > 0.95
        persistent = stats.lag_one(values).observed > 0.5 and not rising
        close = _close(inputs, None)
    alike = persistent and close
    return "consecutive inputs and targets are almost equal" if alike else ""


def _overlap(inputs: NDArray[Any]) -> bool:
    """Whether each row is the one before, moved along the first or the last axis."""
    some = inputs[:32]
    if (some == some[:1]).all():
        return False
    axes = {1, some.ndim - 1} - {0}
    return any(_overlap_along(np.moveaxis(some, axis, 1)) for axis in axes)


def _overlap_along(rows: NDArray[Any]) -> bool:
    length = rows.shape[1]
    most = max(1, length // 2) if length >= 4 else 0
    for shift in range(1, most + 1):
        # A few pairs first: a long window has many shifts.
        before, after = rows[:-1, shift:], rows[1:, :-shift]
        if np.allclose(before[:3], after[:3]) and np.allclose(before, after):
            return bool(np.ptp(before[0]) > 0 or np.ptp(before) > 0)
    return False


def _close(inputs: NDArray[Any], classes: NDArray[Any] | None) -> bool:
    """Whether neighbours are nearer than a third of the mean squared distance within a class."""
    [rows] = columns_of(inputs)
    n = len(rows)
    if rows.shape[1] == 0:
        return False
    groups = np.zeros(n, dtype=int) if classes is None else classes
    neighbours = np.flatnonzero(groups[1:] == groups[:-1])
    if len(neighbours) < 16:
        return False
    near = ((rows[neighbours + 1] - rows[neighbours]) ** 2).sum(1).mean()
    centred = without_group_means(rows, groups)
    # Two independent rows of a class are twice the variance within it apart.
    sizes = {group: int((groups == group).sum()) for group in np.unique(groups)}
    weight = np.array([sizes[group] / max(sizes[group] - 1, 1) for group in groups])
    within = 2 * ((centred[neighbours] ** 2).sum(1) * weight[neighbours]).mean()
    return bool(near < within / 3)
