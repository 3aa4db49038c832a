"""DATA113: targets that have nothing to do with the inputs."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.told_targets import Told, told_target
from nnaudit.probes.first_steps import First, FirstSteps, is_given
from nnaudit.probes.label_signal import FEWEST, LabelSignal, Signal
from nnaudit.report import Evidence, Kind, Result, Table
from nnaudit.targets import batch as batches

ENOUGH = 200
"""Rows with which a signal worth learning would show in a table or in pictures."""
_EXPECTED = 10.0
"""Deviations to be expected on validation from which on finding fewer than two is no chance."""

ENOUGH_TELLING = 50
"""So many of them must be outside the commonest class."""


class LabelSignals(Check):
    """Can the labels be predicted from the inputs?

    Why: Labels that were sorted, shuffled or shifted apart from their inputs can be memorised and
        nothing else. Training goes well, validation stays at chance, and it looks like overfitting.
    How: Predicts each of up to 768 training rows from the others, with its five nearest neighbours
        and with ridge regression, on the raw inputs, their ranks, their spectrum, and their word
        counts. The null hypothesis is that targets are matched to inputs at random; the mean and
        variance of the agreement over all matchings are exact.
        - Passes when any view has a z score above `z`.
        - Warns when all views stay below `none` where a signal is to be expected: 200 rows or more
          of pictures or of a table of measurements, 50 of them outside the commonest class; or
          where validation rows show a signal that training rows do not.
        - Warns when the rows of a training table show a signal so clear that 10 deviations are to
          be expected of validation's rows (200 or more), and these stay below `none`.
        - Warns when a column of a table of numbers, one of several, is the target under another
          name: it takes one value for each class and another for each other class, or is the
          target of a regression up to scale and offset, in all rows read of training and of
          validation. Chance would have to deal all of 100 rows or more; but a task may be as easy.
        - Warns when a target that the loss compares with is bit for bit a number of the row's
          inputs, in all of 100 rows, and not most of the row's targets are (as in reconstruction):
          a forecast that begins with the last step of its window.
        - Two inputs of one shape may be compared, and then neither alone tells the label: of such
          batches only validation's signal counts.
        - Never fails: a task can need more than distances (parity, comparing two inputs), or hold
          no signal at all.
    Fix: Look at rows with their labels, in the report; shuffle inputs and labels with the same
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
        """Look for the target among the inputs, then for what the inputs have to do with it."""
        if (told := _told(audit.probe(FirstSteps))) is not None:
            return self._told(audit, told)
        signals = audit.probe(LabelSignal)
        seen, val = signals.train, signals.val
        if seen is None:
            return self.skipped(
                f"Needs {FEWEST} different rows of equal shape with one target each."
            )
        if not _is_supervised(audit.probe(FirstSteps)):
            return self.skipped("No loss compares the output with the loader's targets.")
        if seen.answers and (val is None or val.answers):
            return self._answered(audit, seen)
        return self._judged(audit, seen, val)

    def _judged(self, audit: Audit, seen: Signal, val: Signal | None) -> Result:
        """Judge the clearest view."""
        best = max(seen.z, key=lambda view: seen.z[view])
        told = f"z = {seen.best:.1f} for {best}, {seen.rows:,} rows"
        if val is not None and self._only_in_training(audit, seen, val):
            return self._lost(audit, seen, val)
        if seen.best > self.option(audit, "z"):
            return self.passed(
                f"The inputs predict the labels better than chance ({told}).", evidence=_table(seen)
            )
        if seen.best > self.option(audit, "none"):
            return self.inconclusive(
                f"The inputs predict the labels too weakly to tell from chance ({told}; above "
                f"{self.option(audit, 'z'):g} is clear).",
                evidence=_table(seen),
            )
        elsewhere = val is not None and val.best > self.option(audit, "z")
        enough = seen.rows >= ENOUGH and seen.telling >= ENOUGH_TELLING
        compared = _holds_pairs(audit.probe(FirstSteps))
        if elsewhere or (seen.smooth and enough and not compared):
            against = f", on validation z = {val.best:.1f}" if val and elsewhere else ""
            return self.warned(
                "Nearest neighbours and linear models predict the training labels no better than "
                f"shuffled labels (best z = {seen.best:.1f} over {seen.rows:,} rows{against}): "
                "inputs and labels may be misaligned.",
                measured=f"z = {seen.best:.1f}",
                threshold=f"z > {self.option(audit, 'z'):g}",
                evidence=_table(seen),
                location=audit.loop.locate("train_loader"),
                fix="order = torch.randperm(len(x)); x, y = x[order], y[order]  # same order",
            )
        return self.inconclusive(
            f"No simple model predicts the labels (best z = {seen.best:.1f} over {seen.rows:,} "
            "rows), which proves nothing for inputs of this kind.",
            evidence=_table(seen),
        )

    def _told(self, audit: Audit, seen: Told) -> Result:
        place = ", ".join(map(str, seen.place))
        which = f"Target {seen.number} of {seen.targets}" if seen.targets > 1 else "The target"
        last = len(seen.shape) > 1 and seen.place[0] == seen.shape[0] - 1
        return self.warned(
            f"{which} of each row is the number at [{place}] of its input batch{seen.path}, bit by "
            f"bit, in all of {seen.rows:,} rows: "
            + ("the last step of the window is to be forecast, " if last else "")
            + "which the network can copy.",
            measured=f"{seen.told} of {seen.targets} targets among the inputs",
            threshold="0",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="take the targets one step later: x[i : i + past], x[i + past : i + past + ahead]"
            if len(seen.shape) > 1
            else "leave that column out of the inputs",
        )

    def _only_in_training(self, audit: Audit, seen: Signal, val: Signal) -> bool:
        """Whether so many validation rows must show a signal if training's were theirs.

        The deviation grows at least with the root of the number of rows.
        """
        if (
            not (seen.table and val.table)
            or min(seen.rows, val.rows) < ENOUGH
            or val.telling < ENOUGH_TELLING
        ):
            return False
        expected = seen.best * min(val.rows / seen.rows, 1.0) ** 0.5
        return expected > _EXPECTED and val.best < self.option(audit, "none")

    def _lost(self, audit: Audit, seen: Signal, val: Signal) -> Result:
        return self.warned(
            f"What predicts the training labels (z = {seen.best:.1f}, {seen.rows:,} rows) predicts "
            f"those of validation no better than shuffled labels (z = {val.best:.1f}, "
            f"{val.rows:,} rows): inputs and labels are misaligned, in validation or in both, or a "
            "training column was made from the labels of its own rows.",
            measured=f"z = {val.best:.1f} on validation",
            threshold=f"z > {self.option(audit, 'none'):g}",
            evidence=_table(seen),
            location=audit.loop.locate("val_loader"),
            fix="join tables by a key, not by position; encode a category by other rows' targets "
            "(sklearn.preprocessing.TargetEncoder().fit_transform)",
        )

    def _answered(self, audit: Audit, seen: Signal) -> Result:
        path, column = seen.answers[0]
        return self.warned(
            f"Column {column} of {path} says the target: it takes one value for each of the "
            f"target's, and no other, in all of {seen.rows:,} rows. The network can read off what "
            "it is to predict.",
            measured=f"column {column} of {path}",
            threshold="no column of the inputs that is the target",
            evidence=_table(seen),
            location=audit.loop.locate("train_loader"),
            fix='features = table.drop(columns=["the target"])  # also what is known only later',
        )


def _told(first: First) -> Told | None:
    """Return a target of the main loss that the inputs hold."""
    for main in first.supervised:
        targets = [call.arguments.get("target") for call in main.calls if call.compares]
        known = [each for each in targets if isinstance(each, Tensor)]
        if len(known) == len(main.calls):
            found = told_target(first.batches, known)
            if found is not None:
                return found
    return None


def _holds_pairs(first: First) -> bool:
    """Whether two inputs of one shape come with each row: they may be compared."""
    shapes = [
        tensor.shape
        for _, tensor in batches.tensors(first.batches[0])
        if tensor.is_floating_point() and tensor.ndim > 1
    ]
    return len(set(shapes)) < len(shapes)


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
    columns = ("predictor", "z against shuffled labels")
    return (Table(title="Labels against inputs", columns=columns, rows=rows),)
