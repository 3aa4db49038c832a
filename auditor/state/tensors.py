"""Keepers of tensors, which are kept as the raw bytes of their storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from nnaudit.state.objects import refill
from nnaudit.state.parts import Undo, gradient_of

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def keep_leaf(tensor: Tensor) -> Undo | None:
    """``requires_grad``, and having no history: a buffer updated with a graph gains one."""
    if not tensor.is_leaf:
        return None
    saved = tensor.requires_grad

    def undo() -> None:
        if not tensor.is_leaf:
            tensor.detach_()
        tensor.requires_grad_(saved)

    return undo


def keep_geometry(tensor: Tensor) -> Undo | None:
    """Storage, shape, strides, dtype, device: ``half()``, ``to()``, ``resize_``, ``.data = ``."""
    before = _geometry(tensor)
    if before is None:
        return None
    alias = tensor.data  # its own header, so that it keeps the geometry; the same storage

    def undo() -> None:
        if _geometry(tensor) != before:
            tensor.data = alias

    return undo


def keep_bytes(tensor: Tensor) -> Undo | None:
    """The bytes between a tensor's first and last element, whatever they mean."""
    if _geometry(tensor) is None or tensor.numel() == 0:
        return None
    storage = tensor.untyped_storage()
    if storage.device.type == "meta" or storage.nbytes() == 0:
        return None
    size, view = storage.nbytes(), _byte_view(tensor, storage)
    saved = _copy(view)

    def undo() -> None:
        if storage.nbytes() != size:  # sharding frees storages
            storage.resize_(size)
        # Memory mapped read-only crashes the process when written to, so look before.
        if view.device.type != "cpu" or not torch.equal(view, saved):
            view.copy_(saved)

    return undo


def keep_value(tensor: Tensor) -> Undo | None:
    """The fallback for tensors without a storage: sparse, nested, mkldnn."""
    if _geometry(tensor) is not None or is_traceable_wrapper_subclass(tensor):
        return None
    saved = tensor.detach().clone()

    def undo() -> None:
        if tensor.layout in _COMPRESSED:  # which ignore `.data = `
            tensor.copy_(saved)
        else:
            tensor.data = saved.clone()

    return undo


def keep_grad(tensor: Tensor) -> Undo:
    """The gradient by reference, ``None`` included; its value is kept like any tensor's."""
    saved = gradient_of(tensor)

    def undo() -> None:
        if gradient_of(tensor) is not saved:
            tensor.grad = saved

    return undo


def keep_tensor_hooks(tensor: Tensor) -> Undo:
    """Hooks on a parameter. Both dictionaries are created with the first hook."""
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    saved = {name: getattr(tensor, name) for name in names}
    contents = {name: list((hooks or {}).items()) for name, hooks in saved.items()}

    def undo() -> None:
        for name, hooks in saved.items():
            now = getattr(tensor, name)
            if now is not hooks:
                now and now.clear()  # C++ goes on calling what is in a dictionary taken away
                setattr(tensor, name, hooks)
            if hooks is not None:
                refill(hooks, contents[name])

    return undo


def _geometry(tensor: Tensor) -> tuple[Any, ...] | None:
    """Where the elements are and what they mean; None if there is no storage to point at."""
    if tensor.layout is not torch.strided or is_traceable_wrapper_subclass(tensor):
        return None
    try:
        storage = tensor.untyped_storage()._cdata
        place = (storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    except (NotImplementedError, RuntimeError):
        return None
    return (*place, tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg())


def _byte_view(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """One-dimensional integers over the span of ``tensor`` in its storage."""
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.storage_offset() * tensor.element_size()
    last = min(first + (reach + 1) * tensor.element_size(), storage.nbytes())
    # Eight bytes at a time compare six times as fast as one at a time.
    dtype = torch.int64 if first % 8 == 0 and last % 8 == 0 else torch.uint8
    view = torch.empty(0, dtype=dtype, device=storage.device)
    width = view.element_size()
    return view.set_(storage, first // width, ((last - first) // width,), (1,))


def _copy(view: Tensor) -> Tensor:
    try:
        return view.clone()
    except torch.OutOfMemoryError:  # slower, but the audit goes on
        return torch.empty_like(view, device="cpu").copy_(view)


TENSORS: tuple[tuple[Any, Callable[[Any], Undo | None]], ...] = (
    (Tensor, keep_leaf),
    (Tensor, keep_geometry),
    (Tensor, keep_bytes),
    (Tensor, keep_value),
    (Tensor, keep_grad),
    (Tensor, keep_tensor_hooks),
)
"""In the order in which they must be undone: a tensor is a leaf before it may be repointed, and has
its shape before it takes a gradient."""
