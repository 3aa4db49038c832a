"""What the checks of this family say and show about runs on fixed rows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from nnaudit.report import Curve, Series
from nnaudit.training.fitting import RowEvaluation, Run

_POINTS = 120


def curve_of(title: str, runs: Iterable[Run], evaluation: RowEvaluation) -> Curve:
    """Draw the runs' losses by pass over the rows, with what the rows allow."""
    bounds = evaluation.bounds
    thresholds = {}
    if bounds is not None:
        thresholds = {
            "best constant": bounds.constant,
            "fitted": bounds.level(evaluation.loss),
            "floor": bounds.floor,
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
    """Say from where to where the loss went, and how much of the way that is."""
    final = f"{run.final:.4g}" if math.isfinite(run.final) else "NaN or infinity"
    said = f"the loss went from {evaluation.loss:.4g} to {final}"
    bounds = evaluation.bounds
    if bounds is None:
        return said
    way = max(evaluation.loss, bounds.constant) - bounds.floor
    closed = (max(evaluation.loss, bounds.constant) - run.final) / max(way, 1e-30)
    closed = min(max(closed, 0.0), 1.0) if math.isfinite(run.final) else 0.0
    return f"{said}, {100 * closed:.0f} % of the way to the floor of {bounds.floor:.3g}"


def trainable_layers(model: nn.Module) -> int:
    """Count the weights with two or more dimensions that are trained: layers that mix inputs."""
    return sum(p.requires_grad and p.ndim >= 2 for p in model.parameters())


def capital(text: str) -> str:
    """Return ``text`` as the beginning of a sentence."""
    return text[:1].upper() + text[1:]
