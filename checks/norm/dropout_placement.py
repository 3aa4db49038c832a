"""NORM103: whether dropout stands where it does no harm."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.control import without_dropout
from nnaudit.loop.graph import FUNCTION, LOSS
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import BatchStatistics, Observation
from nnaudit.probes.first_steps import First, FirstSteps, initial_steps
from nnaudit.report import Kind, Result, Table
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import Dropout


class DropoutPlacement(Check):
    """Does dropout stand neither on the output nor where batch normalisation feels it?

    Why: Dropout on the output sets logits to zero at random, which are then answers as good as
        any other: the loss can no longer be made small. Before a batch normalisation it raises
        the variance that this one measures and remembers, and in eval mode, without dropout, it
        divides by a variance that is not there.
    How: Judgement. Whether what a dropout returns is the loss's input is followed by identity in
        the first training step. Where dropout and batch normalisation are both in use, the first
        step is repeated at the same weights without dropout, and for each normalisation the
        variances of its input by channel are compared. A median ratio above 1.5 anywhere, which
        dropout of a third right before it makes, is a note: many networks are built so and do
        well. Whether predictions suffer is MODE104's question. Dropout on the output is a
        warning.
    Fix: take dropout off the output; move it behind the last batch normalisation, or use
        nn.LayerNorm or nn.GroupNorm.
    References: Li et al., "Understanding the Disharmony between Dropout and Batch Normalization
        by Variance Shift" (CVPR 2019).
    """

    code, name, kind = "NORM103", "dropout-placement", Kind.JUDGEMENT
    needs = (Needs.STEPS,)
    probes = (FirstSteps,)
    options: ClassVar[dict[str, float]] = {"ratio": 1.5}

    def run(self, audit: Audit) -> Result:
        """Look at the output, then at the variances."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        seen = first.completed[0]
        dropouts = _dropouts(audit, seen)
        if not dropouts:
            return self.skipped("No dropout is in use.")
        if last := _on_the_output(seen, dropouts):
            return self._on_output(audit, last, seen.loss_calls)
        if not seen.batch_statistics:
            return self.passed("Dropout is not on the output, and nothing is batch-normalised.")
        return self._before_statistics(audit, first, seen)

    def _on_output(self, audit: Audit, last: str, calls: list[LossCall]) -> Result:
        modules = dict(audit.loop.model.named_modules())
        where = audit.loop.locate(modules[last]) if last in modules else None
        return self.warned(
            f"What the loss is given comes straight out of a dropout ({last}): outputs are set to "
            "zero at random.",
            measured="dropout on the output",
            threshold="none",
            module=last if last in modules else "",
            location=where or next((c.location for c in calls if c.location is not None), None),
            fix="take the last dropout away, or put it before the output layer",
        )

    def _before_statistics(self, audit: Audit, first: First, seen: Observation) -> Result:
        with without_dropout(audit.loop.model):
            step = next(initial_steps(audit, [first.batches[0]]))
        quiet = step.observation.batch_statistics if step.observation is not None else []
        ratios = _ratios(seen.batch_statistics, quiet)
        if not ratios:
            return self.inconclusive("The variances could not be compared without dropout.")
        limit = self.option(audit, "ratio")
        worst = max(ratios, key=lambda name: ratios[name])
        details: dict[str, Any] = {
            "measured": f"variance {ratios[worst]:.2f} times as large with dropout",
            "threshold": f"{limit:g} times",
            "evidence": (_table(ratios),),
            "module": worst,
        }
        if ratios[worst] <= limit:
            return self.passed(
                f"With dropout the input of {worst} has {ratios[worst]:.2f} times the variance "
                "that it has without, the most of all batch normalisations.",
                **details,
            )
        modules = dict(audit.loop.model.named_modules())
        return self.noted(
            f"Dropout makes the variance of the input of {worst} {ratios[worst]:.2f} times as "
            "large, and batch normalisation remembers it for eval mode, where it is not so "
            "(MODE104 says whether predictions suffer).",
            fix="put dropout behind the last batch normalisation, or use nn.GroupNorm or "
            "nn.LayerNorm",
            location=audit.loop.locate(modules[worst]) or audit.loop.locate(audit.loop.model),
            **details,
        )


def _dropouts(audit: Audit, seen: Observation) -> set[str]:
    modules = dict(audit.loop.model.named_modules())
    active = {a.module for a in seen.activations if a.training}
    named = {
        name for name in active if isinstance(modules.get(name), Dropout) and modules[name].p > 0.0
    }
    called = any(maker == FUNCTION for maker, _ in seen.flows)
    return named | ({FUNCTION} if called else set())


def _on_the_output(seen: Observation, dropouts: set[str]) -> str:
    """Return the dropout whose output is the loss's input; empty when there is none."""
    sizes = {call.input.numel() for call in seen.loss_calls if "input" in call.arguments}
    made = {each.module: math.prod(each.shape) for each in seen.activations}
    outputs = [tensor.numel() for _, tensor in batches.tensors(seen.output)]
    # What the model returns goes to the loss in another shape, if at all: hidden states that stand
    # beside the logits do not. Of a function's output the size is known where it is the only one.
    alone = outputs[0] if len(outputs) == 1 else None
    for maker, consumer in seen.flows:
        at_loss = consumer == LOSS or (consumer == "" and made.get(maker, alone) in sizes)
        if maker in dropouts and at_loss:
            return maker
    return ""


def _ratios(loud: list[BatchStatistics], quiet: list[BatchStatistics]) -> dict[str, float]:
    """Return, by module, the median over channels of the variances' ratio."""
    found: dict[str, float] = {}
    for a, b in zip(loud, quiet, strict=False):
        alive = b.variance > 1e-12
        if a.module == b.module and bool(alive.any()):
            ratio = float(torch.median((a.variance / b.variance)[alive]))
            if math.isfinite(ratio):
                found[a.module] = max(found.get(a.module, 0.0), ratio)
    return found


def _table(ratios: dict[str, float]) -> Table:
    return Table(
        title="Variance of the input with dropout over that without",
        columns=("batch normalisation", "ratio"),
        rows=tuple(sorted(ratios.items(), key=lambda row: -row[1])[:20]),
    )
