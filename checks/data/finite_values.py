"""DATA101: NaN and infinity in the training data."""

from __future__ import annotations

import math
from typing import Any

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError, describe
from nnaudit.loop.base import Needs
from nnaudit.probes.data import Field, TrainingData
from nnaudit.report import Kind, Result, Table
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.wording import count


class FiniteValues(Check):
    """Are all inputs and targets finite numbers?

    Why: One NaN in one batch makes the loss NaN, then the gradients, then every weight, and the run
        is lost at that step, which may be hours away. NaN in a target is often a missing label;
        infinity is a logarithm of zero or a division by a zero standard deviation.
    How: Looks for NaN and infinity in every field of the first 2,048 rows of an epoch, in all rows
        of a data set in memory, else in 256 rows from across it. A program may use NaN to mark
        missing values, or -inf as an attention mask, so a batch with such values is put through the
        user's own training step: an exact test, without a threshold.
        - Fails when loss or gradients become NaN or infinite, and the same batch with zeros in
          place of these values trains.
        - Notes when loss and gradients stay finite: the program handles such values.
        - Is inconclusive when both batches fail: something else is at fault.
    Fix: Drop or impute the rows: `x = torch.nan_to_num(x)`; mask the loss where a target is
        missing; write `torch.log(x + eps)`, `x / std.clamp(min=eps)`.
    References: IEEE 754 (NaN propagates through arithmetic). Sculley et al., Hidden Technical Debt
        in Machine Learning Systems (2015).
    """

    code = "DATA101"
    name = "finite-values"
    kind = Kind.EXACT
    needs = (Needs.OWN_BATCHES,)
    probes = (TrainingData,)

    def run(self, audit: Audit) -> Result:
        """Look at the data, and at what a bad batch does to a step."""
        data = audit.probe(TrainingData)
        bad = data.bad_fields
        if not bad:
            rows = max((each.rows for each in data.fields.values()), default=data.rows)
            return self.passed(f"All values in the {rows:,} rows read are finite.")
        table = _table(bad)
        what = _in_words(bad)
        if data.bad_batch is None:
            return self.inconclusive(
                f"{what}, in rows that could not be collated into a batch.", evidence=(table,)
            )
        harm = _harm(audit, data.bad_batch)
        if not harm:
            return self.noted(
                f"{what}; the training step handles them: loss and gradients stay finite.",
                evidence=(table,),
            )
        repaired = batches.map_leaves(data.bad_batch, _without_bad_values)
        if repaired is data.bad_batch:
            return self.inconclusive(
                f"{what}, and the training step fails ({harm}). Nothing can be put in the place of "
                "these values, so whether they are the cause is not known.",
                evidence=(table,),
            )
        if _harm(audit, repaired):
            return self.inconclusive(
                f"{what}; the training step fails ({harm}), but also with zeros in their place, so "
                "the cause is unclear.",
                evidence=(table,),
            )
        return self.failed(
            f"{what}: {harm}. With zeros in their place it trains.",
            measured=count(sum(each.bad for each in bad), "NaN or infinite value"),
            threshold="0 values",
            evidence=(table,),
            location=audit.loop.locate("train_loader"),
            fix="x = torch.nan_to_num(x)  # or drop these rows, or mask them in the loss",
        )


def _harm(audit: Audit, batch: Any) -> str:
    """Say what a training step on ``batch`` shows that is not finite; empty when all is."""
    loop = audit.loop
    with preserved(loop.subjects):
        try:
            if loop.lacks(Needs.OWN_STEPS):
                forward = loop.forward(batch)
                loss = 0.0 if forward.loss is None else forward.loss
                finite = _all_finite(forward.output)
            else:
                audit.require_steps()
                step = loop.step(batch, observe=True)
                loss = step.loss
                seen = step.observation
                finite = seen is None or all(gradient.finite for gradient in seen.gradients)
        except UserCodeError as error:
            return f"the training step raises {describe(error.original)}"
    if not math.isfinite(loss):
        return f"the loss becomes {loss}"
    return "" if finite else "the gradients become NaN or infinite"


def _all_finite(output: Any) -> bool:
    return all(
        bool(torch.isfinite(tensor).all())
        for _, tensor in batches.tensors(output)
        if tensor.is_floating_point()
    )


def _without_bad_values(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
        return torch.where(torch.isfinite(leaf), leaf, torch.zeros_like(leaf))
    return leaf


def _in_words(bad: tuple[Field, ...]) -> str:
    return ", ".join(
        f"{_name(each)} contains {_kinds(each)} values (first in row {_first(each)})"
        for each in bad[:3]
    )


def _kinds(each: Field) -> str:
    found = [
        f"{count:,} {name}"
        for count, name in ((each.missing, "NaN"), (each.infinite, "infinite"))
        if count
    ]
    return " and ".join(found)


def _name(each: Field) -> str:
    return f"batch{each.path}"  # reads like Python


def _first(each: Field) -> int:
    return each.bad_rows[0] if each.bad_rows else 0


def _table(bad: tuple[Field, ...]) -> Table:
    rows = tuple(
        (
            _name(each),
            float(each.missing),
            float(each.infinite),
            ", ".join(str(row) for row in each.bad_rows),
        )
        for each in bad
    )
    columns = ("field", "NaN", "infinite", "first rows")
    return Table(title="NaN or infinite values", columns=columns, rows=rows)
