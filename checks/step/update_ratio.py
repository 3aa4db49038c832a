"""STEP108: whether a step changes the weights by a sensible share."""

from __future__ import annotations

import math
import statistics
from typing import ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.control import planned_lr
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.report import Histogram, Kind, Result, Table


class UpdateRatio(Check):
    """Does a step change the weights by a share between a hundred-thousandth and a tenth?

    Why: the size of an update against the size of the weights says more about a learning rate
        than the rate itself. Around a thousandth is usual. Far below, nothing will be learnt in
        the time that a run has; far above, each step throws away what was learnt.
    How: the norm of each weight matrix's update over the norm of the matrix, in the first steps,
        at the highest learning rate that the group is planned to reach (updates are proportional
        to it). The median of the logarithm over matrices and steps is compared with -5 and -1,
        two powers of ten to either side of the usual -3. A matrix that starts smaller than
        1 / sqrt(fan-in), as embeddings often do, is taken as that large for the upper bound, for
        it is meant to grow. Vectors, matrices of zeros and
        optimizers with a line search are left out. It is a judgement and no more than a warning:
        whether the network learns is FIT's question.
    Fix: change the learning rate until the ratio is about 1e-3.
    References: Andrej Karpathy, "Building makemore part 3" (2022); Leon Bottou, "Stochastic
        Gradient Descent Tricks" (2012).
    """

    code, name, kind = "STEP108", "update-ratio", Kind.JUDGEMENT
    needs = (Needs.STEPS,)
    probes = (FirstSteps,)
    options: ClassVar[dict[str, float]] = {"low": -5.0, "high": -1.0}

    def run(self, audit: Audit) -> Result:
        """Take the median over weight matrices."""
        loop, first = audit.loop, audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        if any(isinstance(o, (torch.optim.LBFGS, torch.optim.Rprop)) for o in loop.optimizers):
            return self.skipped("The optimizer chooses the size of its steps itself.")
        ratios = _ratios(loop, first)
        if not ratios:
            return self.inconclusive("No weight matrix was updated at a learning rate above 0.")
        by_name = {name: statistics.median(values) for name, values in ratios.items()}
        low, high = self.option(audit, "low"), self.option(audit, "high")
        median = statistics.median(by_name.values())
        if median > high:
            grown = _ratios(loop, first, grown=True)
            median = statistics.median(statistics.median(values) for values in grown.values())
        said = (
            f"A step changes the weights by a share of 10^{median:.1f} in the median of "
            f"{len(by_name)} matrices"
        )
        evidence = (_histogram(by_name), _table(by_name))
        if low <= median <= high:
            return self.passed(f"{said}.", evidence=evidence)
        rates = sorted({planned_lr(g) for o in loop.optimizers for g in o.param_groups})
        better = rates[-1] * 10 ** (-3.0 - median)
        what = "hardly change" if median < low else "are overwritten"
        return self.warned(
            f"{said}: the weights {what} at learning rate {rates[-1]:.2g}.",
            measured=f"median log10(update / weight) = {median:.1f}",
            threshold=f"between {low:g} and {high:g}",
            evidence=evidence,
            location=loop.locate("optimizer"),
            fix=f"lr={better:.0e} would make the ratio about 1e-3",
        )


def _ratios(loop: Loop, first: First, *, grown: bool = False) -> dict[str, list[float]]:
    """Return log10(update / weight) of every weight matrix, per step, at the planned rate.

    With ``grown``, matrices that are smaller than usual are taken as of the usual size.
    """
    usual = {name: _usual_norm(p) if grown else 0.0 for name, p in loop.model.named_parameters()}
    names = {id(p): name for name, p in loop.model.named_parameters() if p.ndim >= 2}
    groups: dict[str, tuple[int, float]] = {}
    number = 0
    for optimizer in loop.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in names:
                    groups[names[id(parameter)]] = (number, planned_lr(group))
            number += 1
    found: dict[str, list[float]] = {}
    for step in first.steps:
        for g in step.observation.gradients if step.observation else []:
            if g.parameter not in groups or not g.update_norm or not g.weight_norm:
                continue
            number, planned = groups[g.parameter]
            rate = float(step.lr[number]) if number < len(step.lr) else 0.0
            if rate > 0.0 and math.isfinite(g.update_norm):
                weight = max(g.weight_norm, usual[g.parameter])
                ratio = g.update_norm / weight * max(planned / rate, 1.0)
                found.setdefault(g.parameter, []).append(math.log10(ratio))
    return found


def _usual_norm(parameter: Tensor) -> float:
    """Return the norm of a matrix of this shape with elements of size 1 / sqrt(fan-in)."""
    fan_in = max(math.prod(parameter.shape[1:]), 1)
    return math.sqrt(parameter.numel() / fan_in)


def _histogram(by_name: dict[str, float]) -> Histogram:
    low = math.floor(min(by_name.values()))
    high = max(math.ceil(max(by_name.values())), low + 1)
    edges = tuple(low + i / 2 for i in range(2 * (high - low) + 1))
    counts = [0] * (len(edges) - 1)
    for value in by_name.values():
        counts[min(int(2 * (value - low)), len(counts) - 1)] += 1
    return Histogram(
        title="Update over weight, by matrix",
        x_label="log10(update / weight)",
        edges=edges,
        counts=tuple(counts),
    )


def _table(by_name: dict[str, float]) -> Table:
    ordered = sorted(by_name.items(), key=lambda item: item[1])
    shown = ordered if len(ordered) <= 20 else [*ordered[:10], *ordered[-10:]]
    return Table(
        title="Update over weight, by matrix",
        columns=("parameter", "log10(update / weight)"),
        rows=tuple((name, round(value, 2)) for name, value in shown),
    )
