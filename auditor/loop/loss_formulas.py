"""Losses that users write out by hand, as the functions of torch that they are.

A formula is told by its value: what torch's function makes of the model's output and the target.
One value may agree by chance, and label smoothing is solved for; so a formula is believed when it
agrees on other outputs too (:mod:`nnaudit.training.loss_reader`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.loop.losses import LOSS_FUNCTIONS, LossCall
from nnaudit.targets.model_inputs import main_tensor

_LEAST_SMOOTHING, _MOST_SMOOTHING = 5e-3, 0.6
"""Label smoothing outside is not what people use: another formula met the value by chance."""


@dataclass(frozen=True)
class Formula:
    """One of torch's loss functions, on the model's output and the target.

    Attributes:
        function: of torch.
        reading: how output and target become its arguments.
        options: its other arguments.
        factor: the program's loss over the function's: 0.5 of a squared error, say.
    """

    function: Callable[..., Tensor]
    reading: Reading
    options: dict[str, Any] = field(default_factory=dict)
    factor: float = 1.0

    def loss(self, output: Any, target: Any) -> float:
        """Return the program's loss by it; NaN where it does not fit the two."""
        call = self.call(output, target)
        return math.nan if call is None or call.value is None else self.factor * float(call.value)

    def call(self, output: Any, target: Any) -> LossCall | None:
        """Return the call that the formula stands for; None where it does not fit the two."""
        prediction = main_tensor(output)
        if prediction is None or not isinstance(target, Tensor):
            return None
        try:
            pair = self.reading(prediction.detach(), target.detach().to(prediction.device))
            if pair is None:
                return None
            value = self.function(*pair, **self.options)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return None
        return LossCall(
            kind=LOSS_FUNCTIONS[self.function],
            function=self.function,
            arguments={"input": pair[0], "target": pair[1], **self.options},
            value=value.detach(),
        )


Reading = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor] | None"]


def formulas() -> Iterator[Formula]:
    """Yield every formula that is tried, the likeliest first."""
    for reduction in ("mean", "sum"):
        options = {"reduction": reduction}
        for reading in CLASSES:
            yield Formula(F.cross_entropy, reading, options)
        yield Formula(F.binary_cross_entropy_with_logits, equal, options)
        yield Formula(F.mse_loss, equal, options)
        yield Formula(F.l1_loss, equal, options)
        yield Formula(F.binary_cross_entropy, probabilities, options)
        yield Formula(F.smooth_l1_loss, equal, options)


def smoothed(output: Any, target: Any, total: float) -> Iterator[Formula]:
    """Yield cross-entropies whose label smoothing makes ``total`` of these two."""
    for reading in CLASSES:
        low, high = (
            Formula(F.cross_entropy, reading, {"label_smoothing": amount}).loss(output, target)
            for amount in (0.0, 1.0)
        )
        amount = (total - low) / (high - low) if high != low else 0.0
        if _LEAST_SMOOTHING <= amount <= _MOST_SMOOTHING:
            options = {"reduction": "mean", "label_smoothing": round(amount, 4)}
            yield Formula(F.cross_entropy, reading, options)


def scaled(output: Any, target: Any, total: float) -> Iterator[Formula]:
    """Yield means times the constant that makes ``total`` of these two."""
    for formula in formulas():
        value = formula.loss(output, target)
        if (
            formula.options["reduction"] == "mean"
            and value != 0.0
            and 0.0 < total / value < math.inf
        ):
            yield replace(formula, factor=total / value)


# --- how output and target are read -------------------------------------------------------------


def equal(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Element by element."""
    if output.numel() != target.numel():
        return None
    return output.float(), target.reshape(output.shape).float()


def probabilities(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Element by element, where the output is a probability."""
    inside = bool(((output >= 0) & (output <= 1)).all())
    return equal(output, target) if inside else None


def _logits(output: Tensor, target: Tensor, classes_at: int) -> tuple[Tensor, Tensor] | None:
    """Logits (N, C) and classes (N,), or shares of classes (N, C)."""
    whole = not target.is_floating_point()
    if output.ndim < 2 or output.ndim - whole != target.ndim or not target.numel():
        return None
    logits = output.movedim(classes_at, -1)
    count = logits.shape[-1]
    if whole:
        if logits.shape[:-1] != target.shape or int(target.max()) >= count:
            return None
        return logits.reshape(-1, count).float(), target.reshape(-1).long()
    if output.shape != target.shape or count < 2:
        return None
    shares = target.movedim(classes_at, -1).reshape(-1, count).float()
    if bool((shares < 0).any()) or bool(((shares.sum(1) - 1).abs() > 1e-3).any()):
        return None
    return logits.reshape(-1, count).float(), shares


def classes_last(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Logits, or logarithms of probabilities, with the classes last."""
    return _logits(output, target, output.ndim - 1)


def classes_second(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Likewise, with the classes second: images, sequences."""
    return _logits(output, target, 1) if output.ndim > 2 else None


def _logarithms(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    if pair is None or bool((pair[0] < 0).any()):
        return None
    return torch.log(pair[0]), pair[1]


def probabilities_last(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Probabilities of classes, which are last."""
    return _logarithms(classes_last(output, target))


def probabilities_second(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Probabilities of classes, which are second."""
    return _logarithms(classes_second(output, target))


CLASSES: tuple[Reading, ...] = (
    classes_last, classes_second, probabilities_last, probabilities_second,
)  # fmt: skip
