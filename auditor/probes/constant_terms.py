"""Terms of the loss that no parameter can change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop, seed_everything
from nnaudit.loop.control import constant_lr
from nnaudit.loop.losses import LOSS_FUNCTIONS
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.result_tap import FunctionTap
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import callstack

STEPS = 3
MOST = 4
"""Candidates that are tried."""


@dataclass(frozen=True)
class ConstantTerm:
    """A call of a loss function that adds to what is back-propagated, and trains nothing.

    Attributes:
        kind: our name for the loss function.
        location: the user's line that called it.
        value: what it returned in the first step (its mean).
        weight: by how much the total loss moves when it moves by one.
        equal: its input and its target held the same values in every step.
    """

    kind: str
    location: Location | None
    value: float
    weight: float
    equal: bool


@dataclass(frozen=True)
class _Call:
    kind: str
    location: Location | None
    value: float
    constant: bool
    equal: bool


class ConstantTerms(Probe[tuple[ConstantTerm, ...]]):
    """Looks for calls without a graph, or of equal arguments, and moves what they return."""

    steps = 8

    def measure(self, audit: Audit) -> tuple[ConstantTerm, ...]:
        """Take a few steps, and two or three more of the first for each candidate.

        A term that enters the loss as a weight or a divisor changes the gradients when it is moved,
        and is no term of a sum.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        some = list(consecutive_batches(loop, STEPS))
        series: list[list[_Call]] = []
        with preserved(loop.subjects), constant_lr(loop):  # a warm-up from zero moves nothing
            for batch in some:
                audit.clock.check()
                series.append(_calls_of(loop, batch))
        if len({tuple(call.kind for call in calls) for calls in series}) != 1:
            return ()
        found: list[ConstantTerm] = []
        for index, calls in enumerate(zip(*series, strict=True)):
            constant = all(call.constant for call in calls)
            equal = all(call.equal for call in calls)
            if (constant or equal) and len(found) < MOST:
                audit.clock.check()
                weight = _weight(audit, some[0], index, calls[0].value)
                first = calls[0]
                if weight is not None:
                    found.append(
                        ConstantTerm(first.kind, first.location, first.value, weight, equal)
                    )
        return tuple(found)


def _calls_of(loop: Loop, batch: Any) -> list[_Call]:
    loop.prepare(batch)
    tap = _Tap()
    with tap:
        loop.step(batch)
    return tap.calls


def _weight(audit: Audit, batch: Any, index: int, value: float) -> float | None:
    """Return by how much the loss moves with the call's value; None if gradients move too."""
    shift = 1.0 + abs(value)
    base = _replayed(audit, batch, None)
    again = _replayed(audit, batch, None)
    moved = _replayed(audit, batch, (index, shift))
    weight = (moved[0] - base[0]) / shift
    if abs(moved[0] - base[0]) <= 10 * abs(again[0] - base[0]) + 1e-6 * abs(base[0]):
        return None  # it is computed to be looked at
    noise = _distance(base[1], again[1])
    return weight if _distance(base[1], moved[1]) <= 10 * noise else None


def _replayed(
    audit: Audit, batch: Any, shift: tuple[int, float] | None
) -> tuple[float, list[Tensor]]:
    """Take the step from the same state; return its loss and the gradients that were used."""
    loop, gradients = audit.loop, list[Tensor]()

    def read(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients.extend(
            p.grad.detach().clone() for p in parameters_of(optimizer) if p.grad is not None
        )

    with preserved(loop.subjects):
        loop.prepare(batch)
        hooks = [optimizer.register_step_pre_hook(read) for optimizer in loop.optimizers]
        try:
            seed_everything(audit.seed)
            with _Tap(shift):
                loss = loop.step(batch).loss
        finally:
            for hook in hooks:
                hook.remove()
    return loss, gradients


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    if len(one) != len(other):
        return float("inf")
    pairs = zip(one, other, strict=True)
    return max((float((a.to_dense() - b.to_dense()).abs().max()) for a, b in pairs), default=0.0)


class _Tap(FunctionTap):
    """Records calls of loss functions; adds ``shift`` to what the one of that number returns."""

    def __init__(self, shift: tuple[int, float] | None = None) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._shift = shift

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Record a loss, and add to the one that is to be moved."""
        if func not in LOSS_FUNCTIONS or not isinstance(result, Tensor) or not result.numel():
            return result
        live = torch.is_grad_enabled()
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        self.calls.append(
            _Call(
                kind=LOSS_FUNCTIONS[func],
                location=callstack.user_line(),
                value=float(result.detach().float().mean()),
                constant=live and not result.requires_grad,
                equal=live and _are_equal(given),
            )
        )
        if self._shift is not None and len(self.calls) - 1 == self._shift[0]:
            return result + self._shift[1]
        return result


def _are_equal(given: list[Tensor]) -> bool:
    """Whether a loss compares something that is not all alike with itself."""
    if len(given) < 2:
        return False
    one, other = (each.detach() for each in given[:2])
    if one.shape != other.shape or one.dtype != other.dtype or one.numel() < 2:
        return False
    return torch.equal(one, other) and bool((one != one.flatten()[0]).any())
