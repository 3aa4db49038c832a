"""Targets of a loss that are bit for bit a number of the inputs of the same row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.targets import batch as batches

FEWEST = 100
"""Rows that must all agree."""

_KINDS = 20
"""Values that a target must take: of fewer, two columns may be equal by chance."""

_INPUTS, _TARGETS = 8192, 1024
"""Numbers of a row that are looked at, at most."""


@dataclass(frozen=True)
class Told:
    """A target that the inputs hold.

    Attributes:
        path: the input's, in a batch; ``place`` is where in one row: (47, 0).
        shape: of one row of that input.
        number: which of the row's targets; ``told`` of ``targets`` are among the inputs.
        rows: how many rows agree.
    """

    path: str
    place: tuple[int, ...]
    shape: tuple[int, ...]
    number: int
    told: int
    targets: int
    rows: int


def told_target(held: Sequence[Any], targets: Sequence[Tensor]) -> Told | None:
    """Return the first target that an input says, in all rows of the batches ``held``.

    Args:
        held: batches, as the loader made them.
        targets: what the loss compares with, (rows, ...), of each.

    It is one number of the input, and no other of that row: what stays the same through a window
    is no forecast. Of several targets beside a table, in which a state may have constant parts,
    only the first counts, and the last column: a window of one series.
    Nothing is said of rows of which more than half of several targets are among the inputs: these
    are what is to be put together again, or moved by a step.
    """
    if not targets or any(not t.is_floating_point() or t.ndim == 0 for t in targets):
        return None
    if any(len(t) != batches.size(batch) for batch, t in zip(held, targets, strict=False)):
        return None
    if len({t.shape[1:] for t in targets}) != 1 or targets[0][0].numel() > _TARGETS:
        return None
    answers = torch.cat([t.detach().cpu().reshape(len(t), -1) for t in targets])
    if len(answers) < FEWEST:
        return None
    varied = [i for i, column in enumerate(answers.T) if len(torch.unique(column)) >= _KINDS]
    for path, rows in _inputs(held, targets):
        values = rows.reshape(len(rows), -1).to(answers.dtype)
        said = {i: j for i in varied if (j := _equal(values, answers[:, i])) is not None}
        if not said or len(said) > max(answers.shape[1] / 2, 1):
            continue
        number, place = min(said.items())
        of_table = rows.ndim == 2 and answers.shape[1] > 1
        if not of_table or (number, place) == (0, values.shape[1] - 1):
            where = torch.unravel_index(torch.tensor(place), rows.shape[1:])
            return Told(
                path, tuple(map(int, where)), tuple(rows.shape[1:]), number, len(said),
                answers.shape[1], len(answers),
            )  # fmt: skip
    return None


def _inputs(held: Sequence[Any], targets: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Return the floating fields that are no targets and of one shape in all batches, by path."""
    kept = list(zip(held, targets, strict=False))
    found: dict[str, list[Tensor]] = {}
    for batch, target in kept:
        for path, tensor in batches.tensors(batch):
            if not tensor.is_floating_point() or tensor.ndim < 2 or len(tensor) != len(target):
                continue
            if tensor[0].numel() <= _INPUTS and not batches.same_values(tensor, target):
                found.setdefault(path, []).append(tensor.detach().cpu())
    return [
        (path, torch.cat(parts))
        for path, parts in found.items()
        if len(parts) == len(kept) and len({part.shape[1:] for part in parts}) == 1
    ]


def _equal(values: Tensor, answer: Tensor) -> int | None:
    """Return the one column of ``values`` that is ``answer`` in all rows; None for none."""
    same = torch.nonzero((values == answer[:, None]).all(0)).flatten()
    return int(same[0]) if len(same) == 1 else None
