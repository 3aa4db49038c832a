"""How long training waits for its data, and how long it computes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, pstdev

from nnaudit.context import Audit
from nnaudit.loop.base import Loop
from nnaudit.probes.base import Probe

BATCHES = 12
SECONDS = 6.0
"""Batches are read for this long at most: the first two do not count, and workers' stores of
batches made beforehand are used up first."""


@dataclass(frozen=True)
class Waiting:
    """What :class:`DataWait` saw. Times are medians in seconds.

    Attributes:
        wait: from asking for a batch to having it.
        step: from handing it over to the end of the step.
        batches: how many were counted.
        length: batches in an epoch; None where unknown.
        wait_noise, step_noise: see :func:`_noise`.
    """

    wait: float
    step: float
    batches: int
    length: int | None
    wait_noise: float = math.nan
    step_noise: float = math.nan

    @property
    def share(self) -> float:
        """The part of the time that is spent waiting."""
        total = self.wait + self.step
        return self.wait / total if total > 0 else 0.0


class DataWait(Probe[Waiting]):
    """Some batches of an epoch, each followed by its step, as in training."""

    def measure(self, audit: Audit) -> Waiting:
        """Read and step.

        Raises:
            UserCodeError: the user's code raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        stored = _stored(loop)
        waits: list[float] = []
        steps: list[float] = []
        begun = asked = time.perf_counter()
        for number, batch in enumerate(loop.batches()):
            audit.clock.check()
            waits.append(time.perf_counter() - asked)
            steps.append(loop.step(batch).seconds)
            asked = time.perf_counter()
            if number >= 2 + stored + BATCHES or asked - begun > SECONDS:
                break
        settled = slice(min(2 + stored, max(len(waits) - 3, 0)), None)
        try:
            length: int | None = len(loop.train_loader)
        except TypeError:
            length = None
        counted, taken = waits[settled], steps[settled]
        return Waiting(
            median(counted), median(taken), len(counted), length, _noise(counted), _noise(taken)
        )


def _noise(times: Sequence[float]) -> float:
    """Return how far such a median may differ between two runs of an unchanged program.

    Their standard deviation, as machines have slow and fast minutes, and an eighth of the median
    at least: four times that of two runs lets a time double, as on a machine that others use.
    """
    return max(pstdev(times), median(times) / 8)


def _stored(loop: Loop) -> int:
    """Return how many batches workers make beforehand, while nobody asks."""
    workers = getattr(loop.train_loader, "num_workers", 0) or 0
    return int(workers) * int(getattr(loop.train_loader, "prefetch_factor", None) or 2)
