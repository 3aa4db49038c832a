"""The total loss of a batch as one call of a loss function, also where the user wrote it by hand.

What no recorded call explains is looked at as a function of output and target: where the value is
what a known formula gives, other outputs are put in place of the model's, and the formula must give
the program's value for each. So a penalty on the weights, a second term, a weight of classes or a
mask refute it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.batch_target import target_of
from nnaudit.loop.control import output_replaced
from nnaudit.loop.loss_formulas import Formula, formulas, scaled, smoothed
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.total_loss import call_of_total, is_total
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets.model_inputs import main_tensor


class LossReader:
    """Says of each batch which call its total loss is; a formula is looked for once.

    With ``untried`` it may be one that could not be tried out: see :func:`find_formula`.
    """

    def __init__(self, loop: Loop, *, untried: bool = False) -> None:
        self._loop = loop
        self._untried = untried
        self._sought = False
        self._formula: Formula | None = None

    def call(self, batch: Any, seen: Observation) -> LossCall | None:
        """Return the call that the total loss of ``seen``, a step or pass on ``batch``, is.

        None where it is composite, or a function that is not known.
        """
        if (recorded := call_of_total(seen)) is not None:
            return recorded
        if seen.total_loss is None or seen.output is None or not math.isfinite(seen.total_loss):
            return None
        if self._sought and self._formula is None:
            return None
        target = target_of(self._loop, batch)
        if not self._sought:
            self._sought = True
            self._formula = find_formula(self._loop, batch, seen, target, untried=self._untried)
        return written_out(self._formula, seen, target)


def written_out(formula: Formula | None, seen: Observation, target: Any) -> LossCall | None:
    """Return the call that ``formula`` stands for, where its value is ``seen``'s total loss."""
    if formula is None or seen.total_loss is None:
        return None
    agrees = is_total(formula.loss(seen.output, target), seen.total_loss)
    return formula.call(seen.output, target) if agrees else None


def find_formula(
    loop: Loop,
    batch: Any,
    seen: Observation,
    target: Any,
    *,
    untried: bool = False,
    factors: bool = False,
) -> Formula | None:
    """Return the formula that the total loss of ``seen`` is, tried out on other outputs; or None.

    With ``untried`` also one without a parameter that agrees on this output, where the program
    gives no loss of another: a model that computes its own, a step that updates the weights itself.
    With ``factors`` also one times a constant, where no loss function of torch was called at all.
    The state is put back.

    Raises:
        OutOfBudgetError: the time is used up.
    """
    total, output = seen.total_loss, main_tensor(seen.output)
    if total is None or not math.isfinite(total) or output is None:
        return None
    plain = [each for each in formulas() if written_out(each, seen, target) is not None]
    found = plain or list(smoothed(output, target, total))
    if factors and not plain and not seen.loss_calls:
        found += scaled(output, target, total)
    if not found:
        return None
    others = list(_others(output))
    losses = [_loss_of(loop, batch, other) for other in others]
    if all(loss is None or is_total(loss, total) for loss in losses):
        return plain[0] if plain and untried else None
    return next((each for each in found if _gives(each, others, target, losses)), None)


def _loss_of(loop: Loop, batch: Any, output: Tensor) -> float | None:
    """Return the program's loss with ``output`` in place of the model's; None if it refuses."""
    try:
        with preserved(Subjects(models=loop.models)), output_replaced(loop, lambda _: output):
            return loop.forward(batch, train=True).loss
    except UserCodeError:
        return None


def _gives(
    formula: Formula, outputs: Sequence[Tensor], target: Any, losses: Sequence[float | None]
) -> bool:
    """Whether ``formula`` makes ``losses`` of ``outputs``."""
    return all(
        loss is not None and is_total(formula.loss(output, target), loss)
        for output, loss in zip(outputs, losses, strict=True)
    )


def _others(output: Tensor) -> Iterator[Tensor]:
    """Yield outputs unlike ``output`` that are of its kind: probabilities stay probabilities."""
    output = output.detach()
    yield _changed(output, 3.0)
    yield _changed(output.roll(1, 0) if output.ndim else output, 2.0)


def _changed(output: Tensor, power: float) -> Tensor:
    """Return logits ``power`` times as large, or probabilities of such, and a wave upon them.

    The wave tells rows and classes apart where all outputs are alike, as those of a layer of zeros.
    """
    places = torch.arange(output.numel(), device=output.device).reshape(output.shape)
    wave = torch.sin(1.7 * places).to(output.dtype)
    positive = bool((output >= 0).all())
    for dim in sorted({1, output.ndim - 1}) if output.ndim > 1 else ():
        if positive and bool(((output.sum(dim) - 1).abs() < 1e-3).all()):
            return (power * output.log() + wave).softmax(dim)
        if bool((output.logsumexp(dim).abs() < 1e-3).all()):
            return (power * output + wave).log_softmax(dim)
    if positive and bool((output <= 1).all()) and bool(output.any()):
        return torch.sigmoid(power * torch.logit(output) + wave)
    return power * output + wave
