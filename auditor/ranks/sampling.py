"""What the loaders' samplers give, followed to the end of an epoch without loading it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch.utils.data import RandomSampler, WeightedRandomSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from nnaudit.loop.script.patches import TappedIterator
from nnaudit.loop.trace import patched

FOLLOWED = 2_000_000
"""Items of an epoch that are followed."""


class Indices:
    """The indices that loaders' iterators ask for, by iterator."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, list[list[Any]]]] = {}
        self._ahead: WeakKeyDictionary[Any, deque[Any]] = WeakKeyDictionary()
        self._real: Any = None
        self._bases: dict[int, Any] = {}
        self._current: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note what every loader's iterator asks for, for the time of a ``with``."""

        def noting(real: Any) -> Any:
            self._real = real

            def next_index(base: Any) -> Any:
                ahead = self._ahead.get(base)
                return ahead.popleft() if ahead else self._next(base)

            return next_index

        with patched(_BaseDataLoaderIter, "_next_index", noting):
            yield

    @contextmanager
    def of(self, iterator: TappedIterator) -> Iterator[None]:
        """What is asked for in the block belongs to ``iterator``."""
        before, self._current = self._current, iterator.key
        try:
            yield
        finally:
            self._current = before

    def _next(self, base: Any) -> Any:
        """Return, and note, what the sampler gives the loader's iterator ``base`` as one batch."""
        found = self._real(base)
        rows = list(found) if isinstance(found, (list, tuple)) else [found]
        rows = [int(i) if isinstance(i, (np.integer, int)) else i for i in rows]
        self._found.setdefault(id(base), (base, []))[1].append(rows)
        if self._current is not None:
            self._bases[self._current] = base
        return found

    def base(self, iterator: TappedIterator) -> Any:
        """Return the loader's own iterator within ``iterator``; None before its first batch."""
        return self._bases.get(iterator.key)

    def found(self, base: Any) -> list[list[Any]]:
        """Return the items of every batch that ``base`` has asked for."""
        return self._found[id(base)][1]

    def renew(self, loader: Any) -> None:
        """``loader`` is read anew: an iterator that it keeps for that begins another epoch."""
        kept = getattr(loader, "_iterator", None)
        if kept is not None:
            self.forget(kept)
            self._ahead.pop(kept, None)

    def follow(self, base: Any) -> bool:
        """Let the sampler give the rest of its epoch; returns whether it came to its end.

        What it gives is kept for those who read on.
        """
        rows, ahead = self.found(base), self._ahead.setdefault(base, deque())
        total = sum(map(len, rows))
        while total < FOLLOWED:
            try:
                ahead.append(self._next(base))
            except StopIteration:
                return True
            total += len(rows[-1])
        return False

    def forget(self, base: Any) -> None:
        """What it has asked for was noted."""
        self._found.pop(id(base), None)


def described(loader: Any) -> dict[str, Any]:
    """Describe what chooses the items of ``loader``."""
    chain = [loader]
    for each in chain:  # which grows: a batch sampler may wrap another one, or a sampler
        inner = [getattr(each, name, None) for name in ("sampler", "batch_sampler")]
        chain += [x for x in inner if x is not None and not any(x is known for known in chain)]
    chain = chain[1:]
    waiting = [each for each in chain if callable(getattr(each, "set_epoch", None))]
    return {
        "sampler": type((waiting or chain or [loader])[0]).__name__,
        "waits_for_epoch": bool(waiting),
        "replaces": any(
            isinstance(each, (RandomSampler, WeightedRandomSampler)) and each.replacement
            for each in chain
        ),
    }
