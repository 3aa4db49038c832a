"""Batches as users make them: tensors in tuples, lists, dicts, dataclasses, named tuples.

A *batch* here is whatever a loader yields. A *row* is one example: the slices ``tensor[i]`` of
every tensor whose first dimension is the batch size. Nothing here knows what is input and what
is target: that is :mod:`nnaudit.targets.model_inputs`'s job.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

Leaf = Tensor | np.ndarray


class NotSliceableError(TypeError):
    """The rows of the batch cannot be taken apart: a graph batch, a packed sequence."""


def leaves(batch: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` for everything in ``batch`` that is not a container.

    Paths read like Python: ``[0]``, ``['input_ids']``, ``.x``.
    """
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        for name in batch._fields:
            yield from leaves(getattr(batch, name), f"{path}.{name}")
    elif isinstance(batch, (tuple, list)):
        for i, value in enumerate(batch):
            yield from leaves(value, f"{path}[{i}]")
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from leaves(getattr(batch, field.name), f"{path}.{field.name}")
    else:
        yield path, batch


def tensors(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(path, tensor)`` for every tensor and array in ``batch``, a graph batch's too."""
    for path, leaf in leaves(batch):
        if isinstance(leaf, Tensor):
            yield path, leaf
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            yield path, torch.from_numpy(leaf)
        elif _is_opaque(leaf):
            yield from _held(leaf, path)


def _held(opaque: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that an object holds; of a distribution also those of its parts."""
    for name, value in vars(opaque).items():
        if isinstance(value, Tensor):
            yield f"{path}.{name}", value
        elif isinstance(value, Distribution):
            yield from _held(value, f"{path}.{name}")


def map_leaves(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Return ``batch`` with ``function`` applied to every leaf, containers rebuilt in kind."""
    if _is_container(batch):
        return _rebuild(batch, lambda value: map_leaves(value, function))
    return function(batch)


def detached(value: Any) -> Any:
    """Return ``value`` with every tensor in it detached from its graph."""
    return map_leaves(value, lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf)


def _rebuild(container: Any, function: Callable[[Any], Any]) -> Any:
    """Return a container of the same type with ``function`` applied to each of its members."""
    if isinstance(container, Mapping):
        mapped = {key: function(value) for key, value in container.items()}
        return mapped if type(container) is dict else _rebuilt_mapping(container, mapped)
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return type(container)(*(function(value) for value in container))
    if isinstance(container, (tuple, list)):
        return type(container)(function(value) for value in container)
    fields = dataclasses.fields(container)
    values = {field.name: function(getattr(container, field.name)) for field in fields}
    return dataclasses.replace(container, **values)


def _rebuilt_mapping(original: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    """Rebuild a mapping of a user's own type (``BatchEncoding``, ``OrderedDict``); else a dict."""
    try:
        return type(original)(mapped)  # type: ignore[call-arg]
    except TypeError:
        return mapped


def to_device(batch: Any, device: torch.device) -> Any:
    """Return ``batch`` with every tensor on ``device``; objects with a ``to`` method are asked."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) or (_is_opaque(leaf) and callable(getattr(leaf, "to", None))):
            return leaf.to(device)
        return leaf

    return map_leaves(batch, move)


def clone(batch: Any) -> Any:
    """Return a copy of ``batch`` whose tensors share no memory with the original."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().clone()
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        if _is_opaque(leaf) and callable(getattr(leaf, "clone", None)):
            return leaf.clone()
        return leaf

    return map_leaves(batch, copy)


def size(batch: Any) -> int:
    """Return the number of rows: the first dimension that most tensors agree on, 0 if none has one.

    A list with an entry for each row (boxes of each image) decides: its tensors are no batches.
    """
    if rows_of_lists := listed(batch):
        return rows_of_lists
    counts: dict[int, int] = {}
    for _, tensor in tensors(batch):
        if tensor.ndim > 0:
            counts[tensor.shape[0]] = counts.get(tensor.shape[0], 0) + 1
    if not counts:
        return 0
    most = max(counts.values())
    # The first tensor of a batch is the input by convention: it breaks a tie.
    first = next(t.shape[0] for _, t in tensors(batch) if t.ndim > 0)
    return first if counts[first] == most else next(n for n, c in counts.items() if c == most)


def listed(batch: Any) -> int:
    """Return how many rows the lists in ``batch`` have entries for, or it lists; 0 if none has."""
    return _listed_items(batch) or _listed_rows(batch)


def rows(batch: Any, indices: Sequence[int]) -> Any:
    """Return the given rows of ``batch``, in that order.

    Raises:
        NotSliceableError: ``batch`` holds an object whose rows cannot be taken.
    """
    n = size(batch)
    if n == 0:
        raise NotSliceableError("the batch holds no tensor with a batch dimension")
    index = torch.as_tensor(indices, dtype=torch.long)
    if _listed_items(batch):
        return [batch[i] for i in index.tolist()]
    if not _listed_rows(batch):
        return _take_rows(batch, index, n)

    def take_member(member: Any) -> Any:
        if _is_plain_sequence(member) and len(member) == n:
            return type(member)(member[i] for i in index.tolist())
        return _take_rows(member, index, n)

    return _rebuild(batch, take_member)


def _listed_items(batch: Any) -> int:
    """Return how many items ``batch`` lists that nobody has put together; 0 if it is no such list.

    They are alike, and in one of them the tensors share no first dimension: they are no batches.
    """
    if type(batch) is not list or len(batch) < 2:
        return 0
    tuples = all(type(each) is tuple and len(each) == len(batch[0]) for each in batch)
    if not (tuples or _alike_dicts(batch)):
        return 0
    alone = ({t.shape[:1] for _, t in tensors(item)} for item in batch)
    return len(batch) if any(len(sizes) > 1 for sizes in alone) else 0


def _listed_rows(batch: Any) -> int:
    """Return how many rows the lists in ``batch`` have that hold an entry for each; 0 if none does.

    These are dicts of the same keys, or tensors that share no first dimension of that size with the
    input; everything else in the batch must have as many rows.
    """
    if not _is_container(batch):
        return 0
    members = _members(batch)
    lists = [each for each in members if _is_plain_sequence(each) and len(each) > 1]
    others = [each for each in members if isinstance(each, Tensor) and each.ndim > 0]
    inputs = {len(each) for each in others[:1]}
    found = [
        len(each)
        for each in lists
        if _alike_dicts(each) or ({len(each)} == inputs and _own_lengths(each))
    ]
    lengths = {*map(len, lists), *map(len, others)}
    return found[0] if found and len(lengths) == 1 else 0


def _members(container: Any) -> list[Any]:
    if isinstance(container, Mapping):
        return [*container.values()]
    if isinstance(container, (tuple, list)):
        return [*container]
    return [getattr(container, field.name) for field in dataclasses.fields(container)]


def _alike_dicts(items: Sequence[Any]) -> bool:
    dicts = all(isinstance(each, Mapping) for each in items)
    return dicts and all(each.keys() == items[0].keys() for each in items) and _holds_tensors(items)


def _own_lengths(items: Sequence[Any]) -> bool:
    tensors_only = all(isinstance(each, Tensor) for each in items)
    return tensors_only and any(each.ndim == 0 or len(each) != len(items) for each in items)


def _is_plain_sequence(value: Any) -> bool:
    return type(value) in (list, tuple)


def _take_rows(batch: Any, index: Tensor, n: int) -> Any:
    if isinstance(batch, list) and len(batch) == n and not _holds_tensors(batch):
        return [batch[i] for i in index.tolist()]
    if _is_container(batch):
        return _rebuild(batch, lambda value: _take_rows(value, index, n))
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim == 0 or batch.shape[0] != n:
            return batch
        if isinstance(batch, Tensor) and batch.layout is not torch.strided:
            raise NotSliceableError("the rows of a sparse tensor cannot be taken apart")
        return batch[index.to(batch.device) if isinstance(batch, Tensor) else index.numpy()]
    if _is_opaque(batch):
        raise NotSliceableError(f"the rows of a {type(batch).__name__} cannot be taken apart")
    return batch


def _holds_tensors(items: Sequence[Any]) -> bool:
    return any(True for _ in tensors(items))


def take(batch: Any, n: int) -> Any:
    """Return the first ``n`` rows of ``batch`` (all of it when it has no more).

    Raises:
        NotSliceableError: as :func:`rows`.
    """
    total = size(batch)
    return batch if total <= n and total > 0 else rows(batch, range(n))


def digest(batch: Any) -> str:
    """Return a hash of the content of every tensor in ``batch``, and of its strings and numbers."""
    state = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves(batch):
        state.update(path.encode())
        if isinstance(leaf, (str, int, float, bool)):
            state.update(repr(leaf).encode())
    for path, tensor in tensors(batch):
        state.update(f"{path}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(_bytes(tensor))
    return state.hexdigest()


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether both hold the same numbers in the same order, in whatever shape and dtype."""
    if a.numel() != b.numel() or a.is_complex() or b.is_complex():
        return False
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return a.shape == b.shape and a.layout == b.layout and _same_parts(a, b)
    if a is b or (a.data_ptr() == b.data_ptr() and _layout(a) == _layout(b)):
        return True
    return torch.equal(*(each.detach().cpu().double().reshape(-1) for each in (a, b)))


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the strided tensors that ``tensor`` consists of: of a sparse one, places and values.

    What is neither strided nor of torch's sparse layouts is made dense.
    """
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Return where in memory the elements of ``tensor`` lie, and how: the same for two views."""
    if tensor.layout is torch.strided:
        return tensor.data_ptr(), tensor.shape, tensor.stride()
    return parts(tensor)[-1].data_ptr(), tensor.shape, tensor.layout


def _same_parts(a: Tensor, b: Tensor) -> bool:
    pairs = zip(parts(a), parts(b), strict=True)
    return all(
        x.shape == y.shape and torch.equal(x.detach().cpu(), y.detach().cpu()) for x, y in pairs
    )


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def paths_of(batch: Any, values: Tensor) -> list[str]:
    """Return where in ``batch`` there are tensors that hold ``values``, in any shape and dtype."""
    return [path for path, tensor in tensors(batch) if same_values(tensor, values)]


def row_digests(tensor: Tensor) -> list[str]:
    """Return a hash of each row of ``tensor`` (shape ``(N, ...)``)."""
    return [hashlib.blake2b(_bytes(row), digest_size=16).hexdigest() for row in tensor]


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:  # it has no values
        return b""
    if tensor.layout is not torch.strided:
        return b"".join(_bytes(part) for part in parts(tensor))
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # A single element may have any stride; bytes can only be seen at a stride of one.
    flat = flat.as_strided(flat.shape, (1,))
    # A view as bytes, because numpy has no bfloat16.
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _is_container(value: Any) -> bool:
    return isinstance(value, (Mapping, tuple, list)) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _is_opaque(value: Any) -> bool:
    """Whether ``value`` is a user's own object that may hold tensors."""
    plain = (Tensor, np.ndarray, str, bytes, int, float, bool, complex, type(None))
    return not isinstance(value, plain) and hasattr(value, "__dict__") and not callable(value)
