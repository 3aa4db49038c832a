"""FIT103: the training loss must fall below that of the best constant prediction."""

from __future__ import annotations

import math
from typing import Any

from nnaudit.checks.base import Check
from nnaudit.checks.fit.stream import FEWEST, FinalLoss, curve_of_run, on_its_way
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Kind, Result

_LONG = 150


class LossDecreases(Check):
    """Does the training loss fall below that of the best constant prediction?

    Why: A falling loss is no proof of learning: most of the first fall is learning how often each
    class occurs, or the mean of the targets, which takes no input. A network that stays at the loss
    of the best constant prediction has learnt nothing from its inputs; one that stays above it does
    worse than ignoring them.
    How: Your own loop takes 300 steps on real batches (fewer where they are slow), dropout and
    augmentation on, at your learning rate; a planned warm-up is squeezed into the run. The mean
    loss of the last third is compared with the loss of the best constant prediction for the targets
    seen (for classes the entropy of their shares, for squared errors the variance). It passes when
    it is lower by four standard errors (about 3e-5 by chance) and by 1%. It warns when it is higher
    by four standard errors and 5% after 150 steps or more, in eval mode too, and no longer falling.
    - At the constant and no longer falling is a note: some tasks begin with a long plateau.
    - A loss that has hardly moved is a note: the learning rate may be small by design.
    - Where the loss is composite or hand-written, the best constant is unknown, and a fall from the
      first losses is enough.
    Fix: lower the learning rate where the loss is erratic; see FIT101 and FIT102 where it does not
    move.
    References: Andrej Karpathy, "A Recipe for Training Neural Networks" (2019), "verify loss @
    init" and "input-independent baseline"; Goodfellow, Bengio and Courville, "Deep Learning"
    (2016), section 11.5.
    """

    code, name, kind = "FIT103", "loss-decreases", Kind.JUDGEMENT
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS)
    probes = (TrainingRun,)
    trains = True
    consequence_of = (
        "FIT104", "FIT101", "DATA101", "DATA102", "DATA103", "DATA111", "LOSS101", "LOSS102",
        "LOSS104", "LOSS105", "GRAD101", "GRAD102", "GRAD106", "GRAD107", "GRAD108", "MODE101",
        "STEP101", "STEP102", "STEP104", "STEP107", "STEP109", "INIT101",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Hold the end of the run against the best constant."""
        training = audit.probe(TrainingRun)
        if training.ending:
            return self.inconclusive(training.ending)
        finite = [loss for loss in training.losses if math.isfinite(loss)]
        if len(finite) < len(training.losses):
            return self.inconclusive("Some losses of the run are NaN or infinite: see FIT104.")
        final = FinalLoss.of(training)
        details: dict[str, Any] = {"evidence": (curve_of_run(training), final.numbers())}
        said = f"Loss {final.start:.4g} to {final.mean:.4g} in {len(training.losses)} steps"
        if math.isnan(final.constant):
            return self._without_constant(training, final, said, details)
        said = f"{said} (best constant prediction: {final.constant:.4g})"
        if _all_alike(training) and not audit.loop.lacks(Needs.STEPS):
            return self.warned(
                f"All targets of {len(training.calls)} batches are the same, so there is nothing "
                f"to learn. {said}.",
                threshold="targets that differ",
                location=audit.loop.locate("train_loader"),
                fix="check how the dataset makes its targets: print(torch.unique(y))",
                **details,
            )
        if final.below:
            return self.passed(f"{said}.", **details)
        return self._not_below(audit, training, final, said, details)

    def _without_constant(
        self, training: Training, final: FinalLoss, said: str, details: dict[str, Any]
    ) -> Result:
        unknown = "The loss of a constant prediction is unknown, because yours is composite"
        if final.fell and len(training.losses) >= FEWEST:
            return self.passed(f"{said}. {unknown}.", **details)
        return self.inconclusive(f"{said}: not clearly falling. {unknown}.", **details)

    def _not_below(
        self,
        audit: Audit,
        training: Training,
        final: FinalLoss,
        said: str,
        details: dict[str, Any],
    ) -> Result:
        evaluated = _in_eval_mode(training)
        if evaluated < final.constant - 0.02 * abs(final.constant):
            return self.passed(f"{said}; in eval mode {evaluated:.4g}, below it.", **details)
        if reason := _undecided(audit, training):
            return self.inconclusive(f"{said}; {reason}.", **details)
        if not final.moved:
            return self.noted(
                f"{said}: it has hardly moved. See STEP109 for the learning rate.",
                **details,
            )
        if final.above and not evaluated < final.constant:
            return self.warned(
                f"{said}: it has stopped falling, and a network that ignores its inputs would do "
                "better.",
                measured=f"{final.mean:.4g}",
                threshold=f"below {final.constant:.4g}",
                location=audit.loop.locate("optimizer"),
                fix=f"lower the learning rate tenfold, to {max(training.rates) / 10:.2g}; if that "
                "changes nothing, print one batch with its targets and compute its loss by hand",
                **details,
            )
        return self.noted(f"{said}: nothing was learnt from the inputs in these steps.", **details)


def _undecided(audit: Audit, training: Training) -> str:
    """Say why a loss that is not below the constant's proves nothing; empty where it does."""
    if on_its_way(training):
        return "it is still falling"
    if audit.loop.lacks(Needs.STEPS) and not training.has_labels:
        return "that proves nothing, because the script makes its targets itself"
    if len(training.losses) < _LONG:
        return f"{_LONG} steps are needed for a verdict"
    return ""


def _all_alike(training: Training) -> bool:
    """Whether every target seen is one and the same, a class or a quantity."""
    if len(training.calls) < 2 or sum(training.rows) < 64:
        return False
    values = [call.target for call in training.calls.values()]
    first = values[0].reshape(-1)[:1]
    return all(bool((value == first).all()) for value in values) and first.numel() == 1


def _in_eval_mode(training: Training) -> float:
    """The last loss in eval mode; infinite without any.

    Of unseen batches where there are any: those it was trained on may be memorised.
    """
    last = training.moments[-1]
    known = [loss for loss in (last.val.loss, last.fixed.loss) if math.isfinite(loss)]
    return known[0] if known else math.inf
