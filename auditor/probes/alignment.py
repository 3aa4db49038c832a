"""Whether the fields of a batch belong together: as many rows in each, and another item each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError, user_code
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.workers import fingerprint
from nnaudit.state.snapshot import Snapshot, Subjects
from nnaudit.targets import batch as batches

BATCHES = 64
SECONDS = 5.0
ITEMS = 16
LEAST_ITEMS = 8
USUAL = 0.8
"""A share of batches from which on equal lengths are the rule and others the exception."""


@dataclass(frozen=True)
class Lookup:
    """Items that were looked up one by one.

    Attributes:
        indices: all different.
        different: how many different contents they have.
        batch: the items put together by the loader's collate function.
        stored: how many different entries of the data set's own lie behind items that are all the
            same; 0 where it has no list or tensor of them.
        redrawn: the same, each item read with the same random numbers; None where it makes no
            difference.
        sizes: how many elements the entries have that the data set's own lists and tensors hold
            for its items, where they differ.
        apart: a field that the collate function puts in an order of its own, and one that it leaves
            in that of the items; None where it keeps them together.
    """

    indices: tuple[Any, ...]
    different: int
    batch: Any
    stored: int
    redrawn: Any = None
    sizes: frozenset[int] = frozenset()
    apart: tuple[str, str] | None = None


@dataclass(frozen=True)
class Fields:
    """What was seen of the batches' lengths.

    Attributes:
        read: how many batches.
        odd: those whose fields differ in length, each with the lengths by name.
        stacked: torch's own collate function makes the batches, so that lengths agree.
        lookup: None where items cannot be looked up.
    """

    read: int
    odd: tuple[tuple[Any, dict[str, int]], ...]
    stacked: bool
    lookup: Lookup | None

    @property
    def usually_agree(self) -> bool:
        """Whether equal lengths are the rule."""
        return self.read - len(self.odd) >= max(USUAL * self.read, 3)


class Alignment(Probe[Fields]):
    """The lengths of the fields of the first batches and of the last, and a few single items."""

    def measure(self, audit: Audit) -> Fields:
        """Read batches where their collate function is the user's; look up a few items.

        Raises:
            UserCodeError: the loader raised.
            OutOfBudgetError: the time is used up.
        """
        access = RandomAccess.of(audit.loop.train_loader)
        stacked = access is not None and (
            access.loader.collate_fn is default_collate and access.loader.batch_sampler is not None
        )
        lookup = _lookup(access) if access is not None else None
        if stacked:
            return Fields(0, (), stacked, lookup)
        read, odd = 0, []
        for batch in _some_batches(audit, access):
            read += 1
            lengths = lengths_of(batch)
            if len(set(lengths.values())) > 1:
                odd.append((batch, lengths))
        return Fields(read, tuple(odd[:8]) if len(odd) < read else tuple(odd), stacked, lookup)


def _some_batches(audit: Audit, access: RandomAccess | None) -> Iterator[Any]:
    """Yield the first batches of an epoch, and its last where it can be looked up."""
    started = time.perf_counter()
    for batch in islice(audit.loop.batches(), BATCHES):
        audit.clock.check()
        yield batch
        if time.perf_counter() - started > SECONDS:
            break
    index = access.index_batches() if access is not None else []
    if access is not None and len(index) > BATCHES:
        try:
            yield access.fetch(index[-1])
        except UserCodeError:  # what only the loader's workers can read
            return


def lengths_of(batch: Any) -> dict[str, int]:
    """Return the number of rows of each member of ``batch`` that has rows."""
    found: dict[str, int] = {}
    if batches.listed(batch):
        return found  # all lists have as many entries, which may be of any length
    for name, member in _members(batch):
        if isinstance(member, (Tensor, np.ndarray)):
            rows = member.shape[0] if member.ndim else 0
        elif isinstance(member, (list, tuple)) and not any(True for _ in batches.tensors(member)):
            rows = len(member)
        else:
            rows = batches.size(member)
        if rows:
            found[name] = rows
    return found


def _members(batch: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        return ((f"[{key!r}]", value) for key, value in batch.items())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return ((f".{name}", getattr(batch, name)) for name in batch._fields)
    if isinstance(batch, (tuple, list)):
        return ((f"[{i}]", value) for i, value in enumerate(batch))
    return iter(())


def cut(batch: Any, rows: int) -> Any:
    """Return ``batch`` with no more than the first ``rows`` of every field."""
    return batches.map_leaves(
        batch,
        lambda leaf: (
            leaf[:rows] if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0 else leaf
        ),
    )


# --- items ---------------------------------------------------------------------------------------


def _lookup(access: RandomAccess) -> Lookup | None:
    indices = list(dict.fromkeys(i for i in access.spread(ITEMS) if not isinstance(i, list)))
    if len(indices) < LEAST_ITEMS:
        return None
    dataset: Any = access.loader.dataset
    items = []
    try:
        with user_code("reading items of the training set"):
            for index in indices:
                items.append(dataset[index])
            different = len({fingerprint(item) for item in items})
            several = access.loader.batch_sampler is not None
            batch = access.loader.collate_fn(items) if several else items[0]
    except UserCodeError:
        return None
    apart = None
    if several:
        with suppress(UserCodeError), user_code("putting some items of the training set together"):
            apart = taken_apart(access.loader.collate_fn, items)
    stored = _stored(dataset) if different == 1 else 0
    redrawn = _redrawn(access, indices, items) if several else None
    sizes = _sizes(dataset) if redrawn is not None else frozenset()
    return Lookup(tuple(indices), different, batch, stored, redrawn, sizes, apart)


def _redrawn(access: RandomAccess, indices: list[Any], items: list[Any]) -> Any:
    """Return the batch of the items read with one random state; None where all are as before."""
    dataset: Any = access.loader.dataset
    snapshot = Snapshot.take(Subjects(loaders=(access.loader,)))
    again = []
    try:
        with user_code("reading items of the training set"):
            for index in indices:
                snapshot.restore()
                again.append(dataset[index])
            if all(fingerprint(a) == fingerprint(b) for a, b in zip(again, items, strict=True)):
                return None
            return access.loader.collate_fn(again)
    except UserCodeError:
        return None
    finally:
        snapshot.restore()


def taken_apart(collate: Callable[[list[Any]], Any], items: list[Any]) -> tuple[str, str] | None:
    """Return a field that ``collate`` sorts, and one that it leaves in the order of the items.

    The same items are put together in two orders. What comes out alike, and differs for other
    items, was sorted; what follows the items was not. Nothing is said where ``collate`` draws
    random numbers, or hands over the order by which the model is to undo the sorting.
    """
    if collate is default_collate:
        return None
    half = len(items) // 2
    some, others = items[:half], items[half : 2 * half]
    order = np.random.default_rng(0).permutation(half).tolist()
    base, again, moved, other = (
        _rows(collate(chosen), half)
        for chosen in (list(some), list(some), [some[i] for i in order], list(others))
    )
    if not all(_alike(base[name], again.get(name)) for name in base) or base.keys() != moved.keys():
        return None
    if any(_is_permutation(field) for field in base.values()):
        return None
    varied = [name for name in base if not _alike(base[name], base[name][order])]
    kept = [name for name in varied if _alike(moved[name], base[name][order])]
    for name in varied:
        if _is_list_of_values(base[name]):
            continue
        if kept and _alike(moved[name], base[name]) and not _alike(base[name], other.get(name)):
            return name, kept[0]
    return None


def _rows(batch: Any, count: int) -> dict[str, Tensor]:
    return {
        path: tensor.detach()
        for path, tensor in batches.tensors(batch)
        if tensor.ndim > 0 and tensor.shape[0] == count and tensor.layout is torch.strided
    }


def _alike(one: Tensor, two: Tensor | None) -> bool:
    return two is not None and one.shape == two.shape and torch.equal(one, two)


def _is_list_of_values(field: Tensor) -> bool:
    """Whether it is what torch.unique makes: which ids there are, and no row's own."""
    return field.ndim == 1 and not field.is_floating_point() and bool((field.diff() > 0).all())


def _is_permutation(field: Tensor) -> bool:
    if field.ndim != 1 or field.is_floating_point():
        return False
    return sorted(field.tolist()) == list(range(len(field)))


def _stored(dataset: Any) -> int:
    """Return how many different entries the lists and tensors of the data set show, at most 16."""
    return max((_different(value, length) for value, length in _held(dataset)), default=0)


def _sizes(dataset: Any) -> frozenset[int]:
    """Return the numbers of elements of the entries of those whose entries differ."""
    held = (value for value, length in _held(dataset) if _different(value, length) > 1)
    return frozenset(
        math.prod(value[0].shape)
        for value in held
        if isinstance(value[0], (Tensor, np.ndarray, np.generic))
    )


def _held(dataset: Any) -> Iterator[tuple[Any, int]]:
    """Yield what ``dataset`` holds by itself, and beside it its length."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    values = list(vars(dataset).values()) if hasattr(dataset, "__dict__") else []
    return ((value, len(dataset)) for value in values)


def _different(value: Any, length: int) -> int:
    listed = isinstance(value, (list, tuple)) or (
        isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0
    )
    if not listed or len(value) < max(length, 2):
        return 0
    step = max(len(value) // ITEMS, 1)
    return len({fingerprint(value[i]) for i in range(0, len(value), step)})
