"""FIT107: how far the loss drops when examples are seen for the second time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnaudit.checks.base import Check
from nnaudit.checks.fit.stream import curve_of_run
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Kind, Result
from nnaudit.stats import permutation_test
from nnaudit.targets import batch as batches
from nnaudit.wording import count

_FEWEST, _MOST = 7, 50
_ALPHA = 1e-3
_LITTLE, _MUCH = 0.05, 0.3


@dataclass(frozen=True)
class Boundary:
    """The losses around the end of the first epoch.

    Attributes:
        before: the mean loss of the last batches of epoch 1.
        after: the mean loss of as many first batches of epoch 2.
        trend: by how much the loss fell over as many batches within epoch 1, never below 0.
        p: the chance of such a drop beyond the trend, when the losses are exchangeable.
        batches: how many there are on either side.
    """

    before: float
    after: float
    trend: float
    p: float
    batches: int

    @property
    def share(self) -> float:
        """The drop beyond the trend, in sizes of the loss before it."""
        return (self.before - self.after - self.trend) / max(abs(self.before), 1e-12)


def boundary_of(training: Training, rng: np.random.Generator) -> Boundary | None:
    """Compare the end of epoch 1 with the start of epoch 2; None with too few batches.

    Each side has a third of an epoch, 7 to 50 batches.
    """
    if len(training.epoch_starts) < 2:
        return None
    end = training.epoch_starts[1]
    second = training.epoch_starts[2] if len(training.epoch_starts) > 2 else len(training.losses)
    count = min(end // 3, second - end, _MOST)
    if count < _FEWEST:
        return None
    losses = np.asarray(training.losses)
    earlier, before, after = (
        losses[end - 2 * count : end - count],
        losses[end - count : end],
        losses[end : end + count],
    )
    trend = max(float(earlier.mean() - before.mean()), 0.0)
    p = permutation_test(before - trend, after, rng)
    return Boundary(float(before.mean()), float(after.mean()), trend, p, count)


class Memorisation(Check):
    """Has the network memorised its examples by the second epoch?

    Why: In the first epoch every example is new, so its loss is that of unseen data. Where the
    loss drops from the last batches of epoch 1 to the first of epoch 2, it does so because the
    examples are seen again: the network has begun to memorise them, and from here on the training
    loss says less about unseen data.
    How: The mean loss of the last third of epoch 1 (7 to 50 batches) is compared with that of as
    many batches at the start of epoch 2; each loss is taken before its update. The trend within
    epoch 1 is subtracted, and a permutation test of the means (10,000 permutations) gives the
    chance of such a drop. With p below 1 in 1,000, a drop of 5% of the loss or more is a note, of
    30% or more a warning; a healthy network retains less of one pass.
    - Not judged with several optimizers, as of a GAN, whose losses rise and fall with one another.
    - Not judged where an epoch has fewer than 21 batches or does not end within the run.
    - Not judged where the learning rate changes at the boundary, or where the order is fixed, so
      that the end of an epoch holds other data than its start.
    Fix: more data, augmentation, weight decay or dropout, or fewer epochs.
    References: Arpit et al., "A Closer Look at Memorization in Deep Networks" (ICML 2017); Phipson
    and Smyth, "Permutation P-values should never be zero" (2010).
    """

    code, name, kind = "FIT107", "memorisation", Kind.JUDGEMENT
    needs = (Needs.TRAIN_LOADER, Needs.STEPS)
    probes = (TrainingRun,)
    trains = True
    consequence_of = ("DATA104", "FIT104", "FIT102")

    def run(self, audit: Audit) -> Result:
        """Look for a drop at the end of the first epoch."""
        training = audit.probe(TrainingRun)
        reason = _why_opposed(audit.loop) or _why_not(audit.loop, training)
        if reason:
            return self.inconclusive(reason)
        found = boundary_of(training, np.random.default_rng(audit.seed))
        if found is None:
            return self.inconclusive(
                f"Fewer than {_FEWEST} batches lie on each side of the end of the first epoch, too "
                "few to compare."
            )
        said = (
            f"Mean loss of the last {found.batches} batches of epoch 1: {found.before:.4g}; of the "
            f"first {found.batches} of epoch 2: {found.after:.4g}"
        )
        details: dict[str, Any] = {"evidence": (curve_of_run(training),)}
        if found.p > _ALPHA or found.share < _LITTLE:
            return self.passed(f"{said}. That is within the trend of epoch 1.", **details)
        details |= {
            "measured": f"a drop of {100 * found.share:.0f}% beyond the trend, p = {found.p:.1g}",
            "threshold": f"{100 * _MUCH:.0f}%",
        }
        if found.share < _MUCH:
            return self.noted(f"{said}. The network has begun to memorise its examples.", **details)
        return self.warned(
            f"{said}. The network has memorised its examples in one pass.",
            location=audit.loop.locate("train_loader"),
            fix="use more data or augmentation, add weight decay or dropout, or stop after one "
            "epoch",
            **details,
        )


def _why_opposed(loop: Loop) -> str:
    """Say that networks may train against each other; empty with one optimizer."""
    if len(loop.optimizers) < 2:
        return ""
    return "Several optimizers: losses of networks that train against each other rise and fall."


def _why_not(loop: Loop, training: Training) -> str:
    """Return why the boundary cannot be judged; empty where it can."""
    if not all(math.isfinite(loss) for loss in training.losses):
        return "Some losses of the run are NaN or infinite: see FIT104."
    if len(training.epoch_starts) < 2:
        return f"The first epoch did not end within {count(len(training.losses), 'step')}."
    end = training.epoch_starts[1]
    near = training.rates[max(end - _MOST, 0) : end + _MOST]
    if training.warmed or max(near) > 1.2 * min(near):
        return "The learning rate changes around the end of the first epoch."
    if loop.epoch_per_step or end < 3 * _FEWEST:
        return f"An epoch has {end} batches, and at least {3 * _FEWEST} are needed."
    if _first_digest(loop) == batches.digest(training.fixed[0]) == _first_digest(loop):
        return "Every epoch begins with the same batch, so its end may be harder than its start."
    return ""


def _first_digest(loop: Loop) -> str:
    return batches.digest(next(iter(loop.batches())))
