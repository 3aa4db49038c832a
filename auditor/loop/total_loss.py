"""Which of a step's calls of a loss function is the total loss.

The total loss is the scalar that a step minimises. It is the value of one call, that value times a
constant (an accumulation count), the mean or sum of a call's elements, or none of these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nnaudit.loop.loss_formulas import Formula
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation

TOLERANCE = 1e-4
"""Relative difference up to which two numbers are one loss.

The same sum in another order differs by a few float32 roundings, 1e-6; a second term of a loss
that is worth naming is larger than this.
"""

STEADY = 1e-3
"""Up to this much may the ratio of total loss and call move from step to step.

More than :data:`TOLERANCE`, for a small penalty beside the loss moves it without meaning much.
"""

AVERAGED_BY_HAND = 0.2
"""Likewise for calls that return one loss per element: masked elements are often left out."""

_SMALL = 1e-6
"""Losses below are compared as if they were this large."""


def is_total(value: float, total: float) -> bool:
    """Whether ``value`` is the loss ``total``, up to :data:`TOLERANCE`."""
    return abs(value - total) <= TOLERANCE * max(abs(value), abs(total), _SMALL)


def call_worth(calls: Iterable[LossCall], total: float) -> LossCall | None:
    """Return the first of ``calls`` whose value is ``total``; None where there is none."""
    for call in calls:
        if (
            call.value is not None
            and call.value.numel() == 1
            and is_total(float(call.value), total)
        ):
            return call
    return None


def call_of_total(seen: Observation) -> LossCall | None:
    """Return the call that compares output and target, and whose value is the total loss.

    Where the user averaged or summed its elements, it comes with that reduction. None for losses
    that are composite, hand-written or no number.
    """
    total = seen.total_loss
    if total is None or not math.isfinite(total):
        return None
    if (found := call_worth(seen.loss_calls, total)) is not None:
        return found if found.compares else None
    for call in seen.loss_calls:
        if call.reduction == "none" and call.compares:
            for reduction in ("mean", "sum"):
                reduced = dataclasses.replace(
                    call, arguments={**call.arguments, "reduction": reduction}
                )
                if is_total(float(reduced.recompute(call.input)), total):
                    return reduced
    return None


@dataclass(frozen=True)
class MainLoss:
    """A loss function behind the total loss.

    Attributes:
        calls: its call in each step.
        index: which of a step's loss calls it is.
        factor: total loss over what the call returned (its mean, when it returned one loss per
            element): 0.25 where four micro-batches are accumulated.
        formula: what the user wrote by hand, of which ``calls`` holds the first step's value; None
            for a call that was recorded.
        whole: whether there is nothing else in the total loss.
    """

    calls: tuple[LossCall, ...]
    index: int = 0
    factor: float = 1.0
    formula: Formula | None = None
    whole: bool = True


def main_loss_of(seen: Sequence[Observation]) -> MainLoss | None:
    """Return the recorded call that explains the total loss of all of ``seen``, or None."""
    found = [_alone(index, calls, seen) for index, calls in enumerate(call_series(seen))]
    whole = [main for main in found if main is not None]
    return min(whole, key=lambda main: abs(math.log(main.factor)), default=None)


def call_series(seen: Sequence[Observation]) -> list[tuple[LossCall, ...]]:
    """Return the n-th loss call of every step, for each n; empty where steps call differently."""
    kinds = {tuple(call.kind for call in observation.loss_calls) for observation in seen}
    if len(kinds) != 1:
        return []
    return list(zip(*(observation.loss_calls for observation in seen), strict=True))


def steady_ratio(
    calls: Sequence[LossCall], seen: Sequence[Observation], tolerance: float = STEADY
) -> float | None:
    """Return the total loss over the mean value of its call, if that is the same in all steps."""
    ratios = []
    for call, observation in zip(calls, seen, strict=True):
        if call.value is None or observation.total_loss is None or not call.value.numel():
            return None
        value = float(call.value.float().mean())
        if not (math.isfinite(value) and math.isfinite(observation.total_loss)) or value == 0.0:
            return None
        ratios.append(observation.total_loss / value)
    first = ratios[0]
    if first == 0.0 or any(abs(ratio / first - 1.0) > tolerance for ratio in ratios):
        return None
    return first


def _alone(index: int, calls: tuple[LossCall, ...], seen: Sequence[Observation]) -> MainLoss | None:
    """Whether ``calls`` times a positive constant are the total loss of all steps."""
    per_element = all(call.value is not None and call.value.numel() > 1 for call in calls)
    tolerance = AVERAGED_BY_HAND if per_element else STEADY
    ratio = steady_ratio(calls, seen, tolerance)
    if ratio is None or ratio <= 0.0:
        return None
    # With one or two steps a constant factor cannot be told from a second term.
    if len(calls) < 3 and abs(ratio - 1.0) > tolerance:
        return None
    return MainLoss(calls, index, ratio)
