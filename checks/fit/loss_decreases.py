"""FIT103: the loss on the real stream must fall below what a constant would do."""

from __future__ import annotations

import math
from typing import Any

from nnaudit.checks.base import Check
from nnaudit.checks.fit.runs import capital
from nnaudit.checks.fit.stream import FEWEST, Standing, curve_of_run, on_its_way
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Kind, Result

_LONG = 150


class LossDecreases(Check):
    """Does the loss on the real stream fall below what a constant prediction would cost?

    Why: A falling loss is no proof of learning: most of the first fall is learning how often each
    class occurs, or the mean of the targets, for which no input is needed. A network that stays
    above the loss of the best constant has learnt less than nothing, and one that stays at it has
    learnt nothing from the inputs.
    How: Your own loop takes 300 steps on real batches (fewer where they are slow), dropout and
    augmentation on, at your learning rate; a planned warm-up is squeezed into the run. The mean
    loss of the last third is held against the loss of the best constant prediction for the targets
    that came by (for classes the entropy of their shares, for squared errors the variance). Below
    means: by four standard errors of that mean, about 3e-5 by chance, and by one per cent, which
    is the least that is worth a word. Above, by four standard errors and 5 %, after 150 steps or
    more, in eval mode too and no longer falling, is a warning. At the constant and no longer
    falling is a note, for there are tasks that begin with a long plateau; so is a loss that has
    not moved, for that may be a small learning rate and patience. Where the loss is
    composite no constant is known, and a fall from its beginning is all that can be said.
    Fix: lower the learning rate where the loss jumps about; see FIT101 and FIT102 where it stands
    still.
    References: Andrej Karpathy, "A Recipe for Training Neural Networks" (2019), "verify loss @
    init" and "input-independent baseline"; Goodfellow, Bengio and Courville, "Deep Learning"
    (2016), section 11.5.
    """

    code, name, kind = "FIT103", "loss-decreases", Kind.JUDGEMENT
    needs = (Needs.TRAIN_LOADER, Needs.STEPS)
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
        if training.broke is not None:
            why = training.error or "the loss is no number any more"
            return self.inconclusive(f"The run ended at step {training.broke}: {why}.")
        finite = [loss for loss in training.losses if math.isfinite(loss)]
        if len(finite) < len(training.losses):
            return self.inconclusive("Some losses of the run are no numbers: see FIT104.")
        standing = Standing.of(training)
        details: dict[str, Any] = {"evidence": (curve_of_run(training), standing.numbers())}
        said = f"in {len(training.losses)} steps the loss went from {standing.start:.4g}"
        said = f"{said} to {standing.mean:.4g}"
        if math.isnan(standing.constant):
            return self._without_constant(training, standing, said, details)
        said = f"{said}; the best constant prediction costs {standing.constant:.4g}"
        if _all_alike(training):
            return self.warned(
                f"{capital(said)}: all targets of {len(training.calls)} batches are the same, "
                "so there is nothing to learn.",
                threshold="targets that differ",
                location=audit.loop.locate("train_loader"),
                fix="look at how the dataset makes its targets: print(torch.unique(y))",
                **details,
            )
        if standing.below:
            return self.passed(f"{capital(said)}.", **details)
        return self._not_below(audit, training, standing, said, details)

    def _without_constant(
        self, training: Training, standing: Standing, said: str, details: dict[str, Any]
    ) -> Result:
        unknown = "what a constant prediction would cost is not known, for the loss is composite"
        if standing.fell and len(training.losses) >= FEWEST:
            return self.passed(f"{capital(said)}; {unknown}.", **details)
        return self.inconclusive(f"{capital(said)}; {unknown}.", **details)

    def _not_below(
        self,
        audit: Audit,
        training: Training,
        standing: Standing,
        said: str,
        details: dict[str, Any],
    ) -> Result:
        evaluated = _in_eval_mode(training)
        if evaluated < standing.constant - 0.02 * abs(standing.constant):
            return self.passed(f"{capital(said)}; in eval mode it is {evaluated:.4g}.", **details)
        if on_its_way(training):
            return self.inconclusive(f"{capital(said)}; it is still falling.", **details)
        if len(training.losses) < _LONG:
            return self.inconclusive(f"{capital(said)}; so few steps show nothing.", **details)
        if not standing.moved:
            return self.noted(
                f"{capital(said)}: it has hardly moved; STEP109 asks for the learning rate.",
                **details,
            )
        if standing.above and not evaluated < standing.constant:
            return self.warned(
                f"{capital(said)}: it has stopped falling above what knowing nothing costs.",
                measured=f"{standing.mean:.4g}",
                threshold=f"below {standing.constant:.4g}",
                location=audit.loop.locate("optimizer"),
                fix=f"lower the learning rate, now {max(training.rates):.2g}, tenfold; where that "
                "changes nothing, look at one batch with its targets and at the loss by hand",
                **details,
            )
        return self.noted(
            f"{capital(said)}: in these steps nothing was learnt from the inputs.", **details
        )


def _all_alike(training: Training) -> bool:
    """Whether every target that came by is one and the same: of classes, or of quantities."""
    if len(training.calls) < 2 or sum(training.rows) < 64:
        return False
    values = [call.target for call in training.calls.values()]
    first = values[0].reshape(-1)[:1]
    return all(bool((value == first).all()) for value in values) and first.numel() == 1


def _in_eval_mode(training: Training) -> float:
    """The last loss in eval mode; infinite without any.

    Of unseen batches where there are any: those it was trained on may be known by heart.
    """
    last = training.moments[-1]
    known = [loss for loss in (last.val.loss, last.fixed.loss) if math.isfinite(loss)]
    return known[0] if known else math.inf
