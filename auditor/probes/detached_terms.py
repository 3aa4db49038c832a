"""Terms of the loss that change with the parameters, and through which no gradient comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import seed_everything
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.result_tap import ResultTap
from nnaudit.measure.term_gradients import FirstBackward, sums_of
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import callstack

STEP = 0.02
"""By so much of themselves the parameters are moved, to both sides."""

_LEAST = 1e-5
"""A slope below this share of the loss is rounding."""

_AGREES = 0.1
"""How far the slope that autograd lacks may be from the term's own."""

_ADD = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_SUBTRACT = frozenset({"sub", "sub_", "subtract", "__sub__", "__isub__"})


@dataclass(frozen=True)
class DetachedTerm:
    """A number that is added to the loss, depends on the parameters, and trains nothing.

    Attributes:
        value: what it adds to the loss.
        slope: by how much that grows when all parameters do, relatively.
        location: the user's line that adds it.
    """

    value: float
    slope: float
    location: Location | None


class DetachedTerms(Probe[tuple[DetachedTerm, ...]]):
    """Finds the addends of the total loss without a graph, and moves the parameters.

    An addend that follows them may be a trick that cancels out, such as the maximum that is taken
    out of a logarithm of sums. Where it is a term, the derivative of the loss, by differences, is
    what autograd says plus what the addend has: the two are compared.
    """

    steps = 8

    def measure(self, audit: Audit) -> tuple[DetachedTerm, ...]:
        """Take one step, and three more of the same where there is such an addend.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        batch = next(iter(consecutive_batches(audit.loop, 1)), None)
        try:
            base = _read(audit, batch, 0.0)
            if not base.addends or base.total is None:
                return ()
            again, up, down = (_read(audit, batch, by) for by in (0.0, STEP, -STEP))
        except (UserCodeError, RuntimeError):
            return ()
        return found_in(base, again, up, down)


@dataclass
class _Addend:
    value: float
    sign: float
    node: Any
    result: Tensor
    location: Location | None


@dataclass
class Reading:
    """What one step says.

    Attributes:
        addends: what is added to the loss without a graph, each with its line.
        total: the first scalar that is back-propagated; None for none.
        slope: its derivative along the parameters, by autograd.
    """

    addends: list[tuple[float, Location | None]] = field(default_factory=list)
    total: float | None = None
    slope: float = 0.0


def found_in(base: Reading, again: Reading, up: Reading, down: Reading) -> tuple[DetachedTerm, ...]:
    """Return the addends that are terms: of a step, its repetition, and with parameters moved."""
    readings = (base, again, up, down)
    if len({len(each.addends) for each in readings}) != 1:
        return ()
    totals = [each.total for each in readings if each.total is not None]
    if len(totals) != len(readings):
        return ()
    least = max(_LEAST * abs(totals[0]), 10 * abs(totals[1] - totals[0]) / STEP)
    lacking = (totals[2] - totals[3]) / (2 * STEP) - base.slope
    found = []
    for i, (value, location) in enumerate(base.addends):
        slope = (up.addends[i][0] - down.addends[i][0]) / (2 * STEP)
        if abs(slope) > least:
            found.append(DetachedTerm(value, slope, location))
    together = sum(term.slope for term in found)
    agrees = abs(lacking - together) < _AGREES * abs(together)
    return tuple(found) if agrees else ()


def _read(audit: Audit, batch: Any, moved: float) -> Reading:
    """Take the step on ``batch`` with the parameters ``moved`` by so much of themselves."""
    loop = audit.loop
    parameters = list(
        {id(p): p for o in loop.optimizers for p in parameters_of(o) if p.requires_grad}.values()
    )
    reading, tap = Reading(), _Tap()

    def look(root: Tensor) -> None:
        gradients = torch.autograd.grad(root, parameters, retain_graph=True, allow_unused=True)
        reading.total = float(root.detach())
        reading.slope = sum(
            float((g.double() * p.detach().double()).sum())
            for g, p in zip(gradients, parameters, strict=True)
            if g is not None
        )
        sums = set(sums_of(root))
        for addend in tap.addends:
            if addend.node in sums:
                scale = float(torch.autograd.grad(root, [addend.result], retain_graph=True)[0])
                reading.addends.append((addend.sign * scale * addend.value, addend.location))

    with preserved(loop.subjects):
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1 + moved)
        loop.prepare(batch)
        seed_everything(audit.seed)
        with tap, FirstBackward(look):
            loop.step(batch)
    return reading


class _Tap(ResultTap):
    """Notes the numbers without a graph that are added to numbers with one."""

    def __init__(self) -> None:
        super().__init__()
        self.addends: list[_Addend] = []

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Note the operand without a graph of a sum that has one."""
        name = getattr(func, "__name__", "")
        if name not in _ADD and name not in _SUBTRACT:
            return
        if made.numel() != 1 or made.grad_fn is None:
            return
        if len(args) != 2 or kwargs or len(self.addends) >= 64:
            return
        if name in _SUBTRACT and float(args[0]) == float(args[1]):
            return  # loss - loss.detach(): the value goes, and the gradient is to stay
        for place, (operand, other) in enumerate((args, args[::-1])):
            if _is_dead(operand) and isinstance(other, Tensor) and other.requires_grad:
                sign = -1.0 if name in _SUBTRACT and place == 1 else 1.0
                self.addends.append(
                    _Addend(float(operand), sign, made.grad_fn, made, callstack.user_line())
                )


def _is_dead(operand: Any) -> bool:
    """Whether it is a number that may have been computed, and has no graph."""
    if isinstance(operand, Tensor):
        return operand.numel() == 1 and not operand.requires_grad
    return type(operand) is float
