"""The first optimizer step of a rank, to be taken again in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.ranks import sharding
from nnaudit.ranks.sharding import Piece

LARGEST = 64_000_000
"""Elements of a network up to which its weights and gradients are kept: a quarter of a gigabyte of
each in single precision."""

MOST = 8
"""Batches of one step, where it accumulates, up to which they are kept."""


@dataclass
class Kept:
    """What a rank writes down of its first step: as of :class:`FirstStep`, of what it holds."""

    batches: list[Any]
    weights: dict[str, Piece]
    gradients: dict[str, Piece]


@dataclass
class FirstStep:
    """What a rank took its first step with.

    Attributes:
        batches: those that its gradients are of: several, where it accumulates.
        weights: by name, the parameters before the step.
        gradients: by name, as the optimizer was about to use them: after the reduction, and before
            they were clipped.
    """

    batches: list[Any]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]


def kept(networks: Sequence[nn.Module], batches: Sequence[Any], backwards: int) -> Kept | None:
    """Return the step that is about to be taken, without gradients; None where it cannot be again.

    That is where there are several networks, more batches than :data:`MOST`, weights whose parts
    cannot be put together, or too many. Of the ``batches`` that were read, as many are used as
    there were ``backwards``: some loaders read ahead. One batch may be used by several.
    """
    used = batches[: max(backwards, 1)]
    if len(networks) != 1 or not 0 < len(used) <= MOST or 1 < len(used) < backwards:
        return None
    named = dict(networks[0].named_parameters())
    if sum(p.numel() for p in named.values()) > LARGEST:
        return None
    held = _all({name: sharding.piece(p) for name, p in named.items()})
    return None if held is None else Kept(list(used), held, {})


def gradients(networks: Sequence[nn.Module]) -> dict[str, Piece]:
    """Return the gradients of the only network; nothing of several, or of too large a one."""
    if len(networks) != 1 or sum(p.numel() for p in networks[0].parameters()) > LARGEST:
        return {}
    named = networks[0].named_parameters()
    return _all({name: sharding.piece(p.grad) for name, p in named if p.grad is not None}) or {}


def _all(found: dict[str, Piece | None]) -> dict[str, Piece] | None:
    known = {name: piece for name, piece in found.items() if piece is not None}
    return known if len(known) == len(found) else None


def place(folder: Path, rank: int) -> Path:
    """Return where a rank leaves its step."""
    return folder / f"first_step{rank}.pt"


def load(folder: Path, count: int) -> tuple[FirstStep, ...]:
    """Return the steps that all ``count`` ranks left; nothing where one has left none.

    Of sharded weights and gradients, what all ranks hold is put together.

    Raises:
        Exception: a batch is of a class that this process does not know.
    """
    files = [place(folder, rank) for rank in range(count)]
    if not all(file.exists() for file in files):
        return ()
    found: list[Kept] = [torch.load(f, weights_only=False, map_location="cpu") for f in files]
    weights, gradients = [each.weights for each in found], [each.gradients for each in found]
    return tuple(
        FirstStep(each.batches, _whole(each.weights, weights), _whole(each.gradients, gradients))
        for each in found
    )


def _whole(mine: dict[str, Piece], everybody: list[dict[str, Piece]]) -> dict[str, Tensor]:
    """Return the tensors that a rank has, those that it has a part of with all other parts."""
    return {
        name: piece.values
        if piece.values.shape == piece.shape
        else sharding.joined(each[name] for each in everybody if name in each)
        for name, piece in mine.items()
    }
