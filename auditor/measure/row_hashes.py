"""Rows of tensors by their content: hashes, and copies that are small enough to keep."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_KEPT_ELEMENTS = 8192


_KEPT_SIDE = 32


def row_hashes(tensor: Tensor) -> list[bytes]:
    """Hash shape and values of each row of ``tensor`` (rows, ...), whatever the dtype.

    float32 and float64 of one number count as the same, and so do 0 and -0.
    """
    values = _dense(tensor)
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    values = values.float() + 0.0 if values.is_floating_point() else values.to(torch.int64)
    shape = repr(tuple(values.shape[1:])).encode()
    flat = values.contiguous().reshape(len(values), -1)
    size = flat.shape[1] * flat.element_size()
    raw = memoryview(flat.numpy().tobytes())
    return [
        hashlib.blake2b(raw[i * size : (i + 1) * size], digest_size=12, key=shape[:64]).digest()
        for i in range(len(flat))
    ]


def thinned(value: Tensor) -> Tensor:
    """Return a copy of at most :data:`_KEPT_ELEMENTS` elements: every k-th along large axes."""
    value = _dense(value)
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj()).flatten(-2)
    if value.numel() <= _KEPT_ELEMENTS:
        return value.clone()
    if value.ndim < 2:
        return value[:_KEPT_ELEMENTS].clone()
    index = tuple(slice(None, None, max(1, side // _KEPT_SIDE)) for side in value.shape)
    small = value[index].clone()
    return small if small.numel() <= _KEPT_ELEMENTS else small.flatten()[:_KEPT_ELEMENTS].clone()


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()
