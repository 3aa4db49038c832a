"""Data that can be read in any order: what a map-style ``DataLoader`` lets one look up.

A loader of torch's own kind is a list of index batches and a data set. Both can be asked apart:
the order of an epoch without loading any data, and any item without iterating to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from nnaudit.errors import user_code

MOST_INDICES = 2**16
"""An epoch is followed this far."""

SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_PLAIN = (*SHUFFLING, SequentialSampler, DistributedSampler)


def innermost(loader: Any) -> Any:
    """Return the loader that ``loader`` reads, where it only moves its batches to the device.

    That is what Accelerate's do, which have the user's own within them.
    """
    return (
        loader if getattr(loader, "skip_batches", 0) else getattr(loader, "base_dataloader", loader)
    )


@dataclass(frozen=True)
class RandomAccess:
    """A loader whose data set can be indexed."""

    loader: DataLoader[Any]

    @classmethod
    def of(cls, loader: Any) -> RandomAccess | None:
        """Return access to ``loader``'s items, or None where there is none or it would mislead.

        A subclass with an ``__iter__`` of its own may do anything with the indices.
        """
        loader = innermost(loader)
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return None
        own = type(loader).__iter__ is not DataLoader.__iter__
        return None if own or not hasattr(loader.dataset, "__getitem__") else cls(loader)

    @property
    def sampler(self) -> Any:
        """What decides the order: the sampler beneath torch's own batching, or the user's own."""
        batching = self.loader.batch_sampler
        if batching is None:
            return self.loader.sampler
        return batching.sampler if type(batching) is BatchSampler else batching

    @property
    def torch_sampler(self) -> bool:
        """Whether the order is made by a sampler of torch's: no design of the user's own."""
        return type(self.sampler) in _PLAIN

    @property
    def sequential(self) -> bool:
        """Whether the loader asks for the items in the order in which they lie."""
        return type(self.sampler) is SequentialSampler

    @property
    def shuffles(self) -> bool:
        """Whether torch's own random sampler draws the order."""
        return type(self.sampler) in SHUFFLING

    def index_batches(self, *, most: int = MOST_INDICES, seconds: float = 5.0) -> list[list[Any]]:
        """Start an epoch and return the indices of its batches, without loading anything.

        Not many more than ``most`` indices, and not for longer than ``seconds``.

        Raises:
            UserCodeError: a sampler of the user's raised.
        """
        source: Iterable[Any] = self.loader.batch_sampler or self.loader.sampler
        found: list[list[Any]] = []
        count, deadline = 0, time.perf_counter() + seconds
        with user_code("iterating over the training loader's sampler"):
            for entry in source:
                found.append(list(entry) if self.loader.batch_sampler is not None else [entry])
                count += len(found[-1])
                if count >= most or time.perf_counter() > deadline:
                    break
        return found

    def fetch(self, indices: Sequence[Any]) -> Any:
        """Return the batch that the loader would make of ``indices``, in this process.

        Raises:
            UserCodeError: the data set or the collate function raised.
        """
        dataset: Any = self.loader.dataset
        with user_code("reading items of the training set"):
            if self.loader.batch_sampler is None:
                return self.loader.collate_fn(dataset[indices[0]])
            many = getattr(dataset, "__getitems__", None)
            items = many(list(indices)) if callable(many) else [dataset[i] for i in indices]
            return self.loader.collate_fn(items)

    def columns(self) -> tuple[tuple[str, Tensor], ...] | None:
        """Return the whole training set as ``(path in a batch, tensor (N, ...))`` pairs.

        None unless it lies in memory as a ``TensorDataset``, through any ``Subset``, and an epoch
        visits all of it.
        """
        visits_all = type(self.sampler) in (SequentialSampler, RandomSampler)
        if not visits_all or self.loader.collate_fn is not default_collate:
            return None
        dataset: Any = self.loader.dataset
        chosen: list[int] | None = None
        while type(dataset) is Subset:
            rows = list(dataset.indices)
            chosen = rows if chosen is None else [rows[i] for i in chosen]
            dataset = dataset.dataset
        if type(dataset) is not TensorDataset or self.loader.batch_sampler is None:
            return None
        return tuple(
            (f"[{k}]", tensor if chosen is None else tensor[chosen])
            for k, tensor in enumerate(dataset.tensors)
        )

    def spread(self, count: int) -> list[Any]:
        """Return ``count`` indices from all over an epoch, all of them where there are fewer.

        Raises:
            UserCodeError: a sampler of the user's raised.
        """
        indices = [index for batch in self.index_batches() for index in batch]
        step = max(len(indices) / count, 1.0)
        return [indices[int(i * step)] for i in range(min(count, len(indices)))]
