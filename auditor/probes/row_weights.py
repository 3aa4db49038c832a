"""What a loss weighs each class with, however it is written: by the pull of a row on the output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.loop.losses import LossCall
from nnaudit.measure.term_gradients import output_gradients
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.targets.model_inputs import main_tensor

_EQUAL = 0.01
"""Rows of one class that are pulled with more difference than this have weights of their own."""


_ROUNDING = 1e-3
"""By so much the probabilities of a row may miss 1."""


@dataclass(frozen=True)
class RowWeights:
    """The weight of each class in the first batch.

    Attributes:
        weights: (classes,), up to a factor; 0 of a class that the batch has no row of.
        call: output and target, as a call of the loss function that they are for.
    """

    weights: NDArray[np.float64]
    call: LossCall


class WeightsByRow(Probe[RowWeights | None]):
    """The pull of each row on an output that says of all classes that they are as likely.

    The gradient of a row's cross-entropy is then the same for every class, up to the order of its
    elements, and so is that of anything made of it: what differs is the weight. None where there
    is no output for each class (or one for two) and a label for each row, and where rows of one
    class differ.
    """

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> RowWeights | None:
        """Take one step on the first batch.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        first = audit.probe(FirstSteps)
        call = _as_call(first)
        if call is None:
            return None
        audit.clock.check()
        pulls = output_gradients(audit.loop, first.batches[0], _undecided(call.input))
        if pulls is None:
            return None
        norms = torch.stack(pulls).sum(0).double().reshape(len(call.input), -1).norm(dim=1).cpu()
        classes = 2 if call.kind == "bce_with_logits" else call.input.shape[1]
        weights = by_class(norms, call.target.long().cpu().flatten(), classes)
        return None if weights is None else RowWeights(weights, call)


def _undecided(output: Tensor) -> Tensor:
    """Return logits of zero, or equal probabilities where ``output`` are such."""
    sums = output.reshape(len(output), -1).sum(1)
    if bool((output >= 0).all()) and bool(((sums - 1).abs() < _ROUNDING).all()):
        return torch.full_like(output, 1 / output[0].numel())
    return torch.zeros_like(output)


def by_class(pulls: Tensor, labels: Tensor, classes: int) -> NDArray[np.float64] | None:
    """Return the pull of each class; None where rows of one class are pulled differently."""
    found = np.zeros(classes)
    for label in range(classes):
        own = pulls[labels == label]
        if not len(own):
            continue
        spread = float(own.max() - own.min())
        if not spread <= _EQUAL * float(own.mean()):  # NaN, too
            return None
        found[label] = float(own.mean())
    return found if found.any() else None


def _as_call(first: First) -> LossCall | None:
    """Return the output and the target of the first step as the call that they are made for."""
    output = main_tensor(first.completed[0].output) if first.completed else None
    target = first.targets[0] if first.targets else None
    if output is None or not isinstance(target, Tensor) or not output.is_floating_point():
        return None
    rows = len(output) if output.ndim else 0
    if not rows or target.numel() != rows or bool((target != target.round()).any()):
        return None
    classes, low, high = output[0].numel(), float(target.min()), float(target.max())
    if output.ndim == 2 and classes > 1 and low >= 0 and high < classes:
        arguments = {"input": output, "target": target.reshape(-1).long()}
        return LossCall("cross_entropy", F.cross_entropy, arguments, None)
    probabilities = bool(((output >= 0) & (output <= 1)).all())
    if classes == 1 and low >= 0 and high <= 1 and not probabilities:
        arguments = {"input": output, "target": target.reshape(-1).float()}
        return LossCall("bce_with_logits", F.binary_cross_entropy_with_logits, arguments, None)
    return None
