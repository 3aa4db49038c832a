"""LOSS102: whether output and target of an elementwise loss have the same shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.losses import ELEMENTWISE, LossCall
from nnaudit.probes.broadcasts import broadcasts_of_rows
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.report import Kind, Location, Result, Status, Table

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Mismatch:
    """An output and a target of different shapes in one loss; ``where`` says in which."""

    where: str
    output: Shape
    target: Shape
    status: Status
    location: Location | None

    @property
    def made(self) -> Shape | None:
        """The shape they make together; None when they make none."""
        return _together(self.output, self.target)


class LossBroadcast(Check):
    """Do output and target have the same shape in every elementwise loss?

    Why: An output of shape (N, 1) and a target of shape (N,) broadcast to (N, N): every prediction
        is compared with the targets of all other rows, and the best it can do is predict their
        mean. The loss is a number like any other, falls a little at first, and stays there.
    How: Compares the shapes that loss functions get in the first steps, and subtractions and
        products in the user's own formulas. It is exact, without a threshold.
        - Fails when both shapes are widened by broadcasting, or when they do not fit and torch
          raises.
        - A formula counts when one operand has a gradient and the other does not, their numbers
          differ, and both shapes follow the batch when it is cut by one row: an intended table of
          all pairs is left alone. A product counts where it is by the batch's own targets.
        - Warns when only one side is widened, which may be intended. A single number, a divergence
          from one distribution, or a missing leading dimension are at most noted.
    Fix: `loss_fn(output.squeeze(1), target)`, or `target.unsqueeze(1)`.
    References: PyTorch documentation of MSELoss and of broadcasting semantics.
    """

    code, name, kind = "LOSS102", "loss-broadcast", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)

    def run(self, audit: Audit) -> Result:
        """Compare the shapes in each loss of the first steps."""
        first = audit.probe(FirstSteps)
        found = [*_in_functions(first), *_in_formulas(audit, first)]
        rank = (Status.FAIL, Status.WARN, Status.NOTE)
        found.sort(key=lambda mismatch: rank.index(mismatch.status))
        if found:
            return self._mismatched(audit, found)
        calls = [call for seen in first.observations for call in _compared(seen.loss_calls)]
        if not any(seen.loss_calls for seen in first.observations):
            first.require()
        if not calls:
            return self.passed("No loss compares output and target element by element.")
        shapes = tuple(calls[0].input.shape)
        return self.passed(f"Output and target of {calls[0].kind} both have shape {shapes}.")

    def _mismatched(self, audit: Audit, found: list[Mismatch]) -> Result:
        worst = found[0]
        both = f"an output of shape {worst.output} and a target of shape {worst.target}"
        details: dict[str, Any] = {
            "fix": _fix(worst),
            "measured": f"{worst.output} and {worst.target}",
            "threshold": "equal shapes",
            "evidence": (_table(found),),
            "location": worst.location or audit.loop.locate("loss"),
        }
        if worst.made is None:
            return self.failed(f"{worst.where} gets {both}, which cannot be broadcast.", **details)
        if worst.status is Status.FAIL:
            return self.failed(
                f"{worst.where} gets {both}, which broadcast to {worst.made}: every prediction is "
                "compared with the targets of all rows, so only their mean can be learnt.",
                **details,
            )
        message = f"{worst.where} gets {both}, one of which is broadcast to {worst.made}."
        return self.answer(worst.status, message, **details)


def _together(one: Shape, other: Shape) -> Shape | None:
    """Return the shape that two shapes are broadcast to; None when they do not fit."""
    pairs = list(zip_longest(reversed(one), reversed(other), fillvalue=1))
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        return None
    return tuple(b if a == 1 else a for a, b in reversed(pairs))


def _compared(calls: list[LossCall]) -> Iterator[LossCall]:
    for call in calls:
        operands = (call.arguments.get("input"), call.arguments.get("target"))
        if call.kind in ELEMENTWISE and all(isinstance(each, Tensor) for each in operands):
            yield call


def _in_functions(first: First) -> Iterator[Mismatch]:
    for seen in first.observations:
        for call in _compared(seen.loss_calls):
            output, target = tuple(call.input.shape), tuple(call.target.shape)
            status = _severity(call, output, target)
            if status is not None:
                yield Mismatch(call.kind, output, target, status, call.location)


def _severity(call: LossCall, output: Shape, target: Shape) -> Status | None:
    if output == target:
        return None
    made = _together(output, target)
    if made is None:
        # Only what raised was refused; a subclass may know better.
        return Status.FAIL if call.value is None else None
    sizes = (call.input.numel(), call.target.numel())
    if math.prod(made) > max(sizes):
        return Status.FAIL
    if call.value is None:
        return Status.FAIL if call.kind in ("bce", "bce_with_logits") else None
    if sizes[0] == sizes[1] or min(sizes) == 1 or call.kind == "kl_div":
        return None
    return Status.WARN if len(output) == len(target) else Status.NOTE


def _in_formulas(audit: Audit, first: First) -> Iterator[Mismatch]:
    """Yield differences and products of (N, 1) and (N,), also when the batch has a row less."""
    for each in broadcasts_of_rows(audit, first):
        if not each.compared:
            column, flat = sorted(each.shapes, key=len, reverse=True)
            where = "A subtraction" if each.factor is None else "A product"
            yield Mismatch(where, column, flat, Status.FAIL, each.location)


def _fix(mismatch: Mismatch) -> str:
    output, target = mismatch.output, mismatch.target
    if len(output) == len(target) + 1:
        at = output.index(1) if 1 in output else len(output) - 1
        at = len(output) - 1 if output[-1] == 1 else at
        return f"loss = loss_fn(output.squeeze({at}), target)"
    if len(target) == len(output) + 1:
        at = len(target) - 1 if target[-1] == 1 else 0
        return f"loss = loss_fn(output, target.squeeze({at}))"
    return "Give both the same shape; if broadcasting is intended, write target.expand_as(output)."


def _table(found: list[Mismatch]) -> Table:
    rows = dict.fromkeys(
        (each.where, str(each.output), str(each.target), str(each.made)) for each in found
    )
    return Table(
        title="Shapes that differ",
        columns=("where", "output", "target", "broadcast to"),
        rows=tuple(rows),
    )
