"""Choosing a few fixed rows of differing targets."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.loop.base import Loop
from nnaudit.loop.batch_target import target_of
from nnaudit.targets import batch as batches

ROWS = 16
"""Rows of the tiny subset; half as many where every row has many targets (a text, a mask)."""


FEWEST = 8


_READ_SECONDS = 3.0


@dataclass(frozen=True)
class Subset:
    """A few fixed rows.

    Attributes:
        parts: the batches they make up, each a training step's.
        whole: they are whole batches: small ones, or such as cannot be taken apart.
    """

    parts: tuple[Any, ...]
    whole: bool = False


def capture(loop: Loop, most: int, *, rows: float = math.inf) -> list[Any]:
    """Return copies of the first batches, up to ``most`` of them or to ``rows`` rows.

    Raises:
        UserCodeError: the user's loader raised.
    """
    found: list[Any] = []
    started, count = time.perf_counter(), 0
    for batch in loop.batches():
        found.append(batches.clone(batch))
        count += batches.size(batch)
        slow = time.perf_counter() - started > _READ_SECONDS
        if len(found) >= most or count >= rows or (slow and len(found) > 1):
            break
    return found


def choose(loop: Loop, captured: list[Any], *, second: bool = False) -> Subset:
    """Choose a few rows of differing targets; with ``second`` others than without.

    Batches too small to choose from are taken whole, one after the other.

    Raises:
        NotSliceableError: the rows of a batch cannot be taken apart.
    """
    first = captured[0]
    size = batches.size(first)
    if size < FEWEST and len(captured) > 1:
        return _several(captured, second=second)
    count = ROWS if _targets_per_row(loop, first) <= 32 else ROWS // 2
    order = _spread(loop, first)
    if one_target(loop, first):  # sorted data: fitting it would show nothing
        others = [batch for batch in captured if _targets_differ(loop, first, batch)]
        if others:
            half = slice(count // 2, count) if second else slice(0, count // 2)
            return Subset(
                tuple(batches.rows(b, _spread(loop, b)[half]) for b in (first, others[0]))
            )
    if not second:
        return Subset((batches.rows(first, order[:count]),))
    rest = order[count : 2 * count]
    if len(rest) >= FEWEST:
        return Subset((batches.rows(first, rest),))
    if len(captured) > 1 and batches.size(captured[1]) >= FEWEST:
        other = captured[1]
        return Subset((batches.rows(other, _spread(loop, other)[:count]),))
    return Subset((batches.rows(first, order[len(order) // 2 :]),))


def _several(captured: list[Any], *, second: bool) -> Subset:
    """Small batches as they are, until there are enough rows."""
    size = max(batches.size(captured[0]), 1)
    count = max(FEWEST // size, 2)
    later = captured[count : 2 * count] if second else []
    return Subset(tuple(later or captured[:count]), whole=True)


def _target_tensor(loop: Loop, batch: Any) -> Tensor | None:
    target = target_of(loop, batch)
    return target if isinstance(target, Tensor) else None


def one_target(loop: Loop, batch: Any) -> bool:
    """Whether all rows of ``batch`` have the same target."""
    target = _target_tensor(loop, batch)
    return target is not None and target.numel() > 0 and bool((target == target.flatten()[0]).all())


def _targets_differ(loop: Loop, one: Any, other: Any) -> bool:
    a, b = _target_tensor(loop, one), _target_tensor(loop, other)
    return a is not None and b is not None and bool((b != a.flatten()[0]).any())


def _targets_per_row(loop: Loop, batch: Any) -> float:
    target = _target_tensor(loop, batch)
    return target.numel() / max(batches.size(batch), 1) if target is not None else 0.0


def _spread(loop: Loop, batch: Any) -> list[int]:
    """The row numbers of ``batch``, classes taking turns where the target is one class per row."""
    size = batches.size(batch)
    target = _target_tensor(loop, batch)
    if target is None or target.numel() != size or target.shape[:1] != (size,):
        return list(range(size))
    flat = target.reshape(-1)
    _, classes, counts = torch.unique(flat, return_inverse=True, return_counts=True)
    if len(counts) > size / 2:
        return list(range(size))
    turns: dict[int, int] = {}
    keys = []
    for row, label in enumerate(classes.tolist()):
        turns[label] = turns.get(label, -1) + 1
        keys.append((turns[label], row))
    return [row for _, row in sorted(keys)]
