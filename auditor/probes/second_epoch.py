"""What is left of the code that runs between two epochs: validation, above all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
        scheduled: the schedulers, by number, that the code between two epochs has stepped.
        loader_reseeded: between any two epochs the loader's own generator is set to one state.
    """

    seen: Observation | None = None
    reseeded: Seeding | None = None
    loader_reseeded: bool = False
    scheduled: frozenset[int] = frozenset()


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
        generator = _generator(loop)
        counted = [(each, getattr(each, "last_epoch", None)) for each in loop.schedulers]
        step, once = _next_epoch(loop, batch)
        scheduled = frozenset(
            number
            for number, (each, count) in enumerate(counted)
            if getattr(each, "last_epoch", None) != count
        )
        if step is None:
            return Second()
        again: Seeding | None = None
        if once:
            audit.clock.check()
            _, twice = _next_epoch(loop, batch)
            again = next((each for each in once if each in twice), None)
        own = generator is not None and _is_reseeded(audit, generator, batch)
        return Second(step.observation, again, own, scheduled)


def _is_reseeded(audit: Audit, generator: torch.Generator, batch: Any) -> bool:
    """Whether the end of an epoch sets ``generator`` to one state, whatever it was before."""
    states = []
    for seed in range(2):
        audit.clock.check()
        generator.manual_seed(seed)
        _next_epoch(audit.loop, batch)
        states.append(generator.get_state())
    return torch.equal(*states)


def _generator(loop: Loop) -> torch.Generator | None:
    """Return the generator of the loader's own that its order is drawn with."""
    loader = loop.train_loader
    holders = (getattr(loader, "sampler", None), loader)
    found = (getattr(holder, "generator", None) for holder in holders)
    return next((each for each in found if isinstance(each, torch.Generator)), None)


def _next_epoch(loop: Loop, batch: Any) -> tuple[Step | None, Sequence[Seeding]]:
    with watching_seeds() as watch:
        watch.phase, watch.loop = "between epochs", loop
        return loop.next_epoch(batch), watch.seen
