"""The words and curves in which the checks of this family report runs on fixed rows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from nnaudit.report import Curve, Series
from nnaudit.training.fitting import RowEvaluation, Run

_POINTS = 120

GAP = "0% = best constant prediction, 100% = lowest possible loss"
"""What a share of the loss gap means, for a message that gives one."""


def curve_of(title: str, runs: Iterable[Run], evaluation: RowEvaluation) -> Curve:
    """Draw the runs' losses by pass over the rows, with the bounds of the loss on these rows."""
    bounds = evaluation.bounds
    thresholds = {}
    if bounds is not None:
        thresholds = {
            "best constant": bounds.constant,
            "fitted": bounds.level(evaluation.loss),
            "lowest possible": bounds.floor,
        }
    return Curve(
        title=title,
        x_label="passes over the examples",
        y_label="loss",
        series=tuple(series_of(run) for run in runs),
        thresholds=thresholds,
    )


def series_of(run: Run, name: str = "") -> Series:
    """Thin a run's losses out to what a chart can show, the last one always kept."""
    every = max(1, math.ceil(len(run.losses) / _POINTS))
    kept = sorted({*range(0, len(run.losses), every), len(run.losses) - 1})
    return Series(name=name or run.label, x=tuple(kept), y=tuple(run.losses[i] for i in kept))


def loss_words(run: Run, evaluation: RowEvaluation) -> str:
    """Say where the loss began and ended, and the loss at which the rows count as fitted."""
    said = f"loss {evaluation.loss:.4g} to {loss_value(run.final)} in {run.steps} steps"
    if evaluation.bounds is None:
        return said
    return f"{said} (target: below {evaluation.bounds.level(evaluation.loss):.4g})"


def loss_value(loss: float) -> str:
    """Write a loss that may be NaN or infinite."""
    return f"{loss:.4g}" if math.isfinite(loss) else "NaN or infinite"


def percent(share: float) -> str:
    """Write a share that may lie outside 0 to 1 or be unknown as a per cent."""
    return f"{100 * min(max(share, 0.0), 1.0):.0f}%" if not math.isnan(share) else "unknown"


def trainable_layers(model: nn.Module) -> int:
    """Count the weights with two or more dimensions that are trained: layers that mix inputs."""
    return sum(p.requires_grad and p.ndim >= 2 for p in model.parameters())


def capital(text: str) -> str:
    """Return ``text`` as the beginning of a sentence."""
    return text[:1].upper() + text[1:]
