"""Whether a program splits its data anew in every epoch, into other rows."""

from __future__ import annotations

import ast
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch.utils.data import DataLoader

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import patched
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.row_hashes import row_hashes
from nnaudit.measure.stored_rows import Stored
from nnaudit.report import Location
from nnaudit.targets.source import source_of


@dataclass(frozen=True)
class Resplit:
    """The rows of the second epoch's validation beside those that were trained on in the first.

    Attributes:
        val: how many rows the second validation has.
        trained: those of them that the first epoch trained on, and did not validate on.
        location: the user's line that made the second validation's loader.
    """

    val: int
    trained: int
    location: Location | None = None


class SplitByEpoch(Probe[Resplit | None]):
    """Compares the loaders that the script makes in its epochs; None where it keeps the same."""

    def measure(self, audit: Audit) -> Resplit | None:
        """Let two epochs end, the second only where the first made new loaders.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        known = [loop.train_loader, loop.val_loader]
        if loop.lacks(Needs.STEPS) or not all(isinstance(each, DataLoader) for each in known):
            return None
        if not _may_be_made_again(loop.locate("train_loader")):
            return None
        try:
            batch = next(iter(loop.batches()))
            loop.step(batch)
            audit.clock.check()
            once = _next_epoch(loop, batch)
            if not once or not all(_is_new(loader, known) for loader in once[-1:]):
                return None
            audit.clock.check()
            # What is read last is what the next epoch trains on.
            *evaluated, _ = _next_epoch(loop, batch) or [None]
            return _compared(loop, [each for each in evaluated if _is_new(each, [*known, *once])])
        except UserCodeError:
            return None  # rows that cannot be read here, or an epoch that does not end


def _may_be_made_again(place: Location | None) -> bool:
    """Whether the line lies in a loop, or in a function that is called in one or elsewhere."""
    if place is None:
        return True
    source = source_of(place.file)
    lines, seen = [place.line], set[str]()
    while lines:
        line = lines.pop()
        if source.loops_at(line):
            return True
        around = [each.name for each in source.at(line, ast.FunctionDef) if each.name not in seen]
        seen.update(around)
        calls = [call.line for call in source.calls if call.name in around]
        if around and not calls:
            return True  # by another file
        lines += calls
    return False


def _next_epoch(loop: Loop, batch: Any) -> list[Any]:
    """End an epoch; return the loaders read on the way, if the model goes on being trained."""
    before = [p.detach().clone() for p in loop.model.parameters()]
    with _loaders_read() as read:
        step = loop.next_epoch(batch)
    after = list(loop.model.parameters())
    moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=False))
    return read if step is not None and moved else []


@contextmanager
def _loaders_read() -> Iterator[list[Any]]:
    """Gather the loaders that are iterated over in a ``with`` block, in order."""
    read: list[Any] = []

    def tap(real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def begin(loader: Any) -> Any:
            read.append(loader)
            return real(loader)

        return begin

    with patched(DataLoader, "__iter__", tap):
        yield read


def _is_new(loader: Any, known: list[Any]) -> bool:
    return loader is not None and all(loader is not each for each in known)


def _compared(loop: Loop, evaluated: list[Any]) -> Resplit | None:
    for loader in evaluated:
        trained, held_out, later = _keys(loop.train_loader, loop.val_loader, loader)
        if trained and held_out and later:
            known = set(trained) - set(held_out)
            return Resplit(len(later), sum(key in known for key in later), loop.locate(loader))
    return None


def _keys(*loaders: Any) -> list[list[Hashable]]:
    """Return what the rows of each loader are known by: numbers in one store, else contents."""
    stores = [Stored.of(RandomAccess.of(loader)) for loader in loaders]
    bases = {id(stored.base) for stored in stores if stored is not None}
    if len(bases) == 1 and None not in stores:
        return [list(stored.rows) for stored in stores if stored is not None]
    return [_contents(loader) for loader in loaders]


def _contents(loader: Any) -> list[Hashable]:
    """Return a hash of each row of a data set in memory; nothing where it is elsewhere."""
    access = RandomAccess.of(loader)
    columns = access.columns() if access is not None else None
    if columns is None:
        return []
    return list(zip(*(row_hashes(tensor) for _, tensor in columns), strict=True))
