"""The same measurement once more on fresh randomness: what a finding is replicated on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from nnaudit.context import Audit
from nnaudit.loop.base import Needs, seed_everything
from nnaudit.state.snapshot import preserved


@contextmanager
def replicated(audit: Audit) -> Iterator[Audit]:
    """Yield an audit under the next seed: other weights, other batches, other random numbers.

    Where a run cannot be started anew it is the same loop with the same weights; its state is put
    back.

    Raises:
        UserCodeError: the user's code raised while the run was started.
    """
    seed, remaining = audit.seed + 1, audit.clock.remaining
    budget = remaining if math.isfinite(remaining) else None
    if audit.loop.lacks(Needs.FRESH_RUN):
        with preserved(audit.loop.subjects):
            seed_everything(seed)
            yield Audit(audit.loop, seed=seed, budget=budget)
        return
    with audit.loop.relaunched(seed) as fresh:
        yield Audit(fresh, seed=seed, budget=budget)
