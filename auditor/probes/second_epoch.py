"""What is left of the code that runs between two epochs: validation, above all."""

from __future__ import annotations

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.taps import Observation
from nnaudit.probes.base import Probe


class SecondEpoch(Probe[Observation | None]):
    """The first step after the user's own code between two epochs; None where none can run."""

    def measure(self, audit: Audit) -> Observation | None:
        """Take a step, end the epoch, and observe the next step; a step that raises has no next.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        audit.clock.check()
        try:
            batch = next(iter(audit.loop.batches()))
            audit.loop.step(batch)
        except UserCodeError:
            return None
        step = audit.loop.next_epoch(batch)
        return None if step is None else step.observation
