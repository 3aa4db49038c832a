"""Fixed subsets of growing size, each trained for the same number of steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.control import constant_lr
from nnaudit.measure.subset_choice import capture
from nnaudit.probes.subsets import TinyFit, TinyFitting, fixed_rows
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError
from nnaudit.training.fitting import Limits, RowEvaluation, Run, evaluate_rows, fit
from nnaudit.training.loss_bounds import Bounds

SIZES = (16, 64, 256, 1024)
"""Rows of the subsets."""

PART = 32
"""Rows of a step; half as many where steps are slow."""

STEPS = 200
"""Steps on a subset; as many as the tiny subset needed where that is more, up to twice these."""

_FEWEST_STEPS = {4: 100, 3: 80, 2: 30}
"""The fewest steps by the number of subsets: fewer are trained where time is short."""

_SECONDS = 8.0
_SLOW_STEP = 0.1
_MOST_BYTES = 256 * 2**20
_HELD_OUT = 256


@dataclass(frozen=True)
class SubsetFit:
    """One subset and what training on it came to."""

    evaluation: RowEvaluation
    run: Run
    bounds: Bounds

    @property
    def rows(self) -> int:
        """The size of the subset."""
        return self.evaluation.rows

    @property
    def final(self) -> float:
        """The mean loss of the last pass."""
        return self.run.losses[-1] if not self.run.crashed else math.inf

    @property
    def closed(self) -> float:
        """The share of the way from the best constant to the floor; below 0 is worse than it."""
        return self.bounds.closed(self.final) if math.isfinite(self.final) else -math.inf

    @property
    def fitted(self) -> bool:
        """Whether nine tenths of that way are closed, or the level of a tiny subset was reached."""
        return self.run.fitted or self.closed >= 0.9

    def falling(self, share: float = 0.02) -> bool:
        """Whether the last quarter of the passes closed ``share`` of what was left."""
        losses = self.run.losses
        back = max(1, len(losses) // 4)
        if len(losses) <= back or not math.isfinite(self.final):
            return math.isfinite(self.final)
        before = losses[-1 - back]
        return before - self.final > share * abs(before - self.bounds.floor)


@dataclass(frozen=True)
class SubsetFits:
    """The subsets, smallest first.

    Attributes:
        subset_fits: empty when ``reason`` says why.
        held_out: batches of rows that no subset holds.
        factor: what the author's learning rate was multiplied by: at 1 the tiny subset was fitted.
        steps: optimizer steps on each subset, about.
        cut: what was left out for want of time or data; empty when nothing was.
        reason: why no subset was trained.
    """

    subset_fits: tuple[SubsetFit, ...] = ()
    held_out: tuple[Any, ...] = ()
    factor: float = 1.0
    steps: int = 0
    cut: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What there is time for."""

    sizes: tuple[int, ...]
    part: int
    steps: int


class SubsetScaling(Probe[SubsetFits]):
    """Trains on 16, 64, 256 and 1024 fixed rows with the user's own loop, at equal steps."""

    probes = (TinyFitting,)

    def measure(self, audit: Audit) -> SubsetFits:
        """Train each subset from the initial state, at the rate at which the tiny subset did best.

        Raises:
            UserCodeError: the user's code raised.
            OutOfBudgetError: the time is used up.
        """
        tiny = audit.probe(TinyFitting)
        if not tiny.known:
            why = tiny.evaluation.unknown or "all targets are equal"
            return SubsetFits(reason=f"the lowest possible loss is unknown, because {why}")
        seconds = min(_SECONDS, audit.clock.remaining / 3)
        plan = plan_for(tiny, seconds)
        if not plan.sizes:
            return SubsetFits(reason=f"a step takes {_step_seconds(tiny):.2g} s, too long for it")
        parts = _captured_parts(audit.loop, plan, tiny)
        subset_fits = _already_fitted(tiny)
        for size in plan.sizes[len(subset_fits) :]:
            chosen = take_rows(parts, size)
            rows = sum(batches.size(part) for part in chosen)
            # A subset that is hardly larger than the last one would say nothing.
            if subset_fits and rows < 1.5 * subset_fits[-1].rows:
                break
            subset_fit = _fit_subset(audit, chosen, tiny.best_factor, plan.steps, seconds)
            if isinstance(subset_fit, str):
                return SubsetFits(reason=subset_fit)
            subset_fits.append(subset_fit)
        used = len(take_rows(parts, subset_fits[-1].rows))
        return SubsetFits(
            subset_fits=tuple(subset_fits),
            held_out=tuple(parts[used : used + _HELD_OUT // plan.part]),
            factor=tiny.best_factor,
            steps=plan.steps,
            cut=_cut(plan, subset_fits),
        )


def _already_fitted(tiny: TinyFit) -> list[SubsetFit]:
    """The first subset, where FIT101 has fitted it in at most as many steps already."""
    bounds = tiny.evaluation.bounds
    if bounds is None or not tiny.fits(tiny.best) or tiny.best.steps > 2 * STEPS:
        return []
    label = f"{tiny.evaluation.rows} examples"
    return [SubsetFit(tiny.evaluation, dataclasses.replace(tiny.best, label=label), bounds)]


def _step_seconds(tiny: TinyFit) -> float:
    return tiny.best.seconds / max(tiny.best.steps, 1)


def plan_for(tiny: TinyFit, seconds: float) -> Plan:
    """Choose sizes, rows per step and steps for the time there is."""
    slow = 2 * _step_seconds(tiny) > _SLOW_STEP
    part = PART // 2 if slow else PART
    # Small steps cost the same for more rows, large ones in proportion: take the dearer.
    step = _step_seconds(tiny) * max(1.0, part / max(tiny.evaluation.rows, 1))
    wanted = max(STEPS, min(2 * STEPS, tiny.best.steps))
    free = len(_already_fitted(tiny))
    for subset_fits in range(len(SIZES), 1, -1):
        steps = int(min(wanted, seconds / ((subset_fits - free) * step)))
        if steps >= _FEWEST_STEPS[subset_fits]:
            return Plan(SIZES[:subset_fits], part, steps)
    return Plan((), part, 0)


def _captured_parts(loop: Loop, plan: Plan, tiny: TinyFit) -> list[Any]:
    """Return batches of ``plan.part`` rows, enough for the largest subset and to hold some out."""
    size = sum(t.nbytes for _, t in batches.tensors(tiny.evaluation.parts))
    per_row = max(size / tiny.evaluation.rows, 1.0)
    wanted = int(min(plan.sizes[-1] + _HELD_OUT, max(_MOST_BYTES / per_row, 2 * SIZES[0])))
    found: list[Any] = []
    for batch in capture(loop, wanted, rows=wanted):
        size = batches.size(batch)
        try:
            cuts = range(0, size - size % plan.part or size, plan.part)
            pieces = [batches.rows(batch, range(i, min(i + plan.part, size))) for i in cuts]
        except NotSliceableError:
            pieces = [batch]
        found += pieces if size > plan.part else [batch]
    # A last, shorter batch would need another rule for everything; it is left out.
    full = max(batches.size(part) for part in found)
    return [part for part in found if batches.size(part) == full]


def take_rows(parts: Sequence[Any], rows: int) -> list[Any]:
    """Return as many of ``parts`` as hold ``rows`` rows, or the beginning of the first."""
    size = max(batches.size(parts[0]), 1)
    if rows < size:
        try:
            return [batches.take(parts[0], rows)]
        except NotSliceableError:
            return list(parts[:1])
    return list(parts[: rows // size])


def _fit_subset(
    audit: Audit, parts: list[Any], factor: float, steps: int, seconds: float
) -> SubsetFit | str:
    """Train on ``parts``; where there is nothing to learn from them, say why."""
    passes = max(2, math.ceil(steps / len(parts)))
    rows = sum(batches.size(part) for part in parts)
    with fixed_rows(audit.loop):
        try:
            evaluation = evaluate_rows(audit.loop, parts)
        except UserCodeError as error:
            return f"the training cannot be run on {rows} fixed examples: {error}"
    if evaluation.bounds is None:
        why = evaluation.unknown or "it is computed in another way"
        return f"the lowest possible loss of {rows} examples is unknown, because {why}"
    if not evaluation.bounds.informative:
        return f"the first {rows} examples all have the same target or the same input"
    with fixed_rows(audit.loop), constant_lr(audit.loop, factor):
        run = fit(
            audit.loop,
            evaluation,
            label=f"{evaluation.rows} examples",
            limits=Limits(passes, passes, seconds),
            clock=audit.clock,
            seed=audit.seed,
        )
    if run.joined:
        return (
            f"the lowest possible loss of {rows} examples is unknown, because a loss term that was "
            "zero at first becomes non-zero in training"
        )
    return SubsetFit(evaluation, run, evaluation.bounds)


def _cut(plan: Plan, subset_fits: list[SubsetFit]) -> str:
    if subset_fits[-1].rows < 0.9 * plan.sizes[-1]:
        return "there were too few examples for a larger subset"
    if len(plan.sizes) < len(SIZES):
        return f"subsets larger than {plan.sizes[-1]} were left out to save time"
    return ""
