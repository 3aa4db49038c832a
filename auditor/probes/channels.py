"""The scale of the inputs, channel by channel and row by row, in training and in validation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.probes.rows import Rows, TrainRows, ValRows

MOST_CHANNELS = 64
_COLOURS = 4
_LEAST_SIDE = 8
_ALIKE = 0.8


@dataclass(frozen=True)
class Moments:
    """Mean and mean square of each row's finite elements, by channel.

    Attributes:
        means, squares: (rows, channels).
        low, high: of all elements.
        binary: by channel, whether all elements are 0 or 1 (channels,).
        sparse: by channel, whether nine in ten rows hold the same: their scale is that of a few.
    """

    means: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: float
    high: float
    binary: NDArray[np.bool_]
    sparse: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.means)

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """By channel."""
        return np.asarray(self.means.mean(0))

    @cached_property
    def deviation(self) -> NDArray[np.float64]:
        """The standard deviation of the elements, by channel."""
        variance = self.squares.mean(0) - self.mean**2
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))

    @cached_property
    def spreads(self) -> NDArray[np.float64]:
        """The mean squared distance of each row's elements from the channel's mean."""
        return np.asarray(self.squares - 2 * self.mean * self.means + self.mean**2)

    def half(self, which: int) -> Moments:
        """Every second row, from the first (0) or the second (1)."""
        means, squares = self.means[which::2], self.squares[which::2]
        return dataclasses.replace(self, means=means, squares=squares)


@dataclass(frozen=True)
class Pair:
    """One input in training and in validation.

    Attributes:
        path: where in a batch it lies.
        pictures: its rows have height and width.
        sequence: its rows are moments of something that goes on: windows of a series.
        train, val: its moments, of as many channels.
    """

    path: str
    pictures: bool
    sequence: bool
    train: Moments
    val: Moments

    def half(self, which: int) -> Pair:
        """The same of every second row."""
        train, val = self.train.half(which), self.val.half(which)
        return Pair(self.path, self.pictures, self.sequence, train, val)

    @cached_property
    def varying(self) -> NDArray[np.bool_]:
        """The channels that vary in training."""
        scale = np.maximum(np.abs(self.train.mean), 1e-12)
        return np.asarray(self.train.deviation > 1e-6 * scale)

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        """By how many standard deviations of training validation's mean is off, by channel."""
        shift = (self.val.mean - self.train.mean) / np.where(self.varying, self.train.deviation, 1)
        return np.where(self.varying, shift, 0.0)

    @cached_property
    def ratio(self) -> NDArray[np.float64]:
        """Validation's standard deviation over training's, by channel; 1 where that is zero."""
        ratio = self.val.deviation / np.where(self.varying, self.train.deviation, 1)
        return np.where(self.varying, ratio, 1.0)

    def witnesses(self, channels: NDArray[np.bool_]) -> float:
        """Of how many independent channels the given ones are worth.

        The participation ratio of the eigenvalues of their correlation in training: open, high, low
        and close of a share are one witness, not four.
        """
        rows = self.train.means[:, channels]
        rows = rows[:, rows.std(0) > 0]
        if rows.shape[1] < 2:
            return float(rows.shape[1])
        values = np.linalg.eigvalsh(np.corrcoef(rows.T))
        return float(values.sum() ** 2 / (values**2).sum())

    @cached_property
    def z_shift(self) -> NDArray[np.float64]:
        """Of the difference of the rows' means, by channel: a row is one observation."""
        return _welch(self.train.means, self.val.means)

    @cached_property
    def z_ratio(self) -> NDArray[np.float64]:
        """Of the difference of the rows' spreads, by channel."""
        return _welch(self.train.spreads, self.val.spreads)


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    difference = b.mean(0) - a.mean(0)
    error = np.sqrt(a.var(0) / max(len(a) - 1, 1) + b.var(0) / max(len(b) - 1, 1))
    # Rows that are all alike (scaled one by one) leave rounding alone: not a difference.
    size = np.maximum(np.abs(a.mean(0)), np.abs(b.mean(0)))
    z = difference / np.maximum(error, 1e-12)
    return np.where(np.abs(difference) <= 1e-5 * np.maximum(size, 1e-12), 0.0, z)


class Channels(Probe[tuple[Pair, ...] | None]):
    """Every input that holds quantities, in both sets; None without validation rows."""

    probes = (TrainRows, ValRows)

    def measure(self, audit: Audit) -> tuple[Pair, ...] | None:
        """Take the moments of the sampled rows."""
        train, val = audit.probe(TrainRows).rows, audit.probe(ValRows)
        if val is None:
            return None
        return tuple(_pairs(train, val))


def _pairs(train: Rows, val: Rows) -> list[Pair]:
    found = []
    for path, values in train.sample.items():
        others = val.sample.get(path, [])
        if not values or not others or not all(_is_quantity(v) for v in (values[0], others[0])):
            continue
        axis = channel_axis(tuple(values[0].shape))
        mine, theirs = moments(values, axis), moments(others, axis)
        if mine is not None and theirs is not None and len(mine.mean) == len(theirs.mean):
            picture = _is_picture(values[0])
            found.append(Pair(path, picture, not picture and _goes_on(values), mine, theirs))
    return found


def _is_quantity(value: Tensor) -> bool:
    """Numbers that stand for an amount; whole numbers do where they make up a picture."""
    return value.is_floating_point() or _is_picture(value)


def _is_picture(value: Tensor) -> bool:
    sides = [side for side in value.shape if side > _COLOURS]
    return len(sides) >= 2 and min(sides) >= _LEAST_SIDE


def _goes_on(values: list[Tensor]) -> bool:
    """Whether rows have a time axis: two axes, or one along which neighbours are alike."""
    if values[0].ndim != 1:
        return values[0].ndim == 2
    if len({len(value) for value in values}) > 1 or len(values[0]) < 4 or len(values) < 8:
        return False
    table = torch.stack([value.double() for value in values]).nan_to_num()
    correlation = torch.corrcoef(table[:, table.std(0) > 0].T)
    return correlation.ndim == 2 and float(correlation.diagonal(1).mean()) > _ALIKE


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of a row of ``shape`` whose entries are different things; None without one.

    Colours of a picture, features of a moment, columns of a table. Pixels of a flattened picture
    and samples of a sound are all the same thing.
    """
    if len(shape) == 1:
        return 0 if shape[0] <= MOST_CHANNELS else None
    if len(shape) == 2:
        long, short = (0, 1) if shape[0] > shape[1] else (1, 0)
        return short if shape[short] < shape[long] and shape[short] <= MOST_CHANNELS else None
    if not shape:
        return None
    small = [axis for axis in (0, len(shape) - 1, 1) if 0 < shape[axis] <= _COLOURS]
    small += [0] if shape[0] <= MOST_CHANNELS and 2 * shape[0] <= max(shape) else []
    return small[0] if small else None


def moments(values: list[Tensor], axis: int | None) -> Moments | None:
    """Return the moments of ``values`` by channel; None where their channels differ in number."""
    rows = [_by_channel(value.double(), axis) for value in values]
    if len({len(row) for row in rows}) != 1 or rows[0].numel() == 0:
        return None
    means, squares, binary = [], [], torch.ones(len(rows[0]), dtype=torch.bool)
    low, high = math.inf, -math.inf
    for row in rows:
        finite = torch.isfinite(row)
        kept = torch.where(finite, row, torch.zeros_like(row))
        count = finite.sum(1).clamp(min=1)
        means.append(kept.sum(1) / count)
        squares.append(kept.square().sum(1) / count)
        binary &= ((kept == 0) | (kept == 1)).all(1)
        low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    table = np.asarray(torch.stack(means))
    sparse = (table == np.median(table, 0)).mean(0) > 0.9
    return Moments(
        table, np.asarray(torch.stack(squares)), low, high, np.asarray(binary), np.asarray(sparse)
    )


def _by_channel(value: Tensor, axis: int | None) -> Tensor:
    if axis is None or axis >= value.ndim:
        return value.reshape(1, -1)
    return value.movedim(axis, 0).reshape(value.shape[axis], -1)
