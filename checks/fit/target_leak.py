"""FIT108: the label must not be among the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.checks.fit.predictions import told_of
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.losses import LossCall
from nnaudit.measure.permuted_labels import (
    Permuted,
    permuted_run,
    training_columns,
)
from nnaudit.measure.replicate import replicated
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Curve, Kind, Result, Series
from nnaudit.targets import batch as batches
from nnaudit.training.loss_bounds import CLASSIFICATION, REGRESSION

_FEWEST = 64
_PER_CLASS = 8
_MOST_COLUMNS = 200_000
_GOOD = 0.5


@dataclass(frozen=True)
class Column:
    """An input column that holds the target: which of the model's tensors, which element."""

    tensor: int
    element: int
    columns: int
    words: str


class TargetLeak(Check):
    """Is the label, or something made from it, among the inputs?

    Why: A network that is given the answer learns to read it off. Training and validation look
    perfect, and in use, where the answer is not known yet, nothing works: a target column left in
    the table, a window that reaches one step too far, a label passed to the model beside the
    input.
    How: Two questions, for programs with one target per example. First, up to 512 rows as they
    enter the network: is an element of the input the same for all examples of a class and, alone
    or with other such elements, different for every two classes (eight examples of each class and
    64 in all), or for quantities the target itself, but for scale and shift (a correlation of
    1 - 1e-9)? If labels were exchangeable between rows, one column of two values would agree with
    them in fewer than 1 of 10^9 cases, so both halves of the rows must show it. Second, where
    unseen examples are predicted well (half of the way or more): the labels of every batch are
    permuted anew, and 80 steps are taken on such batches by your own loop. What cannot see the
    labels cannot do better than the best constant, for they are drawn anew each time; a mean loss
    of the last half more than four standard errors and 10 % below it shows that the labels reach
    the network. It fails when this repeats with other weights and permutations.
    Fix: drop the column from the inputs, end the window one step before the target, and do not
    pass the target to the model.
    References: Kaufman, Rosset, Perlich and Stitelman, "Leakage in Data Mining" (2012); Kapoor and
    Narayanan, "Leakage and the reproducibility crisis in machine-learning-based science" (2023);
    Ojala and Garriga, "Permutation Tests for Studying Classifier Performance" (2010).
    """

    code, name, kind = "FIT108", "target-leak", Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER, Needs.STEPS, Needs.TARGETS)
    probes = (TrainingRun,)
    trains = True
    consequence_of = ("DATA102", "DATA103", "LOSS102")

    def run(self, audit: Audit) -> Result:
        """Look for a column first; train on permuted labels where the network predicts well."""
        training = audit.probe(TrainingRun)
        call = next(iter(training.moments[0].fixed.calls), None)
        if call is None or training.broke is not None:
            return self.inconclusive("The loss is not one comparison with the targets.")
        if not _one_each(call, batches.size(training.fixed[0])):
            return self.skipped("There is more than one target per example.")
        column = column_of(*training_columns(audit))
        if column is not None:
            return self._found(audit, column)
        told = told_of(training.moments[-1].val.calls or training.moments[-1].fixed.calls)
        if told is None or told.share < _GOOD:
            said = "unknown" if told is None else str(told)
            return self.passed(
                f"No input holds the target, and it is not predicted so well ({said}) that it "
                "must reach the network in another way."
            )
        paths = batches.paths_of(training.fixed[0], call.target)
        if len(paths) != 1:
            return self.inconclusive(
                "No input holds the target; the targets are made from the batch within the step, "
                "so they cannot be permuted."
            )
        return self._permuted(audit, training, paths[0])

    def _found(self, audit: Audit, column: Column) -> Result:
        where = f"element {column.element} of {column.columns}" if column.columns > 1 else "it"
        return self.failed(
            f"Input {column.tensor} of the network holds the target: {where} {column.words}.",
            measured=column.words,
            threshold="no input that is a function of the target alone",
            location=audit.loop.locate("train_loader"),
            fix=f"leave element {column.element} out of the inputs",
        )

    def _permuted(self, audit: Audit, training: Training, path: str) -> Result:
        first = permuted_run(audit, path)
        if not first.usable:
            return self.inconclusive("Too few steps could be taken on permuted labels.")
        details: dict[str, Any] = {"evidence": (_curve(first),)}
        said = (
            f"Trained for {len(first.losses)} steps on labels that are permuted in every batch, "
            f"the network costs {first.mean:.4g}, the best constant {first.constant:.4g}"
        )
        if not first.leaks:
            return self.passed(f"{said}: it does not see the labels.", **details)
        with replicated(audit) as other:
            again = permuted_run(other, path)
        if not again.leaks:
            return self.inconclusive(f"{said}; in another run {again.mean:.4g}.", **details)
        return self.failed(
            f"{said}, and in another run {again.mean:.4g}: the labels reach the network.",
            measured=f"{first.mean:.4g}",
            threshold=f"not below {first.constant:.4g}",
            location=audit.loop.locate("training_step") or audit.loop.locate("model"),
            fix="do not pass the target, or anything made from it, to the model",
            **details,
        )


def _one_each(call: LossCall, rows: int) -> bool:
    """Whether there is one class, or one quantity, per row."""
    if call.kind in CLASSIFICATION:
        return not call.target.is_floating_point() and call.target.shape == (rows,)
    elementwise = call.kind in REGRESSION or call.kind in ("bce", "bce_with_logits")
    return elementwise and call.target.numel() == rows


# --- a column that is the target ----------------------------------------------------------------


def column_of(inputs: Sequence[Tensor], target: Tensor) -> Column | None:
    """Return the first column of ``inputs`` (each (N, D)) that is the target (N,), or None.

    Both halves of the rows must show it. A single column in all is the task, and no leak.
    """
    if len(target) < _FEWEST or sum(t.shape[1] for t in inputs) < 2 or target.is_complex():
        return None
    half = len(target) // 2
    for which, values in enumerate(inputs):
        if values.is_complex() or values.shape[1] > _MOST_COLUMNS:
            continue
        columns = values.double()
        search = _of_quantity if target.is_floating_point() and _many(target) else _of_classes
        halves = [search(columns[part], target[part]) for part in (slice(half), slice(half, None))]
        if all(found is not None for found in halves):
            element, words = halves[0] or (0, "")
            return Column(which, element, values.shape[1], words)
    return None


def _many(target: Tensor) -> bool:
    return len(torch.unique(target)) > 20


def _of_classes(columns: Tensor, target: Tensor) -> tuple[int, str] | None:
    """Columns that are constant within every class, and together differ between all classes."""
    _, classes, counts = torch.unique(target, return_inverse=True, return_counts=True)
    if len(counts) < 2 or int(counts.min()) < _PER_CLASS // 2:
        return None
    signature = torch.stack([columns[classes == k][0] for k in range(len(counts))])
    constant = (columns == signature[classes]).all(0)
    telling = constant & (signature != signature[:1]).any(0)
    if not bool(telling.any()):
        return None
    if len(torch.unique(signature[:, telling], dim=0)) < len(counts):
        return None
    element = int(telling.nonzero()[0])
    alone = len(torch.unique(signature[:, element])) == len(counts)
    others = "" if alone else f", with {int(telling.sum()) - 1} others,"
    return element, (
        f"is the same for all examples of a class and{others} tells all {len(counts)} classes apart"
    )


def _of_quantity(columns: Tensor, target: Tensor) -> tuple[int, str] | None:
    """A column that is the target, but for scale and shift."""
    wanted = target.double() - target.double().mean()
    centred = torch.nan_to_num(columns - columns.mean(0))
    scale = centred.square().sum(0).sqrt() * wanted.square().sum().sqrt()
    correlation = (centred * wanted[:, None]).sum(0).abs() / scale.clamp_min(1e-30)
    same = correlation > 1 - 1e-9
    if not bool(same.any()):
        return None
    return int(same.nonzero()[0]), "is the target, but for scale and shift"


def _curve(run: Permuted) -> Curve:
    steps = tuple(float(i) for i in range(len(run.losses)))
    return Curve(
        title="Loss on labels that are permuted in every batch",
        x_label="step",
        y_label="loss",
        series=(Series(name="training", x=steps, y=run.losses),),
        thresholds={"best constant": run.constant},
    )
