"""FIT110: the predictions must differ after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.checks.fit.predictions import classes_of
from nnaudit.checks.fit.stream import FEWEST, curve_of_run, on_its_way
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.losses import LossCall
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.compared_outputs import ComparedOutputs
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Evidence, Kind, Result, Table
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import main_tensor
from nnaudit.training.loss_bounds import REGRESSION

_FEWEST_TARGETS = 64
_SAME = 1e-4
_COLLAPSED, _PRIOR = 0.99, 0.9
_DRAWN = 0.02
"""Embeddings that are told apart by their distances differ by a tenth of their size and more."""


@dataclass(frozen=True)
class Spread:
    """How the predictions for some rows differ.

    Attributes:
        rows: of the output.
        variation: the standard deviation of the output across rows (mean over its elements),
            against its size; 0 when every row gives the same.
        predicted, prior: the shares of each class among predictions and targets; empty unless
            the loss is of classes.
        relative: for a quantity, the deviation of the predictions against the targets'; else NaN.
    """

    rows: int
    variation: float
    predicted: tuple[float, ...] = ()
    prior: tuple[float, ...] = ()
    relative: float = math.nan

    @property
    def most(self) -> float:
        """The largest share of one class among the predictions; 0 where there are no classes."""
        return max(self.predicted, default=0.0)

    @property
    def one_class(self) -> bool:
        """Whether one class is predicted for over 99%, and is under 90% of the targets."""
        return self.most > _COLLAPSED and max(self.prior) < _PRIOR


def spread_of(calls: Sequence[LossCall]) -> Spread | None:
    """Look at the inputs of the loss: predictions of all ``calls``; None with too few."""
    shapes = {call.input.shape[1:] for call in calls}
    if len({call.kind for call in calls}) != 1 or calls[0].input.ndim == 0:
        return None
    variation = _variation([call.input for call in calls]) if len(shapes) == 1 else math.nan
    rows = sum(len(call.input) for call in calls)
    predicted, target = classes_of(calls)
    if predicted is not None and target is not None and len(target) >= _FEWEST_TARGETS:
        count = int(max(predicted.max(), target.max())) + 1
        return Spread(rows, variation, _shares(predicted, count), _shares(target, count))
    if calls[0].kind in REGRESSION and len(shapes) == 1 and rows >= _FEWEST_TARGETS // 2:
        given = torch.cat([call.input for call in calls]).float().reshape(rows, -1)
        wanted = torch.cat([call.target for call in calls]).float()
        if wanted.numel() == given.numel():
            deviation = wanted.reshape(rows, -1).std(0).mean()
            relative = float(given.std(0).mean() / deviation) if deviation > 0 else math.nan
            return Spread(rows, variation, relative=relative)
    return None if math.isnan(variation) else Spread(rows, variation)


def _shares(classes: Tensor, count: int) -> tuple[float, ...]:
    found: list[float] = (torch.bincount(classes, minlength=count) / len(classes)).tolist()
    return tuple(found)


def _variation(outputs: Sequence[Tensor]) -> float:
    """Return the deviation across rows against the size; NaN where there are too few rows."""
    rows = torch.cat([t.detach().double().reshape(len(t), -1) for t in outputs])
    if len(rows) < 8 or not bool(torch.isfinite(rows).all()):
        return math.nan
    size = float(rows.square().mean().sqrt())
    return float(rows.std(0).mean()) / size if size > 0 else 0.0


class PredictionCollapse(Check):
    """Do the predictions differ between examples after some training?

    Why: A network with dead units, with a representation that has collapsed to a point, or with a
    loss that rewards the most frequent class predicts the same for every example. Its loss looks
    like that of a hard task, and its accuracy equals the share of one class.
    How: After 300 steps of your own loop on real batches the network predicts, in eval mode, the
    validation batches (up to 512 rows), or two training batches where there are none. At least 64
    targets are needed.
    - It warns when the outputs do not change with the example (standard deviation across rows under
      1e-4 of their size) and did before training.
    - It warns when the loss compares outputs with each other (distances, cosines, pairs, triplets),
      and these have drawn together: their standard deviation across rows is under 2% of their size
      and a tenth of what it was before training. Outputs of one number, and of the shape of a field
      of the batch, as a reconstruction has, are not asked that.
    - It warns when one class is predicted for over 99% while no class has 90% of the targets, if
      the loss has stopped falling above that of the best constant prediction. Otherwise that is a
      note: a slow start predicts the most frequent class for a while.
    - It notes when predictions of a quantity vary under 1% as much as the targets.
    Fix: lower the learning rate tenfold and train from new initial weights, because dead units stay
    dead; print(output.std(0)) after each layer shows where examples become equal.
    References: Lu, Shin, Su and Karniadakis, "Dying ReLU and Initialization" (2019); Andrej
    Karpathy, "A Recipe for Training Neural Networks" (2019), "visualize prediction dynamics".
    """

    code, name, kind = "FIT110", "prediction-collapse", Kind.JUDGEMENT
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS)
    probes = (TrainingRun, ComparedOutputs)
    trains = True
    consequence_of = (
        "FIT104", "FIT101", "FIT102", "DATA101", "DATA104", "DATA110", "DATA111", "LOSS101",
        "LOSS102", "GRAD101", "GRAD102", "GRAD106", "GRAD107", "GRAD108", "MODE101", "INIT101",
        "STEP102",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Look at the predictions at the end of the run."""
        training = audit.probe(TrainingRun)
        if training.ending:
            return self.inconclusive(training.ending)
        look, where = _looked_at(training)
        found = spread_of(look.calls) if look.calls else _of_outputs(look)
        if found is None or (math.isnan(found.variation) and not found.predicted):
            return self.inconclusive(
                "Too few predictions were found to compare them with each other."
            )
        details: dict[str, Any] = {"evidence": _evidence(training, found)}
        if found.variation < _SAME and _made_up(audit, training):
            return self.inconclusive(
                f"All {where} get the same output, which proves nothing: the script makes its "
                "targets itself, if there are any.",
                **details,
            )
        if found.variation < _SAME:
            return self._blind(audit, training, found, where, details)
        return self._judge(audit, training, found, where, details)

    def _judge(
        self,
        audit: Audit,
        training: Training,
        found: Spread,
        where: str,
        details: dict[str, Any],
    ) -> Result:
        """Judge outputs that differ at all."""
        if found.variation < _DRAWN and audit.probe(ComparedOutputs):
            before = _representation(training, first=True)
            if before is not None and before.variation > 10 * found.variation:
                return self._drawn_together(audit, training, before, found, where, details)
        if found.one_class:
            return self._one_class(audit, training, found, where, details)
        if found.relative < 0.01:
            return self.noted(
                f"Predictions for {where} vary only {100 * found.relative:.2g}% as much as the "
                "targets: the network predicts little more than a constant.",
                **details,
            )
        said = f"Predictions for {where} differ"
        if found.predicted:
            said = f"{said}: the most frequent class is predicted for {100 * found.most:.0f}%"
        return self.passed(f"{said}.", **details)

    def _blind(
        self,
        audit: Audit,
        training: Training,
        found: Spread,
        where: str,
        details: dict[str, Any],
    ) -> Result:
        begun = _looked_at(training, first=True)[0]
        before = spread_of(begun.calls) if begun.calls else _of_outputs(begun)
        said = f"All {where} get the same output after {len(training.losses)} steps"
        if before is None or before.variation < _SAME:
            return self.inconclusive(
                f"{said}, as they did before training: see GRAD108 and FIT101.", **details
            )
        return self.warned(
            f"{said}, but different ones before training: the output no longer depends on the "
            "input.",
            measured=f"a standard deviation of {found.variation:.1g} of the outputs' size",
            threshold=f"at least {_SAME:g}",
            location=audit.loop.locate("optimizer"),
            fix=f"lower the learning rate tenfold, to {max(training.rates) / 10:.2g}, and train "
            "from new weights: dead units stay dead",
            **details,
        )

    def _drawn_together(
        self,
        audit: Audit,
        training: Training,
        before: Spread,
        found: Spread,
        where: str,
        details: dict[str, Any],
    ) -> Result:
        return self.warned(
            f"The outputs of all {where} have drawn together: their spread is "
            f"{100 * found.variation:.2g}% of their size after {len(training.losses)} steps, and "
            f"was {100 * before.variation:.2g}% before training. The loss compares outputs with "
            "each other, and is small where all are the same.",
            measured=f"a spread of {100 * found.variation:.2g}%",
            threshold=f"{100 * _DRAWN:g}%",
            location=audit.loop.locate("training_step") or audit.loop.locate("optimizer"),
            fix="let only other items count as negatives: "
            "distances.masked_fill(same, float('inf')).min(1); and detach what is the target",
            **details,
        )

    def _one_class(
        self,
        audit: Audit,
        training: Training,
        found: Spread,
        where: str,
        details: dict[str, Any],
    ) -> Result:
        said = (
            f"One class is predicted for {100 * found.most:.0f}% of the {where}, and no class "
            f"has more than {100 * max(found.prior):.0f}% of the targets"
        )
        if len(training.losses) < FEWEST or on_its_way(training):
            return self.inconclusive(f"{said}. The loss is still falling.", **details)
        last = training.last()
        mean = sum(last) / len(last)
        if not mean > training.constant + 0.05 * abs(training.constant):
            return self.noted(
                f"{said}: the network predicts little more than a constant.", **details
            )
        return self.warned(
            f"{said}. The loss has stopped falling at {mean:.4g}, above the "
            f"{training.constant:.4g} of the best constant prediction.",
            measured=f"{100 * found.most:.0f}% one class",
            threshold=f"{100 * _COLLAPSED:.0f}%",
            location=audit.loop.locate("optimizer"),
            fix=f"lower the learning rate tenfold, to {max(training.rates) / 10:.2g}, and train "
            "from new weights",
            **details,
        )


def _made_up(audit: Audit, training: Training) -> bool:
    """Whether the script makes its batches, and what the loss compares with, in its steps."""
    own = bool(audit.loop.lacks(Needs.STEPS))
    return own and not training.has_labels and not audit.probe(ComparedOutputs)


def _looked_at(training: Training, *, first: bool = False) -> tuple[EvalResult, str]:
    """Return what was looked at before or after training, and what it is called."""
    moment = training.moments[0 if first else -1]
    if moment.val.losses or moment.val.outputs is not None:
        return moment.val, "validation examples"
    return moment.fixed, "training examples"


def _representation(training: Training, *, first: bool = False) -> Spread | None:
    """Return how representations differed, where the network's output is one."""
    look = _looked_at(training, first=first)[0]
    output = main_tensor(look.outputs)
    if output is None or output.ndim < 2 or output[0].numel() < 2:
        return None
    fields = [tensor for batch in training.fixed[:1] for _, tensor in batches.tensors(batch)]
    if any(f.is_floating_point() and f.shape[1:] == output.shape[1:] for f in fields):
        return None
    return _of_outputs(look)


def _of_outputs(look: EvalResult) -> Spread | None:
    """Where the loss is composite, only the network's own output can be looked at."""
    output = main_tensor(look.outputs)
    if output is None or output.ndim < 2 or len(output) < 8:
        return None
    return Spread(len(output), _variation([output]))


def _evidence(training: Training, found: Spread) -> tuple[Evidence, ...]:
    curve = curve_of_run(training)
    if not found.predicted or len(found.predicted) > 100:
        return (curve,)
    table = Table(
        title="Shares of the classes after training",
        columns=("class", "predicted", "among the targets"),
        rows=tuple(
            (str(i), predicted, prior)
            for i, (predicted, prior) in enumerate(zip(found.predicted, found.prior, strict=True))
        ),
    )
    return table, curve
