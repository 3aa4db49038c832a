"""FIT105: how many examples can be fitted."""

from __future__ import annotations

import math

from nnaudit.checks.base import Check
from nnaudit.checks.fit.runs import GAP, capital, percent, series_of, trainable_layers
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.subset_scaling import SubsetFit, SubsetFits, SubsetScaling
from nnaudit.probes.subsets import TinyFitting
from nnaudit.report import Curve, Evidence, Kind, Result, Series, Table

FEW = 64
_ENOUGH = 100
"""A network that cannot fit this many examples is not limited by the data."""


class SubsetLadderFit(Check):
    """How many examples can the network fit in equal steps?

    Why: A network that fits 16 examples but not 256 has reached the limit of its capacity or of its
    optimizer; one that fits 1024 has capacity to spare, and the next concern is overfitting. The
    test tells the two apart before a long run does: first overfit, then overfit less.
    How: 16, 64, 256 and 1024 fixed examples, as they enter the network, are trained from the same
    initial weights for about 200 steps of 32 examples each, dropout off, at your learning rate (or
    the factor on it at which FIT101 fitted). Each subset is judged by the share of the loss gap
    that training closes: 0% is the best constant prediction, 100% the lowest loss that the targets
    allow. From 90% on it is fitted. It warns when a network with hidden layers closes less than 70%
    on 64 examples or fewer and its loss has stopped falling (less than 2% of the rest gained in the
    last quarter): healthy networks fit that many. How far 200 steps get depends on the task, so it
    is a judgement.
    - Fewer and smaller subsets are trained where steps are slow or the data set is small.
    - Where there was time for fewer than 100 steps, a subset that is not fitted proves nothing.
    Fix: make the network wider or deeper, or raise the learning rate, as FIT106 and FIT101 say.
    References: Zhang, Bengio, Hardt, Recht and Vinyals, "Understanding deep learning requires
    rethinking generalization" (ICLR 2017): networks memorise training sets; Josh Tobin,
    "Troubleshooting Deep Neural Networks" (Full Stack Deep Learning, 2019).
    """

    code, name, kind = "FIT105", "subset-ladder", Kind.JUDGEMENT
    needs = (Needs.TRAIN_LOADER, Needs.STEPS)
    probes = (TinyFitting, SubsetScaling)
    trains = True
    consequence_of = (
        "FIT101", "DATA101", "DATA102", "DATA103", "DATA111", "LOSS101", "LOSS102", "GRAD102",
        "GRAD101", "GRAD106", "GRAD107", "MODE101", "INIT101",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Say where fitting stops."""
        scaling = audit.probe(SubsetScaling)
        if not scaling.subset_fits:
            return self.inconclusive(f"The subset-size test was inconclusive: {scaling.reason}.")
        evidence = _evidence(scaling)
        cut = f". Note: {scaling.cut}" if scaling.cut else ""
        limit = next(
            (subset_fit for subset_fit in scaling.subset_fits if not subset_fit.fitted), None
        )
        closed = ", ".join(
            f"{_closed(subset_fit)} on {subset_fit.rows}" for subset_fit in scaling.subset_fits
        )
        said = f"share of the loss gap closed in {scaling.steps} steps: {closed} ({GAP})"
        if limit is None:
            top = scaling.subset_fits[-1].rows
            return self.passed(
                f"All subsets up to {top} examples were fitted. {capital(said)}{cut}.",
                evidence=evidence,
            )
        if limit.falling() or limit.run.cut:
            return self.passed(
                f"The loss on {limit.rows} examples is still falling. {capital(said)}{cut}.",
                evidence=evidence,
            )
        return self._stopped(audit, scaling, limit, f"{said}{cut}")

    def _stopped(self, audit: Audit, scaling: SubsetFits, limit: SubsetFit, said: str) -> Result:
        evidence = _evidence(scaling)
        where = f"The network cannot fit {limit.rows} examples"
        tiny = audit.probe(TinyFitting)
        if not tiny.fits(tiny.best):
            return self.noted(f"{where}, see FIT101. {capital(said)}.", evidence=evidence)
        if scaling.steps < _ENOUGH:
            return self.inconclusive(
                f"{where} in {scaling.steps} steps, too few for a verdict (steps are slow). "
                f"{capital(said)}.",
                evidence=evidence,
            )
        small = limit.rows <= FEW and trainable_layers(audit.loop.model) > 1
        if small and not limit.bounds.reconstruction and limit.closed < 0.7:
            return self.warned(
                f"{where}, and the loss has stopped falling. {capital(said)}.",
                measured=f"{_closed(limit)} on {limit.rows} examples",
                threshold="90% on 64 examples",
                evidence=evidence,
                location=audit.loop.locate("model"),
                fix="make the hidden layers wider (see FIT106), or change the learning rate (see "
                "FIT101)",
            )
        return self.noted(f"{where}. {capital(said)}.", evidence=evidence)


def _evidence(scaling: SubsetFits) -> tuple[Evidence, ...]:
    """Draw and list how far each subset was fitted."""
    subset_fits = scaling.subset_fits
    rows = tuple(float(subset_fit.rows) for subset_fit in subset_fits)
    closed = tuple(min(max(subset_fit.closed, -1.0), 1.0) for subset_fit in subset_fits)
    return (
        Curve(
            title="Share fitted by size of the subset",
            x_label="examples",
            y_label="share of the loss gap closed",
            series=(Series(name="after training", x=rows, y=closed),),
            thresholds={"fitted": 0.9},
            log_x=True,
            shares=True,
        ),
        Curve(
            title="Loss on each subset",
            x_label="passes over the examples",
            y_label="loss",
            series=tuple(series_of(subset_fit.run) for subset_fit in subset_fits),
        ),
        Table(
            title="The subsets",
            columns=(
                "examples",
                "steps",
                "first loss",
                "last loss",
                "best constant",
                "lowest possible",
            ),
            rows=tuple(
                (
                    subset_fit.rows,
                    subset_fit.run.steps,
                    subset_fit.run.initial,
                    subset_fit.final,
                    subset_fit.bounds.constant,
                    subset_fit.bounds.floor,
                )
                for subset_fit in subset_fits
            ),
        ),
    )


def _closed(subset_fit: SubsetFit) -> str:
    if not math.isfinite(subset_fit.closed):
        return "diverged"
    return percent(subset_fit.closed)
