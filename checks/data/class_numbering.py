"""DATA118: whether training and validation number their classes alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.checks.fit.predictions import classes_of
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.training_run import TrainingRun
from nnaudit.report import Kind, Result, Table

_ROWS = 8
_CERTAIN = 3


@dataclass(frozen=True)
class Renumbering:
    """How the classes of validation read in the numbers of training.

    Attributes:
        mapping: by validation's number, the one that the network says for most of its rows.
        rows: how many rows these classes have.
        right: the share of them that the network has right as they are numbered.
        mapped: the share if they were numbered by ``mapping``.
    """

    mapping: dict[int, int]
    rows: int
    right: float
    mapped: float

    @property
    def displaced(self) -> dict[int, int]:
        """The classes that have another number."""
        return {a: b for a, b in self.mapping.items() if a != b}


class ClassNumbering(Check):
    """Do training and validation number their classes alike?

    Why: When each split makes its own list of classes (folder order, first appearance, a set),
        class 3 of training is class 7 of validation. Training goes well and validation stays far
        below: it looks like overfitting, and is a score against other labels.
    How: Compares predictions with labels on some hundred validation rows, after the training run
        that other checks share. For each class of at least 8 rows, takes the most common
        prediction.
        - A renumbering: each has more than half of its class's rows, all are different, at least
          two differ from the label, accuracy by them is 30 points higher, and the training rows are
          right by their own labels (more than half, and more than by the renumbering).
        - Fails when three or more classes are renumbered: errors of a network that generalises
          badly are not one to one.
        - Warns when two classes change places: they may be alike, or have changed.
    Fix: Make the list of classes once, from training (`classes = sorted(set(train_labels))`), and
        use it for both.
    References: torchvision documentation of datasets.ImageFolder, class_to_idx: by sorted names.
    """

    code, name, kind = "DATA118", "class-numbering", Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER, Needs.VAL_LOADER, Needs.STEPS, Needs.TARGETS)
    probes = (FirstSteps, TrainingRun)
    consequence_of = ("DATA109",)
    trains = True

    def run(self, audit: Audit) -> Result:
        """Compare predictions with labels, on validation and on training rows."""
        if not _are_classes(audit.probe(FirstSteps)):
            return self.skipped("No loss of the training takes classes as its targets.")
        moments = audit.probe(TrainingRun).moments
        if not moments or not moments[-1].val.calls or not moments[-1].fixed.calls:
            return self.inconclusive("The predictions on validation rows are not known.")
        last = moments[-1]
        found = renumbering(*classes_of(last.val.calls))
        if found is None:
            return self.passed("Validation's classes have the numbers that training gives them.")
        if not _holds_in_training(found, *classes_of(last.fixed.calls)):
            return self.inconclusive("The network has not yet learnt the numbers of training.")
        return self._answer(audit, found)

    def _answer(self, audit: Audit, found: Renumbering) -> Result:
        displaced = found.displaced
        answer = self.failed if len(displaced) >= _CERTAIN else self.warned
        pairs = ", ".join(f"{a} is {b}" for a, b in list(displaced.items())[:6])
        return answer(
            f"Validation numbers its classes differently from training: label {pairs} in the "
            f"numbers of training. {100 * found.right:.0f}% of {found.rows} validation rows are "
            f"right as they are labelled, {100 * found.mapped:.0f}% by training's numbers.",
            measured=f"{len(displaced)} of {len(found.mapping)} classes have another number",
            threshold="0",
            evidence=(
                Table(
                    title="Classes of validation in the numbers of training",
                    columns=("label in validation", "class in training"),
                    rows=tuple((a, b) for a, b in sorted(found.mapping.items())),
                ),
            ),
            location=audit.loop.locate(getattr(audit.loop.val_loader, "dataset", None))
            or audit.loop.locate("val_loader"),
            fix="Make the list of classes once and use it for both splits: "
            "classes = sorted(set(train_labels)).",
        )


def _are_classes(first: First) -> bool:
    """Whether a loss of the first steps may be of classes: one that nothing is known of may be."""
    calls = [
        call
        for step in first.steps
        if step.observation is not None
        for call in step.observation.loss_calls
    ]
    return not calls or any(call.compares and classes_of((call,))[0] is not None for call in calls)


def renumbering(predicted: Tensor | None, wanted: Tensor | None) -> Renumbering | None:
    """Return the renumbering that explains ``predicted``; None where there is none."""
    if predicted is None or wanted is None:
        return None
    mapping: dict[int, int] = {}
    rows = right = mapped = 0
    for label in torch.unique(wanted).tolist():
        said = predicted[wanted == label]
        if len(said) < _ROWS:
            continue
        commonest = int(said.mode().values)
        most = int((said == commonest).sum())
        if 2 * most <= len(said):
            return None
        mapping[int(label)] = commonest
        rows, mapped = rows + len(said), mapped + most
        right += int((said == label).sum())
    if not rows or len(set(mapping.values())) < len(mapping):
        return None
    found = Renumbering(mapping, rows, right / rows, mapped / rows)
    clear = len(found.displaced) > 1 and found.mapped > found.right + 0.3
    return found if clear else None


def _holds_in_training(found: Renumbering, predicted: Tensor | None, wanted: Tensor | None) -> bool:
    """Whether training's rows are right as they are labelled, and not by the renumbering."""
    if predicted is None or wanted is None or not len(wanted):
        return False
    right = float((predicted == wanted).double().mean())
    other = [found.mapping.get(label, label) for label in wanted.tolist()]
    mapped = float((predicted == wanted.new_tensor(other)).double().mean())
    return right > 0.5 and right > mapped
