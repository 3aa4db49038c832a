"""Tensors of which a rank holds a part: DTensors, and the flat ones of FullyShardedDataParallel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass
class Piece:
    """The part of a tensor of ``shape`` that begins at ``offset``, an index by dimension."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    values: Tensor


def mesh(tensor: Tensor) -> Any:
    """Return the device mesh that ``tensor`` is distributed over; None for one that is not."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of ``tensor`` only."""
    return whole(tensor) is None


def whole(tensor: Tensor) -> Tensor | None:
    """Return ``tensor`` as this rank holds it; None where that is a part of it."""
    if type(tensor).__name__ == "FlatParameter":
        return None
    if not isinstance(tensor, DTensor):
        return tensor
    placements = tensor.placements
    return tensor.to_local() if all(type(p) is Replicate for p in placements) else None


def piece(tensor: Tensor) -> Piece | None:
    """Return what this rank holds of ``tensor``; None where its place in it is not known."""
    tensor = tensor.detach()
    if type(tensor).__name__ == "FlatParameter":
        return None
    if not isinstance(tensor, DTensor):
        return Piece(tuple(tensor.shape), (0,) * tensor.ndim, tensor.cpu().clone())
    if any(type(p) not in (Shard, Replicate) for p in tensor.placements):
        return None
    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return Piece(tuple(tensor.shape), tuple(offset), tensor.to_local().cpu().clone())


def joined(pieces: Iterable[Piece]) -> Tensor:
    """Return the tensor that the ``pieces`` of all ranks make."""
    found = list(pieces)
    made = torch.zeros(found[0].shape, dtype=found[0].values.dtype)
    for each in found:
        ends = zip(each.offset, each.values.shape, strict=True)
        made[tuple(slice(start, start + size) for start, size in ends)] = each.values
    return made
