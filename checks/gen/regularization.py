"""GEN101: the gap between training and validation loss, and how to reduce it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.overfitting_factors import OverfittingFactor, OverfittingFactors, next_factor
from nnaudit.probes.training_run import EvalPoint, Training, TrainingRun
from nnaudit.report import Curve, Kind, Numbers, Result, Series, Table
from nnaudit.targets import batch as batches

ENOUGH = 100
"""Rows of which the mean loss is taken as it is where no batches tell how much it varies."""


@dataclass(frozen=True)
class Gap:
    """How far validation loss lies above training loss at the end of a run.

    Attributes:
        share: of what was learnt on training batches, the part that validation batches lack.
        rise: by how much validation is above its best, in what it had gained at its best.
        certain: the rise is more than three standard errors of the validation batches' mean, or
            its batches are one or two and hold at least :data:`ENOUGH` rows.
    """

    share: float
    rise: float
    certain: bool

    @classmethod
    def of(cls, moments: tuple[EvalPoint, ...], rows: int = ENOUGH) -> Gap | None:
        """Return the gap at the end of ``moments``; None where nothing was learnt.

        ``rows`` is how many there are in the validation batches.
        """
        first, last = moments[0], moments[-1]
        learnt = first.val.loss - last.fixed.loss
        best = min(moments, key=lambda moment: moment.val.loss)
        gained = first.val.loss - best.val.loss
        if not math.isfinite(learnt + gained) or learnt <= 0:
            return None
        up = last.val.loss - best.val.loss
        differences = [b - a for a, b in zip(best.val.losses, last.val.losses, strict=False)]
        error = 0.0 if rows >= ENOUGH else math.inf
        if len(differences) > 2:
            error = statistics.stdev(differences) / math.sqrt(len(differences))
        rise = up / gained if gained > 0 else float("inf") if up > 0 else 0.0
        return cls((last.val.loss - last.fixed.loss) / learnt, rise, up > 3 * error)


class Regularization(Check):
    """Does what is learnt on training data carry over to validation data?

    Why: A network that can fit its data will next memorise it. The order in which to try remedies
        is known from practice: more data always helps, augmentation makes some, normalisation costs
        almost nothing, weight decay and dropout cost a little fit, and less capacity comes last,
        because the others need it.
    How: The loss in eval mode on training batches that were trained on is compared with that on
        validation batches, at five points of one run of a few hundred steps. The gap between them
        is given as a share of what was learnt on the training batches, counted from the first
        validation loss. Below the option `gap` it passes, above it is a note. It warns where
        validation has also risen from its best by more than the option `rise` (a share of what it
        had gained) and by three standard errors.
        - No verdict where the two losses differ before training: they measure different things.
        - The fix names the first method of the table that is not in use: augmentation,
          normalisation, weight decay and dropout, less capacity. The table is read from the real
          objects: rows, items looked up twice, modules, optimizer groups.
        - Where the training loss itself is hardly below that of the best constant prediction, the
          fix is to fit the training data first.
    Fix: the line that the table marks as next, for example
        torch.optim.AdamW(model.parameters(), lr=..., weight_decay=0.01).
    References: Goodfellow et al., Deep Learning, chapter 7; Loshchilov and Hutter, "Decoupled
        Weight Decay Regularization" (2019); Srivastava et al., Dropout (JMLR 15, 2014).
    """

    code, name, kind = "GEN101", "regularization", Kind.JUDGEMENT
    needs = (Needs.STEPS, Needs.VAL_LOADER)
    probes = (TrainingRun, OverfittingFactors)
    trains = True
    options: ClassVar[dict[str, float]] = {"gap": 0.2, "rise": 0.1}

    def run(self, audit: Audit) -> Result:
        """Measure the gap and read what is in use against it."""
        training = audit.probe(TrainingRun)
        factors = audit.probe(OverfittingFactors)
        moments = tuple(m for m in training.moments if m.val.losses and m.fixed.losses)
        advised = next_factor(factors)
        evidence = (*_curves(moments), *_numbers(moments), _table(factors, advised))
        if len(moments) < 2 or training.ending:
            said = training.ending or _not_compared(training)
            return self.inconclusive(said, evidence=evidence)
        first, last = moments[0], moments[-1]
        if not _comparable(first):
            return self.inconclusive(
                f"Before training the loss is {first.fixed.loss:.3g} on training batches and "
                f"{first.val.loss:.3g} on validation batches: they measure different things, so "
                "their gap means nothing.",
                evidence=evidence,
            )
        gap = Gap.of(moments, sum(batches.size(batch) for batch in training.val))
        if gap is None:
            return self.inconclusive(
                f"In {last.step} steps the training loss did not fall below that of the untrained "
                "network, so there is no overfitting to judge.",
                evidence=evidence,
            )
        return self._verdict(audit, gap, training, advised, evidence)

    def _verdict(
        self,
        audit: Audit,
        gap: Gap,
        training: Training,
        advised: OverfittingFactor,
        evidence: tuple[Any, ...],
    ) -> Result:
        last = training.moments[-1]
        told = (
            f"After {last.step} steps, in eval mode: loss {last.fixed.loss:.3g} on training "
            f"batches, {last.val.loss:.3g} on validation batches"
        )
        details: dict[str, Any] = {
            "measured": f"a gap of {100 * max(gap.share, 0.0):.0f}% of what was learnt",
            "threshold": f"{100 * self.option(audit, 'gap'):.0f}%",
            "evidence": evidence,
        }
        if gap.share < self.option(audit, "gap"):
            return self.passed(f"{told}.", **details)
        advice = f"get more data or, if you cannot, try {advised.name} next: {advised.line}"
        if _hardly_learnt(training):
            advice = (
                "make the network fit its training data first (see FIT101 and FIT103): the "
                "training loss has hardly fallen yet, and regularising would slow it further"
            )
        if gap.rise > self.option(audit, "rise") and gap.certain:
            return self.warned(
                f"{told}. The validation loss has risen from its best value: the network overfits.",
                fix=advice,
                location=audit.loop.locate("optimizer"),
                **details,
            )
        return self.noted(
            f"{told}. {100 * gap.share:.0f}% of what was learnt on training data does not carry "
            "over to validation data.",
            fix=advice,
            **details,
        )


def _hardly_learnt(training: Training) -> bool:
    """Whether the training loss is less than 5% below its start and the best constant's loss."""
    known = [training.moments[0].fixed.loss, training.constant]
    least = min(loss for loss in known if math.isfinite(loss))
    return least - training.moments[-1].fixed.loss < 0.05 * abs(least)


def _comparable(first: EvalPoint) -> bool:
    """Whether both losses are similar before anything was learnt.

    Within a quarter, or within what their batches differ among themselves.
    """
    spread = statistics.pstdev((*first.fixed.losses, *first.val.losses))
    scale = max(abs(first.fixed.loss), abs(first.val.loss))
    return abs(first.fixed.loss - first.val.loss) <= max(0.25 * scale, 2 * spread)


def _curves(moments: tuple[EvalPoint, ...]) -> tuple[Curve, ...]:
    if len(moments) < 2:
        return ()
    steps = tuple(float(moment.step) for moment in moments)
    lines = {
        "training batches": tuple(moment.fixed.loss for moment in moments),
        "validation batches": tuple(moment.val.loss for moment in moments),
    }
    return (
        Curve(
            title="Loss in eval mode during training",
            x_label="step",
            y_label="loss",
            series=tuple(Series(name=name, x=steps, y=y) for name, y in lines.items()),
        ),
    )


def _numbers(moments: tuple[EvalPoint, ...]) -> tuple[Numbers, ...]:
    """Where validation ended, with the standard error of the mean of its batches."""
    losses = moments[-1].val.losses if moments else ()
    if len(losses) < 3:
        return ()
    name, noise = "validation loss", statistics.stdev(losses) / math.sqrt(len(losses))
    values = {name: moments[-1].val.loss}
    return (Numbers(title="At the end of the run", values=values, noise={name: noise}),)


def _table(factors: tuple[OverfittingFactor, ...], advised: OverfittingFactor) -> Table:
    words = {True: "yes", False: "no", None: ""}
    return Table(
        title="Ways to reduce overfitting, in the order to try them",
        columns=("method", "in use", "setting", "line to write"),
        rows=tuple(
            (
                each.name,
                words[each.on],
                each.setting,
                f"{'next: ' if each is advised else ''}{each.line}",
            )
            for each in factors
        ),
    )


def _not_compared(training: Training) -> str:
    """Say why there are no two moments at which both losses are known."""
    for which, seen in (
        ("training", [moment.fixed for moment in training.moments]),
        ("validation", [moment.val for moment in training.moments]),
    ):
        if not any(result.losses for result in seen):
            return f"The loss of {which} batches cannot be computed with the network in eval mode."
    return "The run was too short to compare the losses on training and validation batches."
