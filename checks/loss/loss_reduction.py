"""LOSS103: whether the loss is a mean over the batch or a sum."""

from __future__ import annotations

import math

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.report import Kind, Numbers, Result
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError
from nnaudit.training.optimizers import is_scale_free

_CLOSE = 0.1
"""A sampled loss differs a little on the second copy of each row."""


class LossReduction(Check):
    """Is the loss a mean over the batch, so that its scale does not depend on the batch size?

    Why: A loss that is summed over the batch grows with it, and so do its gradients. With SGD the
        learning rate then means something else for every batch size, and the last, smaller batch of
        an epoch counts less. Mean and sum are both used by design; it is good to know which.
    How: Computes the loss of the first batch in eval mode, and again with every row in it twice. A
        mean stays the same and passes; a sum doubles (within 10%, as models that sample draw other
        numbers for the copies) and warns, or is noted where the optimizer's step does not depend on
        the scale of the loss (Adam). It never fails.
        - Inconclusive otherwise: the loss compares rows with each other, or mixes sums and means.
        - Where rows cannot be doubled, the `reduction` of the loss function that makes up the total
          loss decides.
    Fix: `loss = loss / len(x)`: the total, not one of several terms, whose balance would change.
        With SGD multiply the learning rate by the batch size to keep the same steps; the step of
        Adam does not scale.
    References: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.1.
    """

    code, name, kind = "LOSS103", "loss-reduction", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)

    def run(self, audit: Audit) -> Result:
        """Double the first batch."""
        first = audit.probe(FirstSteps)
        batch = first.batches[0]
        ratio, size = _ratio(audit, batch), batches.size(batch)
        if ratio is None:
            return self._declared(audit, first, size)
        numbers = Numbers(title="Loss with every row twice", values={"ratio": ratio})
        details = {"measured": f"{ratio:.4g} times the loss", "evidence": (numbers,)}
        if abs(ratio - 1.0) < _CLOSE:
            return self.passed(
                "The loss is a mean over the batch: doubling the batch does not change it.",
                **details,
            )
        if abs(ratio - 2.0) < 2 * _CLOSE:
            return self._sum(audit, size, f"doubling the batch multiplies it by {ratio:.2f}", first)
        return self.inconclusive(
            f"Doubling the batch multiplies the loss by {ratio:.2f}: it compares rows with each "
            "other, or is partly a sum.",
            **details,
        )

    def _declared(self, audit: Audit, first: First, size: int) -> Result:
        main = first.main_loss
        if main is None or main.formula is not None:
            return self.inconclusive(
                "Not measured: the batch cannot be doubled, and the loss is not a known function."
            )
        reduction = main.calls[0].reduction
        if reduction == "sum":
            return self._sum(audit, size, 'reduction="sum"', first)
        if reduction in ("mean", "batchmean"):
            return self.passed(f"The loss is a mean over the batch (reduction={reduction!r}).")
        return self.inconclusive(
            "Not measured: the batch cannot be doubled, and the loss is reduced by hand."
        )

    def _sum(self, audit: Audit, size: int, evidence: str, first: First) -> Result:
        names = [type(optimizer).__name__ for optimizer in audit.loop.optimizers]
        adaptive = bool(names) and all(map(is_scale_free, audit.loop.optimizers))
        rate = max((g["lr"] for o in audit.loop.optimizers for g in o.param_groups), default=0.0)
        if adaptive:
            effect = (
                f"{names[0]}'s step does not scale with the loss, but gradient clipping is "
                "affected and a smaller last batch counts less"
            )
        else:
            effect = (
                f"lr={float(rate):g} acts like lr={float(rate) * size:g} on the mean of {size} "
                "rows, and must be lowered for larger batches"
            )
        main = first.main_loss
        where = main.calls[0].location if main is not None else None
        answer = self.noted if adaptive else self.warned
        return answer(
            f"The loss is a sum over the batch ({evidence}): {effect}.",
            fix="loss = loss / len(x)"
            if adaptive
            else "loss = loss / len(x)  # and multiply the learning rate by the batch size",
            measured=evidence,
            threshold="a mean: unchanged",
            location=where or audit.loop.locate("loss") or audit.loop.locate("training_step"),
        )


def _ratio(audit: Audit, batch: object) -> float | None:
    """Return the loss of the doubled batch over that of the batch; None if it cannot be had."""
    size = batches.size(batch)
    if size < 1:
        return None
    try:
        doubled = batches.rows(batch, [*range(size), *range(size)])
        once, twice = audit.loop.forward(batch).loss, audit.loop.forward(doubled).loss
    except (NotSliceableError, UserCodeError, RuntimeError, IndexError):
        return None
    if once is None or twice is None or not (math.isfinite(once) and math.isfinite(twice)):
        return None
    return twice / once if abs(once) > 1e-12 else None
