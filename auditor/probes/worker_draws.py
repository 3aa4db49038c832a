"""Two workers and two epochs, asked for the same items: whether random numbers are drawn twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.workers import Made, fingerprint, made_by_workers
from nnaudit.state.snapshot import preserved

ITEMS = 8
"""Items in the batch that is asked for again and again."""
REPEATS = 8
LEAST = 4
"""Different results of a worker's :data:`REPEATS`, to tell its numbers from another's.

A transform that has only N different results, all as likely, gives two workers the same ones in
all 8 places with probability N^-8. That it has at least as many as were seen makes this 1.5e-5 for
four, and the second epoch must agree.
"""
SECONDS = 30.0


@dataclass(frozen=True)
class Draws:
    """What the workers made of the same batch, over and over.

    Attributes:
        epochs: by epoch, by worker, in order.
        persistent: the loader's workers live on from epoch to epoch.
        by_hand: the data set can be told the epoch, so two without a word may well be alike.
        initialised: the user gave a worker_init_fn.
    """

    epochs: tuple[tuple[tuple[Made, ...], ...], ...]
    persistent: bool
    by_hand: bool
    initialised: bool

    @property
    def varied(self) -> bool:
        """Whether a worker that is asked again answers something else."""
        return any(len(_digests(one)) > 1 for epoch in self.epochs for one in epoch)

    @property
    def telling(self) -> bool:
        """Whether there are enough different answers to know whose they are."""
        return all(len(_digests(one)) >= LEAST for epoch in self.epochs for one in epoch)

    @property
    def workers_alike(self) -> bool:
        """Whether two workers gave the same answers in the same order, in both epochs."""
        return all(
            len(epoch) > 1 and _sequence(epoch[0]) == _sequence(epoch[1]) for epoch in self.epochs
        )

    @property
    def epochs_alike(self) -> bool:
        """Whether a worker gave the same answers in the next epoch."""
        first, second = self.epochs
        return _sequence(first[0]) == _sequence(second[0])

    def generator(self, *, across_workers: bool) -> str:
        """Name the random generator that was drawn from alike; empty where none is within reach."""
        first, second = self.epochs
        one, other = first[0], first[1] if across_workers else second[0]
        for name in sorted(one[0].states, key=_commonness):
            states = [made.states.get(name) for made in one]
            alike = states == [made.states.get(name) for made in other]
            if alike and len(set(states)) > 1:
                return name
        return ""


def _digests(made: tuple[Made, ...]) -> set[str]:
    return {each.digest for each in made}


def _sequence(made: tuple[Made, ...]) -> list[str]:
    return [each.digest for each in made]


def _commonness(name: str) -> bool:
    """A generator of the program's own explains more than a global one."""
    return name in {"torch", "numpy.random", "random"}


@dataclass(frozen=True)
class NoDraws:
    """Why nothing was measured; ``applies`` says that there is something to be measured."""

    why: str
    applies: bool = False


class WorkerDraws(Probe[Draws | NoDraws]):
    """The answers of two workers in two epochs."""

    def measure(self, audit: Audit) -> Draws | NoDraws:
        """Ask two real workers for the same batch :data:`REPEATS` times, and again a second time.

        Raises:
            UserCodeError: the sampler raised.
            OutOfBudgetError: the time is used up.
        """
        loader = audit.loop.train_loader
        access = RandomAccess.of(loader)
        if not getattr(loader, "num_workers", 0):
            return NoDraws("the loader has no workers: one process draws all random numbers")
        if access is None:
            return NoDraws("the loader has no index, so two workers cannot read the same items")
        batch = _first_items(access)
        with preserved(audit.loop.subjects):
            # A data set may make its generator on first use, which is to be in the worker.
            fixed = _certainly_fixed(access, batch)
        if fixed:
            return NoDraws("items are the same at every reading: nothing is random")
        try:
            epochs = tuple(_epoch(audit, access, batch) for _ in range(2))
        except UserCodeError as error:
            # They may not live up to being asked for other batches than the loader's own.
            return NoDraws(f"the workers raised {error}", applies=True)
        return _draws(access.loader, epochs)


def _draws(
    loader: DataLoader[Any], epochs: tuple[tuple[tuple[Made, ...], ...], ...]
) -> Draws | NoDraws:
    if any(len(one) < REPEATS for epoch in epochs for one in epoch):
        return NoDraws(f"the workers took more than {SECONDS:g} s for a few items", applies=True)
    return Draws(
        epochs,
        persistent=bool(loader.persistent_workers),
        by_hand=_told_the_epoch(loader),
        initialised=loader.worker_init_fn is not None,
    )


def _first_items(access: RandomAccess) -> list[Any]:
    found = access.index_batches(most=1)
    return found[0][:ITEMS] if found else []


def _certainly_fixed(access: RandomAccess, batch: list[Any]) -> bool:
    """Whether this process reads the same three times: then no worker need be started."""
    try:
        return len({fingerprint(access.fetch(batch)) for _ in range(3)}) == 1
    except UserCodeError:
        # What worker_init_fn sets up exists in workers only.
        return False


def _epoch(audit: Audit, access: RandomAccess, batch: list[Any]) -> tuple[tuple[Made, ...], ...]:
    workers = min(access.loader.num_workers, 2)
    one = batch if access.loader.batch_sampler is not None else batch[0]
    made, _ = made_by_workers(
        access.loader,
        workers=workers,
        asked=[one] * (REPEATS * workers),
        seconds=SECONDS / 2,
        check=audit.clock.check,
    )
    return tuple(tuple(each for each in made if each.worker == k) for k in range(workers))


def _told_the_epoch(loader: Any) -> bool:
    dataset = loader.dataset
    parts = [dataset, *vars(dataset).values()] if hasattr(dataset, "__dict__") else [dataset]
    return any(callable(getattr(part, "set_epoch", None)) for part in parts)
