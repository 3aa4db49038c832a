"""A tiny fixed subset, and whether the program fits it at the author's learning rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.control import constant_lr, without_dropout
from nnaudit.measure.subset_choice import FEWEST, ROWS, Subset, capture, choose, one_target
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError
from nnaudit.training.fitting import Limits, RowEvaluation, Run, evaluate_rows, fit, updates_by
from nnaudit.training.loss_bounds import CLASSIFICATION

_ENOUGH = 4 * ROWS
"""Rows of which two subsets can be chosen, whatever the batches' size."""

CAUSES = (
    "DATA101", "DATA102", "DATA103", "DATA111", "LOSS101", "LOSS102", "GRAD101", "GRAD102",
    "GRAD106", "GRAD107", "MODE101", "INIT101",
)  # fmt: skip
"""Checks whose failure explains that a few rows are not fitted."""

EXPENSIVE = 0.02
"""Seconds of a step from which on a known cause is not proved once more by its consequence."""

_LOOK_AHEAD = 64


@dataclass(frozen=True)
class TinyFit:
    """What came of training on a tiny subset.

    Attributes:
        sighting: the program on those rows before training.
        whole: they are whole batches: small ones, or such as cannot be taken apart.
        runs: the runs by the factor on the author's learning rate, in the order they were made.
        noise: how far two losses of the same weights and rows were apart.
        fresh_targets: the targets are drawn anew in every step.
        shuffled_targets: and are the same ones in another order.
        constant: the loss of the best constant where the targets are shuffled, infinite elsewhere.
            A fall from bad initial weights to there would be no sign of learning.
    """

    evaluation: RowEvaluation
    whole: bool
    runs: dict[float, Run]
    noise: float = 0.0
    fresh_targets: bool = False
    shuffled_targets: bool = False
    constant: float = math.inf

    @property
    def known(self) -> bool:
        """Whether it is known how far the loss can come down, and the inputs matter to it."""
        bounds = self.evaluation.bounds
        return bounds is not None and bounds.informative

    @property
    def best_factor(self) -> float:
        """The factor that fitted, else the one with the lowest loss."""
        return min(self.runs, key=lambda f: (not self.fits(self.runs[f]), self.runs[f].final))

    @property
    def best(self) -> Run:
        """The run at :attr:`best_factor`."""
        return self.runs[self.best_factor]

    def fits(self, run: Run) -> bool:
        """Whether ``run`` fitted the rows: to its level, or clearly down where none is known."""
        return run.fitted or (not self.known and self.fell(run, 0.2))

    def fell(self, run: Run, share: float) -> bool:
        """Whether the loss fell by ``share`` of where it began, and by more than noise."""
        start = self.evaluation.loss if math.isfinite(self.evaluation.loss) else run.initial
        start = min(start, self.constant)
        return start - run.final > max(share * abs(start), 6 * self.noise)


class TinyFitting(Probe[TinyFit]):
    """Trains on a tiny subset with the user's own loop at its learning rate, x 0.1 and x 10."""

    def measure(self, audit: Audit) -> TinyFit:
        """Stop at the first learning rate that fits, or that a known cause keeps from fitting.

        Raises:
            UserCodeError: the user's code raised on whole batches too.
            OutOfBudgetError: the time is used up.
        """
        return tiny_fit(audit)


def tiny_fit(audit: Audit, *, second: bool = False) -> TinyFit:
    """Train on the first tiny subset, or on a ``second`` one of other rows.

    Raises:
        UserCodeError: the user's code raised on whole batches too.
        OutOfBudgetError: the time is used up.
    """
    loop = audit.loop
    with preserved(loop.subjects):
        chosen, tiny = _sighted(audit, second=second)
    seconds = min(10.0, max(audit.clock.remaining / 8, 0.5))
    limits = Limits(seconds=seconds) if tiny.known else Limits(150, 300, seconds)
    runs: dict[float, Run] = {}
    for factor in (1.0, 10.0, 0.1):
        if factor == 0.1 and _too_slow(runs[1.0], tiny):
            continue
        run = tiny_run(audit, tiny.evaluation, factor, limits)
        runs[factor] = run
        if run.joined:
            unknown = "a loss term that was zero at first becomes non-zero in training"
            evaluation = dataclasses.replace(tiny.evaluation, bounds=None, unknown=unknown)
            tiny = dataclasses.replace(tiny, evaluation=evaluation)
        if tiny.fits(run) or (is_expensive(run) and not audit.broken.isdisjoint(CAUSES)):
            break
    return dataclasses.replace(tiny, runs=runs, whole=chosen.whole)


def is_expensive(run: Run) -> bool:
    """Whether its steps take :data:`EXPENSIVE` seconds or more."""
    return run.seconds > EXPENSIVE * run.steps


def _too_slow(run: Run, tiny: TinyFit) -> bool:
    """The author's rate was on its way: a tenth of it is on the same way, slower."""
    bounds = tiny.evaluation.bounds
    return run.falling(bounds.floor if bounds else 0.0) and not run.diverged


def tiny_run(audit: Audit, evaluation: RowEvaluation, factor: float, limits: Limits) -> Run:
    """Train on the rows of ``evaluation`` at ``factor`` times the author's rate, then restore all.

    Raises:
        UserCodeError: the first step raised.
        OutOfBudgetError: the time is used up.
    """
    label = "your learning rate" if factor == 1.0 else f"your learning rate x {factor:g}"
    with fixed_rows(audit.loop), constant_lr(audit.loop, factor):
        return fit(audit.loop, evaluation, label=label, limits=limits, clock=audit.clock)


def adam_run(audit: Audit, evaluation: RowEvaluation, learning_rate: float, limits: Limits) -> Run:
    """Train on the rows of ``evaluation`` with a fresh Adam for the author's optimizer.

    Raises:
        UserCodeError: the first step raised.
        OutOfBudgetError: the time is used up.
    """
    label = f"Adam, learning rate {learning_rate:g}"
    with fixed_rows(audit.loop), updates_by(audit.loop, learning_rate):
        return fit(audit.loop, evaluation, label=label, limits=limits, clock=audit.clock)


@contextmanager
def fixed_rows(loop: Loop) -> Iterator[None]:
    """Dropout off, and the state put back afterwards."""
    with ExitStack() as stack:
        stack.enter_context(preserved(loop.subjects))
        for model in loop.models:
            stack.enter_context(without_dropout(model))
        yield


def _sighted(audit: Audit, *, second: bool) -> tuple[Subset, TinyFit]:
    """Choose the rows and look at them; whole batches where the program refuses a few rows."""
    loop = audit.loop
    captured = capture(loop, FEWEST * 2 if second else FEWEST, rows=_ENOUGH)
    if all(one_target(loop, batch) for batch in captured):
        captured = capture(loop, _LOOK_AHEAD)
    try:
        chosen = choose(loop, captured, second=second)
        return chosen, _look_twice(loop, chosen)
    except (NotSliceableError, UserCodeError):
        whole = captured[1:2] if second and len(captured) > 1 else captured[:1]
        chosen = Subset(tuple(whole), whole=True)
        return chosen, _look_twice(loop, chosen)


def _look_twice(loop: Loop, chosen: Subset) -> TinyFit:
    """See what the program makes of the rows, and what of it is random."""
    with fixed_rows(loop):
        first, again = evaluate_rows(loop, chosen.parts), evaluate_rows(loop, chosen.parts)
    with fixed_rows(loop), updates_by(loop, None):
        loop.step(chosen.parts[0])  # a step may refuse what a forward pass takes
    noise = abs(first.loss - again.loss)
    fresh = shuffled = False
    for a, b in zip(first.calls, again.calls, strict=False):
        same, permuted = _compared(a.arguments.get("target"), b.arguments.get("target"))
        fresh, shuffled = fresh or not same, shuffled or permuted
    constant = first.bounds.constant if shuffled and first.bounds else math.inf
    if fresh:
        unknown = "its targets change at random in every step"
        first = dataclasses.replace(first, bounds=None, unknown=unknown)
    elif _compares_rows(loop, chosen, first):
        unknown = "the loss compares the rows of a batch with each other"
        first = dataclasses.replace(first, bounds=None, unknown=unknown)
    return TinyFit(first, chosen.whole, {}, noise, fresh, shuffled, constant)


def _compares_rows(loop: Loop, chosen: Subset, seen: RowEvaluation) -> bool:
    """Whether there are as many classes as rows, and fewer with fewer: contrastive learning."""
    if not seen.calls or seen.calls[0].input.ndim < 2 or seen.sizes[0] < 4:
        return False
    rows, classes = seen.calls[0].input.shape[:2]
    if classes not in (rows, rows - 1) or seen.calls[0].kind not in CLASSIFICATION:
        return False
    try:
        with fixed_rows(loop):
            fewer = evaluate_rows(loop, (batches.take(chosen.parts[0], seen.sizes[0] - 2),))
    except (UserCodeError, NotSliceableError):
        return True
    return not fewer.calls or fewer.calls[0].input.shape[1] != classes


def _compared(a: Any, b: Any) -> tuple[bool, bool]:
    """Whether two targets are equal, and whether they are each other's rows in another order."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return True, False
    if a.shape == b.shape and torch.equal(a, b):
        return True, False
    permuted = (
        a.shape == b.shape
        and a.ndim > 0
        and sorted(batches.row_digests(a)) == sorted(batches.row_digests(b))
    )
    return False, permuted
