"""Metrics that go on collecting from one epoch to the next."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.living import living

_ROUNDS = 3
"""Ends of epochs: a metric may be empty at the first, and is full at the second."""


@dataclass(frozen=True)
class Collected:
    """A metric of torchmetrics' whose state grew over the ends of epochs.

    Attributes:
        name: its class.
        updates: how many updates it held after each of them.
    """

    name: str
    updates: tuple[int, ...]


class MetricResets(Probe[tuple[Collected, ...]]):
    """The metrics that no epoch's end empties; none where no such end can be reached."""

    def measure(self, audit: Audit) -> tuple[Collected, ...]:
        """Go through the ends of a few epochs, and count what the metrics hold.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        held: list[dict[int, int]] = []
        if not _metrics():
            return ()
        try:
            batch = next(iter(loop.batches()))
            loop.step(batch)
            for _ in range(_ROUNDS):
                audit.clock.check()
                if loop.next_epoch(batch) is None:
                    return ()
                held.append({id(each): int(each._update_count) for each in _metrics()})
        except UserCodeError:
            return ()
        found = []
        for each in _metrics():
            updates = tuple(counts.get(id(each), 0) for counts in held)
            if all(a < b for a, b in pairwise(updates)):
                found.append(Collected(type(each).__name__, updates))
        return tuple(found)


def _metrics() -> list[Any]:
    """Return the metrics of torchmetrics' that are alive."""
    library = sys.modules.get("torchmetrics")
    kind = getattr(library, "Metric", None)
    return living(kind) if kind else []
