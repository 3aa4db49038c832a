"""How long training waits for its data, and how long it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, pstdev

from nnaudit.context import Audit, Probe
from nnaudit.probes.plain_steps import PlainSteps, stored


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
    """The batches of an epoch, each followed by its step, as in training."""

    probes = (PlainSteps,)

    def measure(self, audit: Audit) -> Waiting:
        """Sum up what the clock said, from the third batch on."""
        plain, loop = audit.probe(PlainSteps), audit.loop
        try:
            length: int | None = len(loop.train_loader)
        except TypeError:
            length = None
        # To begin another epoch is no waiting for a batch.
        waits, steps = plain.waits[:length], plain.seconds[:length]
        settled = slice(min(2 + stored(loop), max(len(waits) - 3, 0)), None)
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
