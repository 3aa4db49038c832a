"""DATA113: targets that have nothing to do with the inputs."""

from __future__ import annotations

from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.first_steps import First, FirstSteps, is_given
from nnaudit.probes.label_signal import FEWEST, LabelSignal, Signal
from nnaudit.report import Evidence, Kind, Result, Table
from nnaudit.targets import batch as batches

ENOUGH = 200
"""Rows with which a signal worth learning would show in a table or in pictures."""
ENOUGH_TELLING = 50
"""So many of them must be outside the commonest class."""


class LabelSignals(Check):
    """Do the labels have something to do with the inputs?

    Why: Labels that were sorted, shuffled or shifted apart from their inputs can be learnt by heart
        and by nothing else. Training goes well, validation stays at chance, and it looks like
        overfitting.
    How: Predicts each of up to 768 training rows from the others, by its five nearest neighbours
        and by a ridge regression, on the inputs, their ranks, their spectrum, and their words. The
        null hypothesis is that targets are matched to inputs at random; the mean and variance of
        the agreement over all matchings are exact. z > 4 in any view shows a signal, z < 2 in all
        of them shows none. That warns where such a signal is to be expected: 200 rows or more of a
        picture, or of a table of measurements, 50 of them outside the commonest class. It never
        fails: a task can need more than distances (parity, comparing two inputs), or hold no signal
        at all. Where validation rows show what training rows do not, the training labels are at
        fault.
    Fix: Look at rows with their labels, in the report; shuffle inputs and labels with one
        permutation; join tables by a key, not by position.
    References: Mantel, The Detection of Disease Clustering and a Generalized Regression Approach
        (1967). Zhang et al., Understanding Deep Learning Requires Rethinking Generalization (2017).
    """

    code = "DATA113"
    name = "label-signal"
    kind = Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER, Needs.TARGETS, Needs.STEPS)
    probes = (LabelSignal, FirstSteps)
    consequence_of = ("DATA103",)
    options: ClassVar[dict[str, float]] = {"z": 4.0, "none": 2.0}

    def run(self, audit: Audit) -> Result:
        """Judge the clearest view."""
        signals = audit.probe(LabelSignal)
        seen, val = signals.train, signals.val
        if seen is None:
            return self.skipped(
                f"There are not {FEWEST} unlike rows of one shape with one target each."
            )
        if not _is_supervised(audit.probe(FirstSteps)):
            return self.skipped("No loss compares the output with the loader's targets.")
        best = max(seen.z, key=lambda view: seen.z[view])
        told = f"{best} agree with the labels at z = {seen.best:.1f} of {seen.rows:,} rows"
        if seen.best > self.option(audit, "z"):
            return self.passed(f"{told[0].upper()}{told[1:]}.", evidence=_table(seen))
        if seen.best > self.option(audit, "none"):
            return self.inconclusive(
                f"{told[0].upper()}{told[1:]}, neither chance nor clear.", evidence=_table(seen)
            )
        elsewhere = val is not None and val.best > self.option(audit, "z")
        enough = seen.rows >= ENOUGH and seen.telling >= ENOUGH_TELLING
        if elsewhere or (seen.smooth and enough):
            against = f", but of validation's at {val.best:.1f}" if val and elsewhere else ""
            return self.warned(
                f"Neither nearest neighbours nor a linear fit predict the labels of {seen.rows:,} "
                f"training rows better than shuffled labels (z = {seen.best:.1f}){against}: are "
                "they in the order of the inputs?",
                measured=f"z = {seen.best:.1f}",
                threshold=f"z > {self.option(audit, 'z'):g}",
                evidence=_table(seen),
                location=audit.loop.locate("train_loader"),
                fix="order = torch.randperm(len(x)); x, y = x[order], y[order]  # one for both",
            )
        return self.inconclusive(
            f"Nothing simple predicts the labels of {seen.rows:,} rows (z = {seen.best:.1f}), and "
            "with inputs of this kind it need not.",
            evidence=_table(seen),
        )


def _is_supervised(first: First) -> bool:
    """Whether a loss compares with the loader's targets, or with what may be made of them.

    One number per row that no field of the batch holds, as a value estimate, is another target.
    """
    return any(
        not call.compares
        or call.target.numel() != batches.size(first.batches[0])
        or is_given(call, first.batches[0])
        for call in (main.calls[0] for main in first.supervised)
    )


def _table(seen: Signal) -> tuple[Evidence, ...]:
    rows = tuple((name, z) for name, z in sorted(seen.z.items(), key=lambda each: -each[1]))
    columns = ("way of looking", "z against shuffled labels")
    return (Table(title="Labels against inputs", columns=columns, rows=rows),)
