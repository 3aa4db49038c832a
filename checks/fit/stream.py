"""What the checks of this family read off the run on the real stream, and how they draw it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from nnaudit.probes.training_run import Training
from nnaudit.report import Curve, Series

FEWEST = 60
"""Steps below which a run shows nothing about where the loss is going."""

_POINTS = 150


def standard_error(losses: Sequence[float]) -> float:
    """Of the mean of ``losses``: batches are drawn anew, so their losses are held independent."""
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


def curve_of_run(training: Training, title: str = "Loss on the real stream") -> Curve:
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
