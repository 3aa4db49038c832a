"""Whether the rows of a stream that nobody has divided into epochs come again in the same order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

FEWEST = 64
"""Rows that are to have come again, before anything is said of their order."""

_ALIKE = 0.9
"""Share of them that come again at the same distance where the order is fixed."""


@dataclass(frozen=True)
class Recurrence:
    """How the rows of a stream come again.

    Attributes:
        again: how many rows had come before.
        period: after how many rows most of them did; 0 where there is no such number.
    """

    again: int
    period: int

    @property
    def is_known(self) -> bool:
        """Whether enough rows have come again."""
        return self.again >= FEWEST


def recurrence_of(items: Sequence[str], batch: int) -> Recurrence:
    """Measure at which distances the ``items`` of a stream, one for each row, come again.

    In a fixed order all distances are one, the rows of an epoch; in an order that is drawn anew
    they lie anywhere between 1 and twice as many. What comes again within a ``batch``'s rows or the
    next are rows that are alike, or steps that are taken on one batch: that is no order.
    """
    latest: dict[str, int] = {}
    distances: Counter[int] = Counter()
    for place, item in enumerate(items):
        if item in latest:
            distances[place - latest[item]] += 1
        latest[item] = place
    again = distances.total()
    period, count = max(distances.items(), key=lambda each: each[1], default=(0, 0))
    fixed = again >= FEWEST and count >= _ALIKE * again and period > 2 * batch
    return Recurrence(again, period if fixed else 0)
