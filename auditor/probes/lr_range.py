"""The learning rate range test: how the loss answers to a rate that grows step by step."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

from nnaudit import batch as batches
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, seed_everything
from nnaudit.loop.control import constant_lr
from nnaudit.probes.first_steps import consecutive_batches
from nnaudit.state import preserved

STEPS = 96
"""From a ten-thousandth to ten thousand times the author's rate."""

MOST_STEPS = 192
"""As long as nothing happens: to a hundred million times the rate."""

_LOWEST = 1e-4
_PER_DECADE = 12
_FALL = 0.1

_SECONDS = 30.0
_FEWEST = 48
_SMOOTHING = 0.85
_EXPLODED = 4.0


@dataclass(frozen=True)
class Ramp:
    """What came of the range test.

    Attributes:
        factors: what the author's rate was multiplied by, step by step.
        losses: each step's loss before its update.
        smoothed: their exponential average, the beginning corrected for.
        diverged: the factor at which the loss had exploded; infinite when it never did.
        best: a good factor: a tenth of the one at which the smoothed loss was lowest.
        fell: how far the smoothed loss fell below the first losses, against their size.
        cut: there was no time for the whole ramp.
    """

    factors: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: float
    best: float
    fell: float
    cut: bool


def range_test(audit: Audit) -> Ramp:
    """Take steps on real batches while the rate grows, until the loss explodes.

    Raises:
        UserCodeError: the first step raised.
        OutOfBudgetError: the time is used up.
    """
    factors = [_LOWEST * 10 ** (i / _PER_DECADE) for i in range(MOST_STEPS)]
    taken: list[float] = []
    average, first = 0.0, math.nan
    smoothed: list[float] = []
    diverged, cut = math.inf, False
    started, limit = time.perf_counter(), min(_SECONDS, audit.clock.remaining / 6)
    with constant_lr(audit.loop) as rate:
        for factor, batch in zip(
            factors, consecutive_batches(audit.loop, MOST_STEPS), strict=False
        ):
            audit.clock.check()
            rate.factor = factor
            loss = _loss(audit.loop, batch, begun=bool(taken))
            if not math.isfinite(loss):
                diverged = factor
                break
            taken.append(loss)
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            smoothed.append(average / (1 - _SMOOTHING ** len(taken)))
            first = statistics.median(taken[:12])
            if len(taken) > 12 and _exploded(smoothed, first):
                diverged = factor
                break
            past = min(smoothed[-_PER_DECADE:]) > min(smoothed)
            if len(taken) >= STEPS and past and _fell(smoothed, first) > _FALL:
                break  # the lowest loss is a power of ten behind
            if time.perf_counter() - started > limit and len(taken) >= 3:
                cut = len(taken) < STEPS
                break
    return _read(factors, taken, smoothed, diverged, cut)


def _fell(smoothed: list[float], first: float) -> float:
    return (first - min(smoothed)) / max(abs(first), 1e-12)


def _loss(loop: Loop, batch: Any, *, begun: bool) -> float:
    try:
        return loop.step(batch).loss
    except UserCodeError:
        if not begun:
            raise
        return math.nan  # the user's own check of a loss that exploded


def _exploded(smoothed: list[float], first: float) -> bool:
    low = min(smoothed)
    return smoothed[-1] - low > _EXPLODED * max(abs(first), abs(first - low), 1e-8)


def _read(
    factors: list[float], losses: list[float], smoothed: list[float], diverged: float, cut: bool
) -> Ramp:
    if len(smoothed) < 13:
        return Ramp(
            tuple(factors[: len(losses)]), tuple(losses), tuple(smoothed), diverged, 0, 0, cut
        )
    first = statistics.median(losses[:12])
    lowest = min(range(len(smoothed)), key=lambda i: smoothed[i])
    fell = _fell(smoothed, first)
    return Ramp(
        factors=tuple(factors[: len(losses)]),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        diverged=diverged,
        best=factors[lowest] / 10,
        fell=fell,
        cut=cut,
    )


def constant_run(audit: Audit, factor: float, steps: int) -> list[float]:
    """Return the losses of ``steps`` steps from the initial state at ``factor`` times the rate.

    The batches are the same whenever it is called; the state is put back. Losses end with NaN
    where the run broke down.

    Raises:
        OutOfBudgetError: the time is used up.
    """
    losses: list[float] = []
    with preserved(audit.loop.subjects):
        seed_everything(audit.seed)
        some: list[Any] = [batches.clone(b) for b in consecutive_batches(audit.loop, steps)]
        with constant_lr(audit.loop, factor):
            for batch in some:
                audit.clock.check()
                loss = _loss(audit.loop, batch, begun=bool(losses))
                losses.append(loss)
                if not math.isfinite(loss):
                    break
    return losses
