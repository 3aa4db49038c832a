"""FIT107: what the second epoch knows of the first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnaudit.checks.base import Check
from nnaudit.checks.fit.runs import capital
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
    """Does the network know the examples by heart when it meets them for the second time?

    Why: In the first epoch every example is new, so its loss is that of unseen data. Where the
    loss drops from the last batch of epoch 1 to the first of epoch 2, it is because the examples
    are met again: the network has begun to learn them by heart, and the training loss tells less
    about unseen data from here on.
    How: The losses of the last third of epoch 1 (7 to 50 batches) against as many at the start of
    epoch 2, each taken before its update. The hypothesis is that they differ by no more than the
    trend within epoch 1, which is taken off: then either side could be the other, and a permutation
    test of the means (10,000 permutations) gives the chance of such a drop. Below 1 in 1,000 and
    5 % of the loss it is a note, from 30 % on a warning; what a healthy network keeps of one visit
    is less. Nothing is said where an epoch has fewer than 21 batches or does not end within the
    run, where the learning rate changes at the boundary, and where the order is fixed, so that the
    end of an epoch is other data than its start.
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
        reason = _why_not(audit.loop, training)
        if reason:
            return self.inconclusive(reason)
        found = boundary_of(training, np.random.default_rng(audit.seed))
        if found is None:
            return self.inconclusive(
                "Too few batches lie on both sides of the end of an epoch for a comparison."
            )
        said = (
            f"the mean loss of the last {found.batches} batches of epoch 1 is {found.before:.4g}, "
            f"of the first {found.batches} of epoch 2 {found.after:.4g}"
        )
        details: dict[str, Any] = {"evidence": (curve_of_run(training),)}
        if found.p > _ALPHA or found.share < _LITTLE:
            return self.passed(f"{capital(said)}: no more than the trend of epoch 1.", **details)
        details |= {
            "measured": f"a drop of {100 * found.share:.0f} % beyond the trend, p = {found.p:.1g}",
            "threshold": f"{100 * _MUCH:.0f} %",
        }
        if found.share < _MUCH:
            return self.noted(
                f"{capital(said)}: some of what is met again is known by heart.", **details
            )
        return self.warned(
            f"{capital(said)}: what is met for the second time is known by heart.",
            location=audit.loop.locate("train_loader"),
            fix="more data or augmentation, weight decay or dropout, or stop after one epoch",
            **details,
        )


def _why_not(loop: Loop, training: Training) -> str:
    """Return why the boundary cannot be judged; empty where it can."""
    if not all(math.isfinite(loss) for loss in training.losses):
        return "Some losses of the run are no numbers: see FIT104."
    if len(training.epoch_starts) < 2:
        return f"The first epoch did not end within {count(len(training.losses), 'step')}."
    end = training.epoch_starts[1]
    near = training.rates[max(end - _MOST, 0) : end + _MOST]
    if training.warmed or max(near) > 1.2 * min(near):
        return "The learning rate changes around the end of the first epoch."
    if loop.epoch_per_step or end < 3 * _FEWEST:
        return f"An epoch has {end} batches, and at least {3 * _FEWEST} are needed."
    if _first_digest(loop) == batches.digest(training.fixed[0]) == _first_digest(loop):
        return "Every epoch begins with the same batch: its end may differ by nature."
    return ""


def _first_digest(loop: Loop) -> str:
    return batches.digest(next(iter(loop.batches())))
