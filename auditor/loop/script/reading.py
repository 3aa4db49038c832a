"""Which of its loaders a script reads, before it is known which one it trains with."""

from __future__ import annotations

import weakref
from typing import Any

from nnaudit.loop.script.patches import TappedIterator
from nnaudit.targets import batch as batches


class LoaderReads:
    """The iterators that a script has begun, and in which order it asks them for batches.

    Attributes:
        live: by loader, the iterators that were being read when the script first back-propagated.
        redraws: every batch is the first of an iterator of its own.
    """

    def __init__(self) -> None:
        self.live: dict[int, TappedIterator] = {}
        self.redraws = False
        self._iterators: list[weakref.ref[TappedIterator]] = []
        self._clock = 0
        self._asked: dict[int, int] = {}
        self._sampled: dict[int, TappedIterator] = {}

    def started(self, iterator: TappedIterator) -> None:
        """The script began to iterate over a loader."""
        self._iterators.append(weakref.ref(iterator))

    def drawn(self, iterator: TappedIterator, batch: Any) -> None:
        """The script was given ``batch`` by ``iterator``."""
        iterator.count += 1
        iterator.latest = batches.clone(batch)
        self._clock += 1
        self._asked[iterator.key] = self._clock

    def sample(self, iterator: TappedIterator) -> None:
        """Remember an iterator that training may take a single batch of."""
        self._sampled[id(iterator.loader)] = iterator.remembered()

    def forget_samples(self) -> None:
        """It is known what training reads."""
        self._sampled.clear()

    def being_read(self) -> dict[int, TappedIterator]:
        """Return, for each loader that the script is in the middle of, how it is reading it."""
        iterators = [i for r in self._iterators if (i := r()) is not None]
        reading = [i for i in iterators if i.count and not i.exhausted]
        reading.sort(key=lambda i: self._asked.get(i.key, 0))
        return {id(i.loader): i for i in reading}

    def keys(self) -> set[int]:
        """Return the numbers of the iterators that are being read, or may have been for a batch."""
        return {i.key for i in (*self.being_read().values(), *self._sampled.values())}

    def feeds_training(self, iterator: TappedIterator) -> bool:
        """Whether ``iterator``'s loader was being read when the script first back-propagated."""
        if not (self.live or iterator.count) and id(iterator.loader) in self._sampled:
            # Each step takes next(iter(loader)): no iterator lasts until the next.
            self.live, self.redraws = dict(self._sampled), True
        return any(same_data(iterator.loader, live.loader) for live in self.live.values())

    def reader(self, train_loader: Any) -> TappedIterator | None:
        """Return the iterator that fed the first step, of the loader that is asked for the next."""
        readers = [i for i in self.live.values() if same_data(i.loader, train_loader)]
        return readers[-1] if readers else None

    def read_along(self, main: TappedIterator | None) -> dict[int, tuple[Any, Any]]:
        """Return loaders that were asked for a batch after ``main`` was, with their latest ones."""
        since = self._asked.get(main.key, 0) if main is not None else 0
        return {
            key: (iterator.loader, iterator.latest)
            for key, iterator in self.live.items()
            if iterator is not main and self._asked[iterator.key] > since
        }


def same_data(left: Any, right: Any) -> bool:
    """Whether two loaders are one, or read one data set."""
    data = getattr(left, "dataset", None)
    return left is right or (data is not None and data is getattr(right, "dataset", None))
