"""The rows of a batch: one target each, their content, and how batches follow one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs

_KEPT_COLUMNS = 1024

_HASHED_COLUMNS = 16_384


def row_targets(fed: ModelInputs, rows: int) -> NDArray[Any] | None:
    """Return one target per row: (rows,), or (rows, labels) of zeros and ones; None without.

    One-hot and soft labels count as their most probable class; of several targets the first that
    is one per row counts.
    """
    if fed.target is None or any(fed.target is each for each in fed.inputs):
        return None
    for _, tensor in batches.tensors(_as_tensors(fed.target)):
        if tensor.ndim > 0 and rows in (tensor.shape[0], 0):
            found = _one_per_row(tensor.detach())
            if found is not None:
                return found
    return None


def _as_tensors(target: Any) -> Any:
    """A plain list of numbers is a target too."""
    if isinstance(target, (list, tuple)) and target and isinstance(target[0], (int, float)):
        return torch.tensor(target)
    return target


def _one_per_row(tensor: Tensor) -> NDArray[Any] | None:
    if tensor.is_complex() or tensor.layout is not torch.strided:
        return None
    values = tensor.cpu()
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    if values.ndim > 1 and values[0].numel() == 1:
        values = values.flatten()
    if values.ndim == 1:
        return np.asarray(values)
    return _one_of_columns(values) if values.ndim == 2 and len(values) else None


def _one_of_columns(values: Tensor) -> NDArray[Any] | None:
    sums = values.sum(1)
    if bool((values >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        return np.asarray(values.argmax(1))
    if bool(((values == 0) | (values == 1)).all()):
        return np.asarray(values.to(torch.int8))
    few = values.is_floating_point() and values.shape[1] <= 8
    return np.asarray(values[:, 0]) if few else None


def is_next_token(fed: ModelInputs) -> bool:
    """Whether the targets are the input's own tokens: a language model."""
    tokens = _whole_numbers(fed.inputs)
    target = _whole_numbers((fed.target,))
    if tokens is None or tokens.ndim < 2 or tokens.shape[1] < 4:
        return False
    if fed.target is None or target is tokens:
        return True
    if target is None or target.shape != tokens.shape:
        return False
    moved = target[:, :-1] == tokens[:, 1:]
    return bool(moved.float().mean() > 0.9 or (target == tokens).float().mean() > 0.9)


def continues(before: ModelInputs, after: ModelInputs) -> bool:
    """Whether the inputs of ``after`` begin with what the targets of ``before`` end with.

    Batches of truncated back-propagation through time are like that, time along the second axis
    or the first: their order must not be random.
    """
    ending, beginning = _sequences(before), _sequences(after)
    if ending is None or beginning is None:
        return False
    target, start = ending[1], beginning[0]
    if target.shape != start.shape:
        return False
    pairs = ((target[:, -1], start[:, 0]), (target[-1], start[0]))
    return any(bool((a == b).all()) and bool((a != a.flatten()[0]).any()) for a, b in pairs)


def _sequences(fed: ModelInputs) -> tuple[Tensor, Tensor] | None:
    """Return input and target of one shape (rows, places, ...), or None."""
    inputs = next((t for _, t in batches.tensors(fed.inputs) if t.ndim > 1), None)
    target = next((t for _, t in batches.tensors((fed.target,)) if t.ndim > 0), None)
    if inputs is None or target is None or target.numel() != inputs.numel() or not target.numel():
        return None
    return inputs, target.reshape(inputs.shape)


def _whole_numbers(values: Any) -> Tensor | None:
    for _, tensor in batches.tensors(values):
        if not tensor.is_floating_point() and not tensor.is_complex() and tensor.ndim > 1:
            return tensor
    return None


def row_items(batch: Any, rows: int) -> list[str]:
    """Return a hash of each row of ``batch``, or one of all where rows cannot be taken apart."""
    found = [tensor for _, tensor in batches.tensors(batch)]
    columns = [t for t in found if t.ndim > 0 and t.shape[0] == rows]
    if not columns or any(t.layout is not torch.strided for t in columns):
        return [batches.digest(batch)]
    hashes = [batches.row_digests(_thinned(t, _HASHED_COLUMNS)) for t in columns]
    return ["".join(parts) for parts in zip(*hashes, strict=True)]


def _thinned(tensor: Tensor, most: int) -> Tensor:
    """Flatten each row and keep every k-th element, so that at most ``most`` remain."""
    flat = tensor.detach().reshape(tensor.shape[0], -1)
    return flat[:, :: max(1, -(-flat.shape[1] // most))] if flat.shape[1] else flat


def first_input(fed: ModelInputs, rows: int) -> NDArray[Any] | None:
    """Return the first input with a row for each of ``rows`` as numbers (rows, ...); None without.

    Of rows with many elements every k-th is kept.
    """
    for _, tensor in batches.tensors(fed.inputs):
        if tensor.ndim == 0 or tensor.shape[0] != rows or tensor.layout is not torch.strided:
            continue
        if tensor.is_complex() or tensor.numel() == 0:
            continue
        small = tensor.ndim > 1 and tensor[0].numel() <= 4 * _KEPT_COLUMNS
        kept = tensor.detach() if small else _thinned(tensor, _KEPT_COLUMNS)
        return np.asarray(kept.cpu().float())
    return None
