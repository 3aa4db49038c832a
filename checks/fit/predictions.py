"""How much better than chance predictions agree with targets, whatever the outputs' scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnaudit.loop.losses import LossCall
from nnaudit.stats import ALPHA, clopper_pearson, spearman
from nnaudit.training.loss_bounds import CLASSIFICATION

_Z = 3.72
"""The normal deviate of :data:`~nnaudit.stats.ALPHA`."""


@dataclass(frozen=True)
class PredictionScore:
    """How well the predictions agree with the targets: 0 by chance, 1 perfectly.

    For classes the share of right answers, chance taken off (Cohen's kappa); for quantities and
    probabilities the correlation, of ranks where there is one per row.

    Attributes:
        rows: how many rows were compared; elements of one row are not counted apart.
        share: as above.
        z: in deviations from what independent predictions would give.
        upper: ``share`` is below this with a confidence of 1 - 1e-4, in one direction.
        right, chance: the shares of right answers, and of those by chance; NaN for quantities.
        classes: how many there are among the targets; 0 for quantities.
    """

    rows: int
    share: float
    z: float
    upper: float
    right: float = math.nan
    chance: float = math.nan
    classes: int = 0

    def __str__(self) -> str:
        if self.classes:
            return f"{100 * self.right:.0f}% correct, chance {100 * self.chance:.0f}%"
        return f"correlation {self.share:.2f} with the targets"


def score_of(calls: Sequence[LossCall]) -> PredictionScore | None:
    """Compare the inputs of ``calls``, the predictions, with their targets; None if impossible."""
    if not calls or len({call.kind for call in calls}) > 1 or calls[0].input.ndim == 0:
        return None
    rows = sum(len(call.input) for call in calls)
    predicted, wanted = classes_of(calls)
    if predicted is not None and wanted is not None and len(wanted):
        return _of_classes(predicted, wanted, min(rows, len(wanted)))
    return _of_quantities(calls, rows)


def _of_classes(predicted: Tensor, wanted: Tensor, rows: int) -> PredictionScore:
    count = int(max(predicted.max(), wanted.max())) + 1
    said, given = (
        torch.bincount(t, minlength=count).double() / len(t) for t in (predicted, wanted)
    )
    chance = float((said * given).sum())
    right = float((predicted == wanted).double().mean())
    room = max(1 - chance, 1e-12)
    deviation = math.sqrt(max(chance * room, 1e-12) / rows)
    most = clopper_pearson(round(right * rows), rows, 1 - 2 * ALPHA)[1]
    return PredictionScore(
        rows=rows,
        share=(right - chance) / room,
        z=(right - chance) / deviation,
        upper=(most - chance) / room,
        right=right,
        chance=chance,
        classes=int((given > 0).sum()),
    )


def _of_quantities(calls: Sequence[LossCall], rows: int) -> PredictionScore | None:
    try:
        x = torch.cat([call.input for call in calls]).double().reshape(rows, -1)
        y = torch.cat([call.target[: len(call.input)] for call in calls]).double()
    except RuntimeError:  # of different lengths
        return None
    if y.numel() != x.numel() or rows < 8 or not bool(torch.isfinite(x).all()):
        return None
    y = y.reshape(rows, -1)
    if x.shape[1] == 1:
        share = spearman(x.reshape(-1).cpu().numpy(), y.reshape(-1).cpu().numpy())
    else:
        x, y = x - x.mean(0), y - y.mean(0)
        scale = float(x.square().sum() * y.square().sum()) ** 0.5
        share = float((x * y).sum()) / scale if scale > 0 else 0.0
    bounded = min(max(share, -0.999999), 0.999999)
    upper = math.tanh(math.atanh(bounded) + _Z / math.sqrt(max(rows - 3, 1)))
    return PredictionScore(rows, share, share * math.sqrt(rows), upper)


def classes_of(calls: Sequence[LossCall]) -> tuple[Tensor | None, Tensor | None]:
    """Return predicted and wanted classes, both flat; None where the loss is not of classes."""
    predicted: list[Tensor] = []
    wanted: list[Tensor] = []
    for call in calls:
        given, target = call.input, call.target
        if call.kind in CLASSIFICATION and not target.is_floating_point() and given.ndim > 1:
            answer, target = given.argmax(1).reshape(-1), target.reshape(-1)[: len(given)]
            if given.ndim > 2:
                target = call.target[: len(given)].reshape(-1)
            counted = target != int(call.arguments.get("ignore_index", -100))
            if answer.shape != target.shape:
                return None, None
            predicted.append(answer[counted])
            wanted.append(target[counted].long())
        elif call.kind in ("bce_with_logits", "bce") and given.shape[1:].numel() == 1:
            limit = 0.0 if call.kind == "bce_with_logits" else 0.5
            predicted.append((given.reshape(-1) > limit).long())
            wanted.append((call.target[: len(given)].reshape(-1) > 0.5).long())
        else:
            return None, None
    return torch.cat(predicted), torch.cat(wanted)


def with_predictions(call: LossCall, made: Tensor) -> LossCall:
    """Return ``call`` on another network's predictions."""
    return replace(call, arguments={**call.arguments, "input": made}, value=None)
