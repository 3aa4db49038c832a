"""What a loss is worth: the same call again, on outputs that know nothing.

Everything is computed by calling the user's very loss function again with the user's other
arguments, so class weights, label smoothing, ignored targets and positive weights are in it by
construction. Losses are means over targets, whatever the reduction was.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnaudit.loop.losses import LossCall
from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.training.loss_bounds import bounds

CLASSIFICATION = {
    "cross_entropy": "cross-entropy",
    "nll": "negative log-likelihood",
    "bce": "binary cross-entropy",
    "bce_with_logits": "binary cross-entropy",
    "kl_div": "Kullback-Leibler divergence",
}
"""Losses measured in nats, and what people call them."""

REGRESSION = {
    "mse": "mean squared error",
    "l1": "mean absolute error",
    "smooth_l1": "smooth L1 loss",
    "huber": "Huber loss",
}
"""Losses of quantities, and what people call them."""

LARGE = 4_000_000
"""Elements of the outputs up to which the best constant is fitted."""


@dataclass(frozen=True)
class Level:
    """One loss, averaged over all targets, and what to hold it against.

    Attributes:
        loss: of the network's outputs.
        zero: of outputs that say nothing: zero, or equal probabilities.
        best: of the best constant output; NaN where it was not fitted.
        shuffled: of the network's outputs, given to other rows' targets; NaN where impossible.
        unit: what one nat is in this loss (class weights make it something else).
        error: standard error of ``loss``.
        rows: number of targets.
        output_rms, target_rms, target_mean, target_std: in the units of the targets.
        output_std: of the outputs; for logits of several classes, across the classes.
    """

    loss: float
    zero: float
    best: float
    shuffled: float
    unit: float
    error: float
    rows: int
    output_rms: float
    output_std: float
    target_rms: float
    target_mean: float
    target_std: float

    @property
    def high(self) -> bool:
        """Whether the loss is more than a nat above what saying nothing costs."""
        return self.loss > self.zero + self.unit

    @property
    def low(self) -> bool:
        """Whether the loss is more than a nat below the best that a constant could do."""
        return self.loss < self.best - self.unit

    @property
    def settled(self) -> bool:
        """Whether chance could not carry the loss across one of these limits."""
        limits = [self.zero + self.unit]
        if not math.isnan(self.best):
            limits.append(self.best - self.unit)
        return all(abs(self.loss - limit) > 4.0 * self.error for limit in limits)

    @property
    def absurd(self) -> bool:
        """Whether outputs are ten times as large as the targets, and as one."""
        return self.output_rms > 10.0 * max(1.0, self.target_rms)

    @property
    def explained(self) -> bool:
        """Whether outputs of this size, given to any targets, cost about as much."""
        if math.isnan(self.shuffled):
            return True
        return self.loss - self.shuffled < max(self.unit, 0.3 * (self.loss - self.zero))


def level_of(calls: Sequence[LossCall], feds: Sequence[ModelInputs | None]) -> Level | None:
    """Hold the pooled loss of ``calls`` against outputs that know nothing; None if impossible.

    ``feds`` are the batches they were made for; without them the best constant is not fitted.
    """
    try:
        with warnings.catch_warnings():  # the user's call has warned already
            warnings.simplefilter("ignore")
            parts = [_Part.of(call) for call in calls]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    rows = sum(part.rows for part in parts)
    if not rows:
        return None

    def pooled(name: str) -> float:
        total: float = sum(getattr(part, name) * part.rows for part in parts if part.rows)
        return total / rows

    mean, square = pooled("target_mean"), pooled("target_square")
    return Level(
        loss=pooled("loss"),
        zero=pooled("zero"),
        best=_best_constant(calls, feds),
        shuffled=pooled("shuffled"),
        unit=pooled("unit"),
        error=math.sqrt(pooled("variance") / rows),
        rows=rows,
        output_rms=math.sqrt(pooled("output_square")),
        output_std=math.sqrt(pooled("output_variance")),
        target_rms=math.sqrt(square),
        target_mean=mean,
        target_std=math.sqrt(max(square - mean**2, 0.0)),
    )


@dataclass(frozen=True)
class _Part:
    """What one call contributes; means over its ``rows`` targets."""

    rows: int
    loss: float
    zero: float
    shuffled: float
    unit: float
    variance: float
    output_square: float
    output_variance: float
    target_square: float
    target_mean: float

    @classmethod
    def of(cls, call: LossCall) -> _Part:
        prediction, target = call.input.float(), call.target.float()
        each, loss, zero = _per_target(call), _mean(call, call.input), _mean(call, _nothing(call))
        # Class weights divide the mean by something else than the number of targets.
        scale = loss / float(each.mean()) if each.numel() and float(each.mean()) else 1.0
        variance = float(each.var(correction=0)) if each.numel() > 1 else math.inf
        known = call.kind in CLASSIFICATION and _classes(call) > 1
        return cls(
            rows=each.numel(),
            loss=loss,
            zero=zero,
            shuffled=_shuffled(call),
            unit=zero / math.log(_classes(call)) if known else 1.0,
            variance=variance * scale**2,
            output_square=float(prediction.square().mean()),
            output_variance=float(_spread(call, prediction)),
            target_square=float(target.square().mean()),
            target_mean=float(target.mean()),
        )


def _spread(call: LossCall, prediction: Tensor) -> Tensor:
    if call.kind in ("cross_entropy", "nll") and prediction.ndim > 1:
        # What all classes have in common does not matter to a softmax.
        return prediction.var(dim=1, correction=0).mean()
    return prediction.var(correction=0)


def _plain(call: LossCall) -> dict[str, None]:
    """The obsolete arguments that would overrule ``reduction``, switched off."""
    return {name: None for name in ("size_average", "reduce") if name in call.arguments}


def _mean(call: LossCall, prediction: Tensor) -> float:
    if call.kind == "kl_div":  # neither of its means is over the targets
        total = call.recompute(prediction, reduction="sum", **_plain(call))
        return float(total) / max(prediction.numel() // max(_classes(call), 1), 1)
    return float(call.recompute(prediction, reduction="mean", **_plain(call)))


def _per_target(call: LossCall) -> Tensor:
    """The loss of each target; of each row, for a loss that compares element by element."""
    each = call.recompute(call.input, reduction="none", **_plain(call)).float()
    if call.kind not in ("cross_entropy", "nll"):
        return each.reshape(each.shape[0] if each.ndim else 1, -1).mean(dim=1)
    if call.target.is_floating_point() or call.target.shape != each.shape:
        return each.reshape(-1)
    return each[call.target != int(call.arguments.get("ignore_index", -100))]


def _classes(call: LossCall) -> int:
    shape = call.input.shape
    if call.kind in ("cross_entropy", "nll"):
        return shape[1] if len(shape) > 1 else shape[0]
    if call.kind == "kl_div":
        return shape[-1] if shape else 1
    return 2


def _nothing(call: LossCall) -> Tensor:
    if call.kind in ("nll", "kl_div"):
        return torch.full_like(call.input, -math.log(max(_classes(call), 1)))
    return torch.full_like(call.input, 0.5 if call.kind == "bce" else 0.0)


def _shuffled(call: LossCall) -> float:
    prediction = call.input
    rows = prediction.shape[0] if prediction.ndim else 0
    if rows < 2 or call.target.ndim == 0 or call.target.shape[0] != rows:
        return math.nan
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return _mean(call, prediction[order.to(prediction.device)])


def _best_constant(calls: Sequence[LossCall], feds: Sequence[ModelInputs | None]) -> float:
    known = [fed for fed in feds if fed is not None]
    large = sum(call.input.numel() for call in calls) > LARGE
    # The constant of a divergence is per class, as its mean is not.
    if large or len(known) < len(calls) or calls[0].kind == "kl_div":
        return math.nan
    averaged = [
        dataclasses.replace(call, arguments={**call.arguments, "reduction": "mean"})
        for call in calls
    ]
    sizes = [call.input.shape[0] if call.input.ndim else 1 for call in calls]
    found = bounds(averaged, known, sizes)
    return found.constant if found is not None else math.nan
