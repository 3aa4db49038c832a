"""What a few items of a data set tell, read under seeds of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nnaudit.loop.base import seed_everything
from nnaudit.targets import batch as batches


def augments(data: Any) -> bool:
    """Whether an item differs from itself under another seed, and under that one only."""
    first, again, other = (_read(data, [0], seed) for seed in (1, 1, 2))
    return first == again != other


def digest(data: Any) -> str:
    """Return a hash of a few items; empty where one differs from itself under one seed."""
    numbers = sorted({0, len(data) // 2, len(data) - 1})
    first, again = (_read(data, numbers, 1) for _ in range(2))
    return first if first == again else ""


def _read(data: Any, numbers: Iterable[int], seed: int) -> str:
    seed_everything(seed)
    return batches.digest([data[number] for number in numbers])
