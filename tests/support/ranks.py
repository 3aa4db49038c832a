"""Ranks that never were, and what a check says about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.ranks.record import (
    Batch,
    Collective,
    Done,
    Entry,
    Order,
    Rank,
    Ranks,
    Returned,
    Summary,
    Weights,
)
from nnaudit.report import Result, Status
from support import programs


def of_ranks(check: type[Check], *ranks: Iterable[Entry], **parts: Any) -> Result:
    """Return what ``check`` says when the ranks' journals hold these entries."""
    measured = parts.pop("measured", None)
    seen = Ranks(
        ranks=tuple(Rank(rank=i, entries=tuple(each)) for i, each in enumerate(ranks)), **parts
    )
    loop = DirectLoop(programs.target(), torch.device("cpu"), 0)
    result = run_check(check, Audit(loop, ranks=seen, measured=measured))
    assert result.status is not Status.ERROR, result
    return result


def calls(*ops: str, ends: bool = True, group: tuple[int, ...] = (0, 1)) -> list[Entry]:
    """A rank that calls these collectives, and waits in the last one unless it ``ends``."""
    entries: list[Entry] = []
    for number, op in enumerate(ops):
        entries.append(Collective(number=number, op=op, group=group, doing="training step 1"))
        if ends or number < len(ops) - 1:
            entries.append(Returned(number=number))
    return [*entries, Done()] if ends else entries


def parallel(data: bool = True, **parts: Any) -> Summary:
    """The end of a rank whose work is data-parallel."""
    return Summary(data_parallel=data, **parts)


def batch(index: int, digest: str, **parts: Any) -> Batch:
    """A batch of the first epoch."""
    return Batch(**{"loader": 0, "epoch": 0, "index": index, "step": index, **parts}, digest=digest)


def order(indices: Iterable[int], *, length: int = 64, size: int = 8, **parts: Any) -> Order:
    """An epoch of these items, ``size`` to a batch."""
    rows = tuple(indices)
    usual = {"loader": 0, "epoch": 0, "complete": True, "sampler": "DistributedSampler"}
    return Order(**{**usual, **parts}, indices=rows, batches=-(-len(rows) // size), length=length)


def weights(when: str, step: int, parameters: dict[str, str], **parts: Any) -> Weights:
    """The state of the networks at a moment."""
    return Weights(when=when, step=step, parameters=parameters, **parts)
