"""Some steps that nobody looks into, on consecutive batches, with a clock on each."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.first_steps import STEPS, FirstSteps
from nnaudit.training.stopwatch import Stopwatch

MORE = 20
"""Steps on top of as many as :class:`FirstSteps` takes; they begin where those began."""

TIMED = 15
"""Steps beyond what workers have in store: their stores of batches are used up first."""

SECONDS = 4.0
"""The steps end early when they have taken that long, as on a quiet machine: those of slow programs
are expensive, and :class:`~nnaudit.probes.training_run.TrainingRun` takes such in any case."""


@dataclass(frozen=True)
class Plain:
    """What :class:`PlainSteps` saw, by step.

    Attributes:
        losses: a loss that is not finite is the last.
        waits: seconds from asking for a batch to having it.
        seconds: from handing it over to the end of the step.
    """

    losses: tuple[float, ...]
    waits: tuple[float, ...]
    seconds: tuple[float, ...]


class PlainSteps(Probe[Plain]):
    """The first steps once more, and :data:`MORE` beyond, as in training."""

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> Plain:
        """Read and step.

        Raises:
            UserCodeError: the user's code raised, here or in the first steps.
            OutOfBudgetError: the time is used up.
        """
        audit.probe(FirstSteps).require()
        losses: list[float] = []
        waits: list[float] = []
        seconds: list[float] = []
        watch, asked = Stopwatch(), time.perf_counter()
        wanted = max(STEPS + MORE, stored(audit.loop) + TIMED)
        for batch in consecutive_batches(audit.loop, wanted):
            audit.clock.check()
            waits.append(time.perf_counter() - asked)
            step = audit.loop.step(batch)
            losses.append(step.loss)
            seconds.append(step.seconds)
            asked = time.perf_counter()
            if not math.isfinite(step.loss) or watch.seconds > SECONDS:
                break
        return Plain(tuple(losses), tuple(waits), tuple(seconds))


def stored(loop: Loop) -> int:
    """Return how many batches workers make beforehand, while nobody asks."""
    workers = getattr(loop.train_loader, "num_workers", 0) or 0
    return int(workers) * int(getattr(loop.train_loader, "prefetch_factor", None) or 2)
