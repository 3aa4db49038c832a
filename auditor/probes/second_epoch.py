"""What is left of the code that runs between two epochs: validation, above all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Step
from nnaudit.loop.observation import Observation
from nnaudit.measure.seeding import Seeding, watching_seeds


@dataclass(frozen=True)
class Second:
    """The first step after the user's own code between two epochs.

    Attributes:
        seen: that step; None where no such code can be run.
        reseeded: a call that seeds a global generator with the same number between any two epochs.
    """

    seen: Observation | None = None
    reseeded: Seeding | None = None


class SecondEpoch(Probe[Second]):
    """A step, the end of an epoch, and the first step of the next."""

    def measure(self, audit: Audit) -> Second:
        """Take the steps, and go through one more epoch's end where something is seeded in it.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        audit.clock.check()
        loop = audit.loop
        try:
            batch = next(iter(loop.batches()))
            loop.step(batch)
        except UserCodeError:
            return Second()  # a step that raises has no next
        step, once = _next_epoch(loop, batch)
        if step is None or not once:
            return Second(step.observation if step is not None else None)
        audit.clock.check()
        _, twice = _next_epoch(loop, batch)
        return Second(step.observation, next((each for each in once if each in twice), None))


def _next_epoch(loop: Loop, batch: Any) -> tuple[Step | None, Sequence[Seeding]]:
    with watching_seeds() as watch:
        watch.phase, watch.loop = "between epochs", loop
        return loop.next_epoch(batch), watch.seen
