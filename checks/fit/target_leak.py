"""FIT108: the label must not be among the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.checks.fit.predictions import score_of
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
    """An input column that holds the target: which of the model's tensors, which element.

    ``quantity`` says that the target is one, such as the next value of a series, and no class;
    ``certain``, that there is no other explanation.
    """

    tensor: int
    element: int
    columns: int
    words: str
    quantity: bool
    certain: bool = True


class TargetLeak(Check):
    """Is the label, or something made from it, among the inputs?

    Why: A network that is given the answer learns to read it off. Training and validation look
    perfect, and in production, where the answer is not known yet, nothing works. Usual causes: a
    target column left in the table, a window that reaches one step too far, a label passed to the
    model beside the input.
    How: Two tests, for programs with one target per example. First, up to 512 rows as they enter
    the network (at least 64, and eight of each class): is an element of the input a function of the
    target? For classes: the same for all examples of a class and, alone or with other such
    elements, different for every two classes. For quantities: correlated with the target by 1 -
    1e-9. Both halves of the rows must show it, which by chance has a probability below 1e-9. An
    element that rises (or falls) with a quantity without one exception, such as its logarithm, is a
    warning: the time of a count that only grows does so, too.
    Second, only where unseen examples are predicted well (half of the way from chance or more): the
    labels of every batch are permuted anew and your own loop takes 80 steps. A network that cannot
    see the labels cannot beat the best constant prediction then. It fails when the mean loss of the
    last half is four standard errors and 10% below that, and again with other weights and
    permutations.
    Fix: drop the column from the inputs; with windows of a series take the target one step later
    (y = series[start + window]); do not pass the target to the model.
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
        calls = training.moments[0].fixed.calls
        call = next(iter(calls), None)
        if call is None or training.ending:
            return self.inconclusive(training.ending or _why_not_read(training))
        if reason := _why_no_labels(calls, batches.size(training.fixed[0])):
            return self.skipped(reason)
        column = column_of(*training_columns(audit))
        if column is not None:
            return self._found(audit, column)
        score = score_of(training.moments[-1].val.calls or training.moments[-1].fixed.calls)
        if score is None or score.share < _GOOD:
            said = "not comparable with the targets" if score is None else str(score)
            return self.passed(
                "No input element holds the target, and the predictions are not good enough to "
                f"suspect a leak: {said}."
            )
        paths = batches.paths_of(training.fixed[0], call.target)
        if len(paths) != 1:
            return self.inconclusive(
                "No input element holds the target. Training on permuted labels was not possible, "
                "because the targets are made within the step."
            )
        return self._permuted(audit, training, paths[0])

    def _found(self, audit: Audit, column: Column) -> Result:
        where = f"element {column.element} of {column.columns}" if column.columns > 1 else "it"
        drop = f"leave element {column.element} out of the inputs"
        answer, said = (self.failed, "is") if column.certain else (self.warned, "may be")
        return answer(
            f"The target {said} among the inputs: in input {column.tensor} of the network, {where} "
            f"{column.words}.",
            measured=column.words,
            threshold="no input that is a function of the target alone",
            location=audit.loop.locate("train_loader"),
            fix="if the input is a window of a series, take the target one step later: "
            f"y = series[start + window]; else {drop}"
            if column.quantity
            else drop,
        )

    def _permuted(self, audit: Audit, training: Training, path: str) -> Result:
        first = permuted_run(audit, path)
        if not first.usable:
            return self.inconclusive("Not judged: too few steps could be taken on permuted labels.")
        details: dict[str, Any] = {"evidence": (_curve(first),)}
        said = (
            f"After {len(first.losses)} steps on labels permuted anew in every batch the loss is "
            f"{first.mean:.4g} (best constant prediction: {first.constant:.4g})"
        )
        if not first.leaks:
            return self.passed(f"{said}: the network does not see the labels.", **details)
        with replicated(audit) as other:
            again = permuted_run(other, path)
        if not again.leaks:
            return self.inconclusive(
                f"{said}, but {again.mean:.4g} in a second run: no clear leak.", **details
            )
        return self.failed(
            f"{said}, and {again.mean:.4g} in a second run. Permuted labels cannot be predicted, "
            "so the network sees them.",
            measured=f"a loss of {first.mean:.4g}",
            threshold=f"at least {first.constant:.4g}",
            location=audit.loop.locate("training_step") or audit.loop.locate("model"),
            fix="do not pass the target, or anything made from it, to the model",
            **details,
        )


def _why_not_read(training: Training) -> str:
    known = training.moments[0].fixed.losses
    why = "is composite or hand-written" if known else "cannot be computed in eval mode"
    return f"Not judged: the loss {why}, so the targets cannot be read off it."


def _why_no_labels(calls: Sequence[LossCall], rows: int) -> str:
    """Why what the loss compares with is not one label for each row; empty if it is."""
    if not _one_each(calls[0], rows):
        return "Examples have more than one target each."
    if len(torch.unique(torch.cat([call.target.reshape(-1) for call in calls]))) == 1:
        return (
            "All targets of the loss are equal: the program makes them itself (adversarial or "
            "contrastive), and the labels of the loader may be inputs."
        )
    return ""


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
        quantity = target.is_floating_point() and _many(target)
        parts = (slice(half), slice(half, None))
        for search in (_of_quantity, _of_rank) if quantity else (_of_classes,):
            halves = [search(columns[part], target[part]) for part in parts]
            if all(found is not None for found in halves):
                element, words = halves[0] or (0, "")
                certain = search is not _of_rank
                return Column(which, element, values.shape[1], words, quantity, certain)
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
    if not bool(telling.any()) or bool(constant.all()):
        return None  # where all are, each class is one row, again and again
    if len(torch.unique(signature[:, telling], dim=0)) < len(counts):
        return None
    element = int(telling.nonzero()[0])
    alone = len(torch.unique(signature[:, element])) == len(counts)
    others = "" if alone else f", with {int(telling.sum()) - 1} others,"
    return element, (
        f"is equal within each class and{others} differs between all {len(counts)} classes"
    )


def _of_quantity(columns: Tensor, target: Tensor) -> tuple[int, str] | None:
    """A column that is the target, up to scale and shift."""
    wanted = target.double() - target.double().mean()
    centred = torch.nan_to_num(columns - columns.mean(0))
    scale = centred.square().sum(0).sqrt() * wanted.square().sum().sqrt()
    correlation = (centred * wanted[:, None]).sum(0).abs() / scale.clamp_min(1e-30)
    same = correlation > 1 - 1e-9
    if not bool(same.any()):
        return None
    return int(same.nonzero()[0]), "is the target, up to scale and shift"


def _of_rank(columns: Tensor, target: Tensor) -> tuple[int, str] | None:
    """A column that rises, or falls, wherever the target rises, and is level where that is."""
    ordered, order = target.double().sort()
    steps = columns[order].diff(dim=0)
    rises = (ordered.diff() > 0)[:, None]
    level = (steps == 0) | rises
    same = level.all(0) & (((steps > 0) | ~rises).all(0) | ((steps < 0) | ~rises).all(0))
    if not bool(same.any()):
        return None
    return int(same.nonzero()[0]), "has the order of the target without one exception"


def _curve(run: Permuted) -> Curve:
    steps = tuple(float(i) for i in range(len(run.losses)))
    return Curve(
        title="Loss on labels that are permuted in every batch",
        x_label="step",
        y_label="loss",
        series=(Series(name="training", x=steps, y=run.losses),),
        thresholds={"best constant": run.constant},
    )
