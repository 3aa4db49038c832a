"""The learning rate range test: how the loss answers to a rate that grows step by step."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, seed_everything
from nnaudit.loop.control import constant_lr
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.training.stopwatch import Stopwatch

LOWEST, HIGH, HIGHEST = 1e-4, 1e4, 1e8
"""Of the author's rate: where the ramp begins, where it may end, where it ends at the latest."""

_PACE, _HURRY = 12, 5
"""Steps to a power of ten, and as few as that where steps are slow."""

SECONDS = 15.0
"""What a ramp may take, as on a quiet machine."""

SHORTEST = int(_HURRY * math.log10(10.0 / LOWEST))
"""Steps of a hurried ramp up to ten times the author's rate: a shorter one says nothing."""

_FIRST = 10
_FALL = 0.1
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

    It ends as well once the loss had fallen, and is for a power of ten of the rate back where it
    began.

    Raises:
        UserCodeError: the first step raised.
        OutOfBudgetError: the time is used up.
    """
    test = _RangeTest(min(SECONDS, audit.clock.remaining / 6))
    most = int(_PACE * math.log10(HIGHEST / LOWEST))
    with constant_lr(audit.loop) as rate:
        for batch in consecutive_batches(audit.loop, most):
            audit.clock.check()
            rate.factor = test.factor
            if test.ends_with(_loss(audit.loop, batch, begun=bool(test.losses))):
                break
    return test.ramp()


class _RangeTest:
    """What is known while the rate grows."""

    def __init__(self, seconds: float) -> None:
        self.factor = LOWEST
        self.factors: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._diverged = math.inf
        self._cut = False
        self._average = self._weight = 0.0
        self._pace = float(_PACE)
        self._seconds = seconds
        self._watch = Stopwatch()

    def ends_with(self, loss: float) -> bool:
        """Take in the loss of a step at :attr:`factor`; return whether that was the last."""
        if not math.isfinite(loss):
            self._diverged = self.factor
            return True
        self.factors.append(self.factor)
        self.losses.append(loss)
        # Over as long a stretch of the ramp, however many steps that is.
        kept = _SMOOTHING ** (_PACE / self._pace)
        self._average = kept * self._average + (1 - kept) * loss
        self._weight = kept * self._weight + (1 - kept)
        self.smoothed.append(self._average / self._weight)
        if len(self.losses) > _FIRST and self._exploded():
            self._diverged = self.factor
            return True
        spent = self._watch.seconds
        if len(self.losses) == 3:  # slow steps: fewer to a power of ten
            affordable = self._seconds / max(spent / 3, 1e-6)
            self._pace = min(max(affordable / math.log10(HIGH / LOWEST), _HURRY), _PACE)
        if self._past_the_lowest() and (self.factor >= HIGH or self._undone()):
            return True
        self._cut = spent > self._seconds and len(self.losses) >= 3 and self.factor < HIGH
        self.factor *= 10 ** (1 / self._pace)
        return self._cut or spent > 2 * self._seconds

    @property
    def _start(self) -> float:
        return statistics.median(self.losses[:_FIRST])

    @property
    def _fell(self) -> float:
        return (self._start - min(self.smoothed)) / max(abs(self._start), 1e-12)

    def _exploded(self) -> bool:
        low = min(self.smoothed)
        usual = max(abs(self._start), abs(self._start - low), 1e-8)
        return self.smoothed[-1] - low > _EXPLODED * usual

    def _past_the_lowest(self) -> bool:
        """Whether the loss did fall, and its lowest lies a power of ten behind."""
        lately = min(self.smoothed[-int(self._pace) :])
        return self._fell > _FALL and lately > min(self.smoothed)

    def _undone(self) -> bool:
        """Whether the loss is, for a power of ten of the rate, no lower than where it began.

        A network in such a state does not come back while the rate still grows.
        """
        lately = self.smoothed[-int(self._pace) :]
        return self.factor >= 10.0 and min(lately) >= self._start

    def ramp(self) -> Ramp:
        """Return the result; without enough losses to read one off, ``best`` is 0."""
        enough = len(self.losses) > _FIRST
        lowest = min(range(len(self.smoothed)), key=lambda i: self.smoothed[i]) if enough else 0
        return Ramp(
            factors=tuple(self.factors),
            losses=tuple(self.losses),
            smoothed=tuple(self.smoothed),
            diverged=self._diverged,
            best=self.factors[lowest] / 10 if enough else 0.0,
            fell=self._fell if enough else 0.0,
            cut=self._cut,
        )


def _loss(loop: Loop, batch: Any, *, begun: bool) -> float:
    try:
        return loop.step(batch).loss
    except UserCodeError:
        if not begun:
            raise
        return math.nan  # the user's own check of a loss that exploded


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
