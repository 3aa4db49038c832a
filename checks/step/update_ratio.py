"""STEP108: whether a step changes the weights by a sensible fraction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs, Step
from nnaudit.loop.control import constant_lr
from nnaudit.loop.planned_rate import planned_lr
from nnaudit.probes.first_steps import STEPS, First, FirstSteps, observed_steps
from nnaudit.report import Histogram, Kind, Result, Table

_LATER = 30
"""Steps after which a steep start is over: healthy ones took 5 to 15."""


class UpdateRatio(Check):
    """Does a step change the weights by a fraction between 1e-5 and 1e-1?

    Why: The size of an update relative to the weights says more about a learning rate than the rate
        itself. Around 1e-3 is usual. Far below that nothing is learnt in the time that a run has;
        far above it each step overwrites what was learnt.
    How: For each weight matrix, the norm of its update is divided by the norm of the matrix, in the
        first steps and at the highest learning rate planned for its group (updates are proportional
        to it). The median of log10 of that ratio over matrices and steps is compared with the
        options `low` and `high`, two powers of ten to either side of the usual -3. Outside is a
        warning; whether the network learns is for FIT to say.
        - A matrix smaller than 1 / sqrt(fan-in) per element, as embeddings often are, is taken as
          that large for the upper limit: it is meant to grow.
        - Where the first steps exceed the limit, 30 are taken, because weights before a
          normalisation grow and a steep start is over soon. It passes when the last five are below
          it (relative to the initial weights) and their median loss is below all of the first five.
        - Not counted: vectors, matrices of zeros, matrices without a gradient in the first step
          (behind a gate that starts at zero), optimizers with a line search.
    Fix: change the learning rate, lr=..., until the ratio is about 1e-3.
    References: Andrej Karpathy, "Building makemore part 3" (2022); Leon Bottou, "Stochastic
        Gradient Descent Tricks" (2012); van Laarhoven, "L2 Regularization versus Batch and Weight
        Normalization" (2017), for the steps of weights whose scale does not matter.
    """

    code, name, kind = "STEP108", "update-ratio", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)
    options: ClassVar[dict[str, float]] = {"low": -5.0, "high": -1.0}

    def run(self, audit: Audit) -> Result:
        """Take the median over weight matrices."""
        loop, first = audit.loop, audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        if any(isinstance(o, (torch.optim.LBFGS, torch.optim.Rprop)) for o in loop.optimizers):
            return self.skipped("The optimizer chooses the size of its steps itself.")
        ratios = _ratios(loop, first.steps)
        if not ratios:
            return self.inconclusive(
                "Not judged: no weight matrix was updated at a learning rate above 0."
            )
        by_name = {name: statistics.median(values) for name, values in ratios.items()}
        low, high = self.option(audit, "low"), self.option(audit, "high")
        median = statistics.median(by_name.values())
        if median > high:
            sizes = _sizes(loop, first)
            ratios = _ratios(loop, first.steps, lambda name, norm: max(norm, sizes[name]))
            median = _median(ratios)
        said = (
            f"A step changes the weights by a fraction of 10^{median:.1f} (median of "
            f"{len(by_name)} matrices; 10^-3 is usual)"
        )
        evidence = (_histogram(by_name), _table(by_name))
        if low <= median <= high:
            return self.passed(f"{said}.", evidence=evidence)
        settled = _settled(audit, sizes, high) if median > high else None
        if settled is not None:
            falls = "" if loop.lacks(Needs.STEPS) else ", while the loss falls"
            return self.passed(
                f"{said} at first, and by 10^{settled:.1f} after {_LATER} steps{falls}.",
                evidence=evidence,
            )
        rates = sorted({planned_lr(loop, g) for o in loop.optimizers for g in o.param_groups})
        better = rates[-1] * 10 ** (-3.0 - median)
        what = "hardly change" if median < low else "are overwritten"
        return self.warned(
            f"{said}: the weights {what} at learning rate {rates[-1]:.2g}.",
            measured=f"median log10(update / weight) = {median:.1f}",
            threshold=f"between {low:g} and {high:g}",
            evidence=evidence,
            location=loop.locate("optimizer"),
            fix=f"set lr={better:.0e}, which makes the ratio about 1e-3",
        )


def _settled(audit: Audit, start: Mapping[str, float], high: float) -> float | None:
    """Return the median after some steps, against the weights' size at the start.

    None where it is above ``high`` still, or the loss has not fallen. Where the script makes its
    batches, and it may be its targets, the loss need not fall.
    """
    with constant_lr(audit.loop):
        steps = observed_steps(audit, _LATER)
    early, late = steps[:STEPS], steps[-STEPS:]
    ratios = _ratios(audit.loop, late, start.get)
    own = bool(audit.loop.lacks(Needs.STEPS))
    fell = own or statistics.median(step.loss for step in late) < min(step.loss for step in early)
    median = _median(ratios) if ratios else math.inf
    return median if len(steps) == _LATER and fell and median <= high else None


def _median(ratios: dict[str, list[float]]) -> float:
    return statistics.median(statistics.median(values) for values in ratios.values())


def _sizes(loop: Loop, first: First) -> dict[str, float]:
    """Return the norm of every weight matrix at the start, small ones taken as of usual size."""
    usual = {name: _usual_norm(p) for name, p in loop.model.named_parameters() if p.ndim >= 2}
    seen = first.completed[0].gradients if first.completed else []
    norms = {g.parameter: g.weight_norm or 0.0 for g in seen}
    return {name: max(norm, norms.get(name, 0.0)) for name, norm in usual.items()}


def _ratios(
    loop: Loop,
    steps: Sequence[Step],
    against: Callable[[str, float], float] = lambda name, norm: norm,
) -> dict[str, list[float]]:
    """Return log10(update / weight) of every weight matrix, per step, at the planned rate.

    ``against`` says what to divide by, given a matrix's name and its norm now.
    """
    names = {id(p): name for name, p in loop.model.named_parameters() if p.ndim >= 2}
    groups: dict[str, tuple[int, float]] = {}
    number = 0
    for optimizer in loop.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in names:
                    groups[names[id(parameter)]] = (number, planned_lr(loop, group))
            number += 1
    found: dict[str, list[float]] = {}
    closed: set[str] = set()
    for position, step in enumerate(steps):
        for g in step.observation.gradients if step.observation else []:
            if not position and not g.norm:
                closed.add(g.parameter)
            if g.parameter in closed or g.parameter not in groups:
                continue
            if not g.update_norm or not g.weight_norm:
                continue
            number, planned = groups[g.parameter]
            rate = float(step.lr[number]) if number < len(step.lr) else 0.0
            if rate > 0.0 and math.isfinite(g.update_norm):
                ratio = g.update_norm / against(g.parameter, g.weight_norm)
                ratio *= max(planned / rate, 1.0)
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
