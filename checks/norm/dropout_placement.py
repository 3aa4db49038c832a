"""NORM103: whether dropout comes last, or before a batch normalisation."""

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
    """Is dropout kept off the output and from in front of batch normalisation?

    Why: Dropout on the output sets predictions to zero at random, so the loss cannot become small.
        In front of a batch normalisation it raises the variance that goes into the running
        statistics; in eval mode there is no dropout, and the running variance is too large.
    How: In the first training step it is followed whether a dropout's output is the loss's input.
        If so, it warns. Where dropout and batch normalisation are both in use, the first step is
        repeated from the same weights without dropout, and the variances of each normalisation's
        input are compared by channel. A median ratio above the option `ratio` is a note (dropout of
        a third right before a normalisation makes 1.5): many networks are built so and do well.
        Whether predictions suffer is MODE104's question.
    Fix: remove dropout from the output; move it behind the last batch normalisation, or use
        nn.LayerNorm or nn.GroupNorm.
    References: Li et al., "Understanding the Disharmony between Dropout and Batch Normalization
        by Variance Shift" (CVPR 2019).
    """

    code, name, kind = "NORM103", "dropout-placement", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
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
            return self.passed("Dropout is not on the output, and there is no batch normalisation.")
        return self._before_statistics(audit, first, seen)

    def _on_output(self, audit: Audit, last: str, calls: list[LossCall]) -> Result:
        modules = dict(audit.loop.model.named_modules())
        where = audit.loop.locate(modules[last]) if last in modules else None
        return self.warned(
            f"The loss gets the output of a dropout ({last}): predictions are set to zero at "
            "random.",
            measured="dropout on the output",
            threshold="no dropout on the output",
            module=last if last in modules else "",
            location=where or next((c.location for c in calls if c.location is not None), None),
            fix="remove the last dropout, or move it before the output layer",
        )

    def _before_statistics(self, audit: Audit, first: First, seen: Observation) -> Result:
        with without_dropout(audit.loop.model):
            step = next(initial_steps(audit, [first.batches[0]]))
        without = step.observation.batch_statistics if step.observation is not None else []
        ratios = _ratios(seen.batch_statistics, without)
        if not ratios:
            return self.inconclusive(
                "Not judged: the variances without dropout could not be measured."
            )
        limit = self.option(audit, "ratio")
        worst = max(ratios, key=lambda name: ratios[name])
        details: dict[str, Any] = {
            "measured": f"{ratios[worst]:.2f} times the variance with dropout",
            "threshold": f"at most {limit:g} times",
            "evidence": (_table(ratios),),
            "module": worst,
        }
        if ratios[worst] <= limit:
            return self.passed(
                f"Dropout hardly changes what batch normalisation sees: {ratios[worst]:.2f} times "
                f"the variance at most (input of {worst}).",
                **details,
            )
        modules = dict(audit.loop.model.named_modules())
        return self.noted(
            f"Dropout makes the variance of the input of {worst} {ratios[worst]:.2f} times as "
            "large; its running variance is too large for eval mode, where there is no dropout. "
            "MODE104 says whether predictions suffer.",
            fix="move dropout behind the last batch normalisation, or use nn.GroupNorm or "
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


def _ratios(dropped: list[BatchStatistics], kept: list[BatchStatistics]) -> dict[str, float]:
    """Return, by module, the median over channels of the variances' ratio."""
    found: dict[str, float] = {}
    for a, b in zip(dropped, kept, strict=False):
        alive = b.variance > 1e-12
        if a.module == b.module and bool(alive.any()):
            ratio = float(torch.median((a.variance / b.variance)[alive]))
            if math.isfinite(ratio):
                found[a.module] = max(found.get(a.module, 0.0), ratio)
    return found


def _table(ratios: dict[str, float]) -> Table:
    return Table(
        title="Variance of the input with dropout, relative to without",
        columns=("batch normalisation", "ratio"),
        rows=tuple(sorted(ratios.items(), key=lambda row: -row[1])[:20]),
    )
