"""What the collate function makes of some items, together and one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError, user_code
from nnaudit.loop.base import seed_everything
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.workers import fingerprint
from nnaudit.targets import batch as batches

ITEMS = 6


@dataclass(frozen=True)
class Collation:
    """What became of the fields of some items.

    Attributes:
        items: how many were collated together.
        fields: how many fields their batch has.
        first_only: fields in which the batch holds what the first item alone has, once or in every
            row, whichever is first, and nowhere what the others have there.
    """

    items: int
    fields: int
    first_only: tuple[str, ...]


class Collating(Probe[Collation | None]):
    """Collates the same items one by one, and together with each of them first."""

    def measure(self, audit: Audit) -> Collation | None:
        """Return None where items cannot be looked up, or not collated alone.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        access = RandomAccess.of(audit.loop.train_loader)
        if access is None or access.loader.batch_sampler is None:
            return None
        audit.clock.check()
        dataset: Any = access.loader.dataset
        try:
            with user_code("reading items of the training set"):
                items = [dataset[index] for index in access.spread(ITEMS)]
            alone = [_fields(audit, access, [item]) for item in items]
            turns = [_fields(audit, access, items[n:] + items[:n]) for n in range(len(items))]
        except UserCodeError:
            return None
        if len(items) < ITEMS:
            return None
        return Collation(
            len(items),
            len(turns[0]),
            tuple(
                name
                for name in turns[0]
                if all(name in each for each in (*alone, *turns))
                and len({each[name] for each in alone}) > 1
                and all(turn[name] == one[name] for turn, one in zip(turns, alone, strict=True))
                and not _is_kept(name, alone, turns[0])
            ),
        )


def _is_kept(name: str, alone: Sequence[dict[str, str]], batch: dict[str, str]) -> bool:
    """Whether ``batch`` holds what items other than its first have there: in entries of a list."""
    others = {each[name] for each in alone} - {alone[0][name]}
    return not others.isdisjoint(value for path, value in batch.items() if path not in alone[0])


def _fields(audit: Audit, access: RandomAccess, items: Sequence[Any]) -> dict[str, str]:
    """Return a hash of each field of the batch of ``items``."""
    seed_everything(audit.seed)
    with user_code("collating items of the training set"):
        batch = access.loader.collate_fn(list(items))
    return {
        str(path): fingerprint(_once(value, len(items))) for path, value in batches.leaves(batch)
    }


def _once(value: Any, rows: int) -> Any:
    """Return the first row of a tensor that has the same one for each item; else ``value``."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.ndim == 0:
        return value
    if len(value) != rows or not torch.equal(value, value[:1].expand_as(value)):
        return value
    return value[:1]
