"""Whether reading an item changes the data that it is read from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError, user_code
from nnaudit.loop.base import seed_everything
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.workers import fingerprint, parts, reachable
from nnaudit.state.snapshot import Snapshot, Subjects

ITEMS = 8
SECONDS = 3.0

MOST_BYTES = 2**28
"""Stored data beyond this are not copied, and so not compared."""

_ROW = 4
"""Numbers that a row of data has at least: labels, counts and places have fewer."""


@dataclass(frozen=True)
class ItemReads:
    """What became of some items, and of the data set, by reading them.

    Attributes:
        items: how many were read three times: two of them with the same random state.
        differing: how many of these gave another result the second time with that state, and the
            first result again once the stored arrays were put back.
        changed: stored arrays that such a reading wrote to, by their place in the data set.
    """

    items: int
    differing: int
    changed: tuple[str, ...]


class ItemReading(Probe[ItemReads | None]):
    """Reads a few training items with one random state, with another, and with the first again."""

    def measure(self, audit: Audit) -> ItemReads | None:
        """Read them in this process; None where they cannot be looked up, or nothing is stored.

        What a reading has written to stored data is undone.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        access = RandomAccess.of(audit.loop.train_loader)
        if access is None:
            return None
        dataset: Any = access.loader.dataset
        stored = list(_stored(dataset))
        if not stored:
            return None
        kept = [(name, store, _copy(store)) for name, store in stored]
        snapshot = Snapshot.take(Subjects(loaders=(access.loader,)))
        items = differing = 0
        changed: dict[str, None] = {}
        started = time.perf_counter()
        try:
            for index in access.spread(ITEMS):
                audit.clock.check()
                items += 1
                written = _written(dataset, index, audit.seed, snapshot, kept)
                differing += bool(written)
                changed.update(dict.fromkeys(written))
                if time.perf_counter() - started > SECONDS:
                    break
        except UserCodeError:
            return None  # what worker_init_fn sets up exists in workers only
        finally:
            snapshot.restore()
            for _, store, copy in kept:
                _put_back(store, copy)
        return ItemReads(items, differing, tuple(changed))


def _written(
    dataset: Any, index: Any, seed: int, snapshot: Snapshot, kept: list[tuple[str, Any, Any]]
) -> list[str]:
    """Return the stored arrays whose change makes an item come out another the next time.

    Empty where it does not, or where putting them back does not bring back the first result:
    then something else is random.
    """

    def read(with_seed: int) -> str:
        seed_everything(with_seed)
        with user_code("reading an item of the training set"):
            return fingerprint(dataset[index])

    snapshot.restore()  # the data set's own generators and counts too
    first = read(seed)
    read(seed + 1)
    snapshot.restore()
    if read(seed) == first:
        return []
    changed = [name for name, store, copy in kept if _put_back(store, copy)]
    snapshot.restore()
    return changed if read(seed) == first else []


def _stored(dataset: Any) -> Iterator[tuple[str, Tensor | np.ndarray]]:
    room, seen = MOST_BYTES, set[int]()
    for name, holder in reachable(dataset):
        for step, thing in parts(holder):
            if id(thing) not in seen and _is_data(thing) and thing.nbytes <= room:
                seen.add(id(thing))
                room -= thing.nbytes
                yield f"{name}{step}", thing


def _is_data(thing: Any) -> bool:
    """Whether ``thing`` may hold a row or many: pictures, series, tables; not labels or counts."""
    if isinstance(thing, Tensor):
        return thing.layout is torch.strided and _size_of_a_row(thing) >= _ROW
    numbers = isinstance(thing, np.ndarray) and thing.dtype.kind in "biufc"
    return numbers and _size_of_a_row(thing) >= _ROW


def _size_of_a_row(store: Tensor | np.ndarray) -> int:
    return math.prod(store.shape[1:]) if store.ndim > 1 else 0


def _copy(store: Any) -> Any:
    return store.detach().clone() if isinstance(store, Tensor) else store.copy()


def _put_back(store: Any, copy: Any) -> bool:
    """Undo what was written to ``store``; whether there was anything."""
    if isinstance(store, Tensor):
        if torch.equal(store.detach().nan_to_num(), copy.nan_to_num()):
            return False
        with torch.no_grad():
            store.copy_(copy)
        return True
    if np.array_equal(store, copy, equal_nan=store.dtype.kind in "fc"):
        return False
    np.copyto(store, copy)
    return True
