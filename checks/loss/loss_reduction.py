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
    """Is the loss a mean over the batch, so that the learning rate does not depend on its size?

    Why: A loss that is summed over the batch grows with it, and so do its gradients. With SGD the
        learning rate then means something else for every batch size, and the last, smaller batch
        of an epoch counts less. Both mean and sum are used on purpose; it is good to know which.
    How: The loss of the first batch is computed in eval mode, and again for the batch with
        every row in it twice. A mean stays, a sum doubles (within 10 %, as models that sample
        draw other numbers for the copies). In between, or beyond, the loss compares rows with
        each other or mixes sums with means, and there is no answer. Where rows cannot be doubled,
        the `reduction` of the loss function that explains the total loss answers. Never a
        failure: both are valid, and a sum is a warning. No training steps beyond the first 5.
    Fix: divide the loss by the number of rows, `loss = loss / len(x)`, and where the optimizer's
        step follows the size of the gradient (SGD) multiply the learning rate by it. A mean over
        elements instead (`reduction="mean"`) would change the weight of one term against another.
    References: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.1.
    """

    code, name, kind = "LOSS103", "loss-reduction", Kind.JUDGEMENT
    needs = (Needs.STEPS,)
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
                "The loss is a mean over the batch: doubling the batch leaves it as it is.",
                **details,
            )
        if abs(ratio - 2.0) < 2 * _CLOSE:
            return self._sum(audit, size, f"doubling the batch makes it {ratio:.2f} times", first)
        return self.inconclusive(
            f"Doubling the batch makes the loss {ratio:.2f} times: it compares rows with each "
            "other, or is partly a sum.",
            **details,
        )

    def _declared(self, audit: Audit, first: First, size: int) -> Result:
        main = first.main_loss
        if main is None or main.formula is not None:
            return self.inconclusive("The batch cannot be doubled and the loss is not a known one.")
        reduction = main.calls[0].reduction
        if reduction == "sum":
            return self._sum(audit, size, 'reduction="sum"', first)
        if reduction in ("mean", "batchmean"):
            return self.passed(f"The loss is a mean over the batch (reduction={reduction!r}).")
        return self.inconclusive("The batch cannot be doubled, and the loss is reduced by hand.")

    def _sum(self, audit: Audit, size: int, evidence: str, first: First) -> Result:
        names = [type(optimizer).__name__ for optimizer in audit.loop.optimizers]
        adaptive = bool(names) and all(map(is_scale_free, audit.loop.optimizers))
        rate = max((g["lr"] for o in audit.loop.optimizers for g in o.param_groups), default=0.0)
        if adaptive:
            effect = (
                f"{names[0]} divides by the size of the gradient, so its step stays; clipping and "
                "the smaller last batch are affected"
            )
        else:
            effect = (
                f"lr {float(rate):g} acts like {float(rate) * size:g} on the mean of {size} rows, "
                "and a larger batch needs a smaller one"
            )
        main = first.main_loss
        where = main.calls[0].location if main is not None else None
        answer = self.noted if adaptive else self.warned
        fix = "Divide the loss by the number of rows: loss = loss / len(x)"
        if not adaptive:
            fix += f", and multiply the learning rate by {size}"
        return answer(
            f"The loss is a sum over the batch ({evidence}): {effect}.",
            fix=f"{fix}.",
            measured=evidence,
            threshold="a mean: 1 times",
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
