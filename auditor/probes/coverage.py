"""Which items of the training set an epoch asks for, and which never."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError, is_user
from nnaudit.loop.base import Loop
from nnaudit.measure.random_access import RandomAccess, innermost
from nnaudit.measure.workers import Made, fingerprint, made_by_workers
from nnaudit.targets import batch as batches

EPOCHS = 3
"""What three epochs leave out alike is left out for good."""
MOST_ITEMS = 1_500_000
SECONDS = 5.0
STREAM_ITEMS = 8192
STREAM_SECONDS = 20.0
BEGINNING = 256
"""Items read of each worker where the stream is too long to be read to its end."""
LEAST_ITEMS = 32
"""Items of a worker that must be another worker's too, to be no coincidence."""


@dataclass(frozen=True)
class Epochs:
    """What a few epochs ask for, by index.

    Attributes:
        access: the loader's data set and order.
        expected: whether an epoch is to visit an item, (N,): not all of them where the sampler was
            given a list.
        visits: how often each item is asked for, (N,), by epoch; a single epoch where it leaves
            nothing out.
        complete: the epochs were followed to their end.
        elsewhere: items of the same data set that the validation loader asks for, (N,).
        hidden: items that can be indexed although ``len(dataset)`` does not count them.
    """

    access: RandomAccess
    expected: NDArray[np.bool_]
    visits: tuple[NDArray[np.intp], ...]
    complete: bool
    elsewhere: NDArray[np.bool_]
    hidden: int

    @property
    def size(self) -> int:
        """``len(dataset)``."""
        return len(self.expected)

    @property
    def count(self) -> int:
        """How many items an epoch is to visit."""
        return int(self.expected.sum())

    @property
    def left_out(self) -> tuple[NDArray[np.bool_], ...]:
        """What each epoch leaves out of what is expected, (N,)."""
        return tuple(self.expected & (visits == 0) for visits in self.visits)

    @cached_property
    def never(self) -> NDArray[np.bool_]:
        """What all epochs leave out, if all leave out the same and hardly by chance, (N,)."""
        one = self.left_out[0]
        dropped = int(one.sum())
        alike = all(bool((other == one).all()) for other in self.left_out)
        # Choosing the same items again has the probability of one choice among all.
        chance = math.exp(_log_choices(self.count, dropped) * (1 - len(self.visits)))
        if alike and (self.access.sequential or chance < 1e-6):
            return one
        return np.zeros_like(one)

    @property
    def repeats(self) -> bool:
        """Whether some item is asked for twice in an epoch."""
        return any(bool((visits > 1).any()) for visits in self.visits)


def _log_choices(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


Item = tuple[str, ...]
"""An item of a stream: a hash of each of its parts."""


@dataclass(frozen=True)
class Streams:
    """What the workers make of a data set that can only be read from its beginning.

    Attributes:
        workers: how many the loader has.
        alone: items that one worker yields by itself, and how often; of a second pass too, if the
            workers together yielded others.
        alone_ended, together_ended: they were read to their end.
        together: items that all workers yield, and how often.
        by_worker: the items of each of the first two workers, in their order.
    """

    workers: int
    alone: tuple[Counter[Item], Counter[Item]]
    alone_ended: bool
    together: Counter[Item]
    together_ended: bool
    by_worker: tuple[tuple[Item, ...], ...]

    @property
    def fixed(self) -> bool:
        """Whether the items are the same in every pass, in whatever order."""
        return self.alone[0] == self.alone[1]

    @property
    def same_beginning(self) -> int:
        """How many items two workers both yield first, if enough of them differ."""
        if len(self.by_worker) < 2:
            return 0
        one, other = self.by_worker
        count = min(len(one), len(other))
        return count if one[:count] == other[:count] and len(set(one)) >= LEAST_ITEMS else 0

    @property
    def several_times_in_part(self) -> int:
        """How many contents a part has that is the same in every pass and comes for each worker.

        Of an image that is augmented the label stays, or its name. 0 where there is none.
        """
        first, second = self.alone
        found = 0
        for k in range(len(next(iter(first), ()))):
            one, again, all_ = (_part(items, k) for items in (first, second, self.together))
            several = {content: count * self.workers for content, count in one.items()}
            if one == again and all_ == several and len(one) > 1:
                found = max(found, len(one))
        return found


def _part(items: Counter[Item], k: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for item, count in items.items():
        found[item[k] if k < len(item) else ""] += count
    return found


@dataclass(frozen=True)
class Unknown:
    """Why coverage is not known; ``applies`` says that there is something to be known."""

    why: str
    applies: bool = False


class Coverage(Probe[Epochs | Streams | Unknown]):
    """The items that epochs ask for, from the loader's index, else from its workers."""

    def measure(self, audit: Audit) -> Epochs | Streams | Unknown:
        """Follow a few epochs without loading anything, or let the workers of a stream read it.

        Raises:
            UserCodeError: the sampler raised.
            OutOfBudgetError: the time is used up.
        """
        loader = audit.loop.train_loader
        access = RandomAccess.of(loader)
        if access is not None:
            return _epochs(audit, access)
        loader = innermost(loader)
        if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, IterableDataset):
            return Unknown("the loader has no index that shows which items it requests", True)
        if type(loader).__iter__ is not DataLoader.__iter__:
            return Unknown("the loader reads its stream with code of its own", True)
        if loader.num_workers < 2:
            return Unknown("a stream read by one process is complete by definition")
        try:
            return _streams(audit, loader)
        except UserCodeError as error:
            return Unknown(f"the workers raised {error}", True)


# --- by index ------------------------------------------------------------------------------------


def _epochs(audit: Audit, access: RandomAccess) -> Epochs | Unknown:
    size = _length(access.loader.dataset)
    if size is None:
        return Unknown("the data set has no length")
    if size > MOST_ITEMS:
        return Unknown(f"{size:,} items are too many to follow", True)
    expected = _expected(access.sampler, size)
    visits: list[NDArray[np.intp]] = []
    complete = True
    while len(visits) < EPOCHS:
        audit.clock.check()
        started = time.perf_counter()
        most = max(2 * size, 1000)
        indices = _flat(access.index_batches(most=most, seconds=SECONDS))
        if not all(isinstance(i, (int, np.integer)) for i in indices):
            return Unknown("the sampler's indices are not numbers", True)
        complete &= len(indices) < most and time.perf_counter() - started < SECONDS
        visits.append(_counts(indices, size))
        if not bool((expected & (visits[-1] == 0)).any()):
            break
    return Epochs(
        access=access,
        expected=expected,
        visits=tuple(visits),
        complete=complete,
        elsewhere=_of_validation(audit.loop, access, size),
        hidden=_hidden(audit.loop, access.loader.dataset, size),
    )


def _counts(indices: list[Any], size: int) -> NDArray[np.intp]:
    numbers = np.asarray(indices, dtype=np.intp)
    numbers = np.where(numbers < 0, numbers + size, numbers)
    return np.bincount(numbers[(numbers >= 0) & (numbers < size)], minlength=size)


def _flat(index_batches: list[list[Any]]) -> list[Any]:
    """Return the indices one by one; where torch does no batching an index may be a list."""
    entries = [entry for one in index_batches for entry in one]
    return [i for e in entries for i in (e if isinstance(e, (list, tuple)) else [e])]


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset) or None
    except Exception:  # users' classes may raise anything
        return None


def _expected(sampler: Any, size: int) -> NDArray[np.bool_]:
    given = declared_indices(sampler)
    if given is None:
        return np.ones(size, dtype=bool)
    return _counts(list(given), size) > 0


def declared_indices(sampler: Any) -> frozenset[int] | None:
    """Return the items that ``sampler`` was given to choose from; None where it has no list."""
    indices = getattr(sampler, "indices", None)
    if not isinstance(indices, (Sequence, np.ndarray, Tensor, range)):
        return None
    try:
        return frozenset(int(i) for i in indices)
    except (TypeError, ValueError):
        return None


def _of_validation(loop: Loop, access: RandomAccess, size: int) -> NDArray[np.bool_]:
    other = RandomAccess.of(loop.val_loader)
    if other is None or other.loader.dataset is not access.loader.dataset:
        return np.zeros(size, dtype=bool)
    try:
        found = _flat(other.index_batches(most=2 * size))
    except UserCodeError:
        found = []
    return _counts([i for i in found if isinstance(i, (int, np.integer))], size) > 0


def _hidden(loop: Loop, dataset: Any, size: int) -> int:
    """Return how many items lie beyond ``len(dataset)``: as many as an attribute holds more.

    They count only where the last one can be had, is another than the first, is the same when it
    is read again and of the same shape as they, and where there is none after it. A data set that
    notes its length as a number means it so.
    """
    place = loop.locate(dataset)
    if type(dataset) is Subset or place is None or not is_user(place.file):
        return 0
    attributes = list(vars(dataset).values()) if hasattr(dataset, "__dict__") else []
    if any(isinstance(value, int) and value == size for value in attributes):
        return 0
    for length in sorted({n for value in attributes if (n := _held(value)) > size})[:8]:
        first, last, again, beyond = (
            _item(dataset, i) for i in (0, length - 1, length - 1, length)
        )
        if first is None or last is None or beyond is not None:
            continue
        if last == again and last.form == first.form and last.content != first.content:
            return length - size
    return 0


def _held(value: Any) -> int:
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__len__"):
        return 0
    if isinstance(value, Tensor) and value.ndim == 0:
        return 0
    try:
        return len(value)
    except Exception:  # users' classes may raise anything
        return 0


@dataclass(frozen=True)
class _Item:
    """The shapes and the content of an item, the latter as a hash."""

    form: str
    content: str


def _item(dataset: Any, index: int) -> _Item | None:
    try:
        item = dataset[index]
    except Exception:  # beyond its end a data set may raise anything
        return None
    form = [(path, getattr(leaf, "shape", type(leaf))) for path, leaf in batches.leaves(item)]
    return _Item(repr(form), fingerprint(item))


def is_declared(sampler: Any) -> bool:
    """Whether ``sampler`` is one of torch's that leaves items out, or repeats them, by design."""
    if type(sampler) is WeightedRandomSampler:
        return True
    if type(sampler) is not RandomSampler:
        return False
    return bool(sampler.replacement) or sampler.num_samples != len(sampler.data_source)


def source_length(sampler: Any) -> tuple[int, bool] | None:
    """Return for how many items ``sampler`` was made, and if for a data set; None if unknown."""
    if type(sampler) is WeightedRandomSampler:
        return len(sampler.weights), True
    if type(sampler) in (RandomSampler, SequentialSampler):
        source = sampler.data_source
        return len(source), isinstance(source, Dataset)
    if type(sampler) is DistributedSampler:
        return len(sampler.dataset), True  # type: ignore[arg-type]
    return None


def misread_indices(sampler: Any, size: int) -> list[int] | None:
    """Return the indices into ``size`` items that ``sampler`` was given and does not use, if any.

    torch's random and sequential samplers read the length of what they are given, nothing else.
    """
    if type(sampler) not in (RandomSampler, SequentialSampler):
        return None
    source = sampler.data_source
    if not isinstance(source, (list, tuple, np.ndarray, Tensor)) or not len(source):
        return None
    given = np.asarray(source)
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(np.unique(given)) < len(given):
        return None
    indices: list[int] = given.tolist()
    if min(indices) < 0 or max(indices) >= size or max(indices) == len(indices) - 1:
        return None
    return indices


def is_of_torch(sampler: Any) -> bool:
    """Whether torch's own sampler asks for each of its items once."""
    return type(sampler) in (RandomSampler, SequentialSampler, SubsetRandomSampler)


def repeated_in_subset(dataset: Any) -> int:
    """Return how many entries of a ``Subset`` name an item that another names too."""
    if type(dataset) is not Subset:
        return 0
    indices = [int(i) for i in dataset.indices]
    return len(indices) - len(set(indices))


# --- streams -------------------------------------------------------------------------------------


def _streams(audit: Audit, loader: DataLoader[Any]) -> Streams:
    def read(workers: int, most_items: int) -> tuple[list[Made], bool]:
        size = loader.batch_size or 1
        return made_by_workers(
            loader,
            workers=workers,
            most=max(most_items // size, 2 * workers),
            seconds=STREAM_SECONDS,
            check=audit.clock.check,
        )

    workers = loader.num_workers
    first, ended = read(1, STREAM_ITEMS)
    together, together_ended = read(workers, workers * (STREAM_ITEMS if ended else BEGINNING))
    alone, all_ = _counted(first), _counted(together)
    # What comes again in other passes needs no further one to be the same in all of them.
    varies = ended and not all_.keys() <= alone.keys()
    return Streams(
        workers=workers,
        alone=(alone, _counted(read(1, STREAM_ITEMS)[0]) if varies else alone),
        alone_ended=ended,
        together=all_,
        together_ended=together_ended,
        by_worker=tuple(_items(m for m in together if m.worker == k) for k in range(2)),
    )


def _items(made: Iterable[Made]) -> tuple[Item, ...]:
    return tuple(item for each in made for item in each.items)


def _counted(made: Iterable[Made]) -> Counter[Item]:
    return Counter(_items(made))
