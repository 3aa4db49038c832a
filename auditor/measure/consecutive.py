"""Batches of the training as they come, one epoch after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from nnaudit.errors import TargetError
from nnaudit.loop.base import Loop


def consecutive_batches(loop: Loop, count: int) -> Iterator[Any]:
    """Yield ``count`` batches of one epoch, begun anew where it ends before that.

    Fewer come only from a loader that can be read once.

    Raises:
        TargetError: there is no batch at all.
        UserCodeError: the loader raised.
    """
    found = 0
    while found < count:
        before = found
        for batch in islice(loop.batches(), count - found):
            found += 1
            yield batch
        if found == before:
            break
    if not found:
        raise TargetError(
            "train_loader yields no batch: is the dataset empty, or smaller than one batch with "
            "drop_last=True?"
        )


def batches_per_epoch(loop: Loop) -> int:
    """Return the batches in one epoch of the training; 0 where that is not known."""
    try:
        return len(loop.train_loader)
    except (TypeError, NotImplementedError):
        return loop.counted_batches
