"""What the checks of this family read off the run on real batches, and how they draw it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnaudit.probes.training_run import Training
from nnaudit.report import Curve, Numbers, Series

FEWEST = 60
"""Steps below which a run shows nothing about where the loss is going."""

_POINTS = 150


@dataclass(frozen=True)
class FinalLoss:
    """The last third of the run compared with the best constant.

    Attributes:
        start: the median of the first five losses.
        mean, error: of the last third, and the standard error of that mean.
        constant: the loss of the best constant prediction; NaN where it is not known.
        start_error: the standard error of ``start``.
        began: the loss of two batches before the first step, in eval mode; NaN if unknown.
    """

    start: float
    mean: float
    error: float
    constant: float
    start_error: float = 0.0
    began: float = math.nan

    @classmethod
    def of(cls, training: Training) -> FinalLoss:
        """Read it off a run."""
        last = training.last()
        start, error = statistics.median(training.losses[:5]), standard_error(last)
        # A median of five scatters 1.2 times as much as their mean.
        start_error = 1.2 * error * math.sqrt(len(last) / 5)
        began = training.moments[0].fixed.loss
        return cls(start, statistics.mean(last), error, training.constant, start_error, began)

    def numbers(self) -> Numbers:
        """What a later report is compared with: where the run ended."""
        name = "mean loss of the last third"
        return Numbers(
            title="The end of the run", values={name: self.mean}, noise={name: self.error}
        )

    @property
    def below(self) -> bool:
        """Whether the loss is lower than the constant's, beyond chance and by 1%."""
        gain = self.constant - self.mean
        return gain > max(4 * self.error, 0.01 * abs(self.constant))

    @property
    def above(self) -> bool:
        """Whether it is higher, beyond chance and by 5%."""
        excess = self.mean - self.constant
        return excess > max(4 * self.error, 0.05 * abs(self.constant))

    @property
    def moved(self) -> bool:
        """Whether it differs from the start, beyond chance and by 2%.

        Or clearly higher than before the first step: it may have risen within the first five.
        """
        if self.mean - self.began > max(4 * self.error, 0.25 * abs(self.began)):
            return True
        chance = 4 * math.hypot(self.error, self.start_error)
        return abs(self.start - self.mean) > max(chance, 0.02 * abs(self.start))

    @property
    def fell(self) -> bool:
        """Whether it is lower than at the start, beyond chance and by 1%."""
        return self.start - self.mean > max(4 * self.error, 0.01 * abs(self.start))


def standard_error(losses: Sequence[float]) -> float:
    """Of the mean of ``losses``, which are taken as independent: each is of another batch."""
    return statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf


def still_falling(losses: Sequence[float], share: float = 0.02) -> bool:
    """Whether the last third lies below the third before it by more than chance.

    By three standard errors and ``share`` of its size; or the line through both falls by three
    standard errors of its slope, however little that is.
    """
    third = len(losses) // 3
    if third < 5:
        return True  # too early to say otherwise
    before = np.asarray(losses[-2 * third : -third])
    after = np.asarray(losses[-third:])
    fall = float(before.mean() - after.mean())
    error = math.hypot(standard_error(list(before)), standard_error(list(after)))
    if fall > 3 * error and fall > share * abs(float(before.mean())):
        return True
    both = np.concatenate((before, after))
    time = np.arange(len(both)) - (len(both) - 1) / 2
    slope = float((time * both).sum() / (time**2).sum())
    rest = both - both.mean() - slope * time
    spread = float(rest.std()) / math.sqrt(float((time**2).sum()))
    return slope < -3 * spread


def on_its_way(training: Training) -> bool:
    """Whether the loss is :func:`still_falling`, or falls on the same fixed batches all the time.

    These scatter less than the losses of the stream: a slow fall shows there first. It must be
    0.5% over the last three evaluations.
    """
    if still_falling(training.losses):
        return True
    fixed = [moment.fixed.loss for moment in training.moments[-3:]]
    falls = len(fixed) == 3 and fixed[0] > fixed[1] > fixed[2]
    return falls and fixed[0] - fixed[2] > 0.005 * abs(fixed[0])


def curve_of_run(training: Training, title: str = "Loss during training") -> Curve:
    """Draw the losses of the run, smoothed, and those of unseen batches where there are any."""
    losses = training.losses
    shown = [
        Series(name="training", x=tuple(x), y=tuple(y)) for x, y in [_thinned(losses)] if len(x)
    ]
    moments = [m for m in training.moments if math.isfinite(m.val.loss)]
    if moments:
        shown.append(
            Series(
                name="validation, eval mode",
                x=tuple(float(m.step) for m in moments),
                y=tuple(m.val.loss for m in moments),
            )
        )
    constant = training.constant
    return Curve(
        title=title,
        x_label="step",
        y_label="loss",
        series=tuple(shown),
        thresholds={"best constant": constant} if math.isfinite(constant) else {},
    )


def _thinned(losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of so many losses in a row that a chart can show them."""
    every = max(1, math.ceil(len(losses) / _POINTS))
    blocks = [losses[i : i + every] for i in range(0, len(losses), every)]
    return (
        [float(i * every) for i in range(len(blocks))],
        [sum(block) / len(block) for block in blocks],
    )
