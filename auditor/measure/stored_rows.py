"""Which row of which store an item comes from: what stays the same however items are augmented.

A data set is a store (arrays, lists of files) seen through any number of views (``Subset``, or a
user's class around another data set). Where both sets' views end at one object, the row numbers
there say what they share. Where they end at two objects of one class, the rows they hold do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.row_hashes import row_hashes

MOST_ROWS = 2**16
MOST_BYTES = 2**28
TRANSFORMING = ("transform", "aug", "collate", "seed", "rng", "generator")
"""Parts of the names of attributes that say how an item is changed, not which one it is."""

_DEPTH = 6


@dataclass(frozen=True)
class Stored:
    """Where a loader's rows come from.

    Attributes:
        base: the innermost data set.
        rows: the rows of it that an epoch asks for.
        views: the data sets around it, outermost first, subsets left out.
        indices: by which index the loader asks for each of :attr:`rows`.
    """

    base: Any
    rows: tuple[int, ...]
    views: tuple[Any, ...]
    indices: tuple[Any, ...]

    @classmethod
    def of(cls, access: RandomAccess | None) -> Stored | None:
        """Follow the views of ``access``'s data set; None where its indices are no row numbers.

        Raises:
            UserCodeError: a sampler of the user's raised.
        """
        if access is None or access.loader.batch_sampler is None:
            return None
        asked = dict.fromkeys(i for one in access.index_batches(most=MOST_ROWS) for i in one)
        dataset: Any = access.loader.dataset
        views: list[Any] = []
        rows = list(asked)
        for _ in range(_DEPTH):
            if not all(isinstance(i, (int, np.integer)) for i in rows):
                return None
            inner = _inner(dataset)
            if isinstance(dataset, Subset):
                rows = [int(dataset.indices[i]) for i in rows]
            if inner is None:
                size = len(dataset) if hasattr(dataset, "__len__") else None
                rows = [int(i) + size if i < 0 and size else int(i) for i in rows]
                indices = dict(zip(reversed(rows), reversed(list(asked)), strict=True))
                once = tuple(dict.fromkeys(rows))
                return cls(dataset, once, tuple(views), tuple(indices[row] for row in once))
            if type(dataset) is not Subset:
                views.append(dataset)
            dataset = inner
        return None

    def is_seen_like(self, other: Stored) -> bool:
        """Whether both see their stores through views of the same classes."""
        mine, theirs = (*self.views, self.base), (*other.views, other.base)
        return [type(view) for view in mine] == [type(view) for view in theirs]

    def is_set_like(self, other: Stored) -> bool:
        """Whether nothing but transforms and the stored rows tells the two apart.

        A flag such as ``part="val"`` may choose another part of each row.
        """
        mine, theirs = (*self.views, self.base), (*other.views, other.base)
        return all(
            a is b or _settings(a) == _settings(b) for a, b in zip(mine, theirs, strict=True)
        )

    def hashes(self) -> list[bytes] | None:
        """Hash each of :attr:`rows` as it is stored; None where the store cannot be read.

        All that the base holds one of per row counts together: pictures, labels, file names. There
        must be a picture or a file among it: two folders may use the same names for other things.
        """
        columns = _row_columns(self.base)
        if not any(_identifies(column) for column in columns.values()):
            return None
        hashed = [_hashed(column, self.rows) for column in columns.values()]
        return [b"".join(parts) for parts in zip(*hashed, strict=True)]


def _inner(dataset: Any) -> Any:
    """Return the data set that ``dataset`` is a view of; None where it is none.

    A user's class counts as a view when it holds one other data set of its own length.
    """
    if isinstance(dataset, Subset):
        return dataset.dataset
    if not hasattr(dataset, "__dict__"):
        return None
    held: list[Any] = [v for v in vars(dataset).values() if isinstance(v, Dataset)]
    held = list({id(value): value for value in held}.values())
    if len(held) != 1 or not all(hasattr(d, "__len__") for d in (dataset, held[0])):
        return None
    return held[0] if len(dataset) == len(held[0]) else None


def _settings(dataset: Any) -> dict[str, Any]:
    """The plain attributes that choose what an item is."""
    if isinstance(dataset, Subset) or not hasattr(dataset, "__dict__"):
        return {}
    return {
        name: value
        for name, value in vars(dataset).items()
        if isinstance(value, (bool, int, float, str, type(None), Path))
        and not any(part in name.lower() for part in TRANSFORMING)
    }


# --- what a data set holds one of per row ----------------------------------------------------


def _row_columns(dataset: Any) -> dict[str, Any]:
    if not hasattr(dataset, "__len__"):
        return {}
    n = len(dataset)
    held: Mapping[str, Any] = vars(dataset) if hasattr(dataset, "__dict__") else {}
    if isinstance(dataset, (Tensor, np.ndarray, list)):
        held = {"": dataset}
    if isinstance(getattr(dataset, "tensors", None), tuple):  # TensorDataset
        held = {str(k): tensor for k, tensor in enumerate(dataset.tensors)}
    return {name: value for name, value in held.items() if _is_column(value, n)}


def _is_column(value: Any, n: int) -> bool:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            return False
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        fits = value.ndim > 0 and len(value) == n and value.layout is torch.strided
        return fits and value.nbytes <= MOST_BYTES and not _numbers_rows(value)
    if not isinstance(value, (list, tuple)) or len(value) != n or n == 0:
        return False
    return all(_is_plain(each) for each in (value[0], value[n // 2], value[-1]))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 16 and all(_is_plain(each) for each in value)
    return isinstance(value, (str, int, float, bytes, Tensor, np.ndarray, Path))


def _numbers_rows(value: Tensor) -> bool:
    """Whether each row holds nothing but its place, however it is counted."""
    if value.ndim != 1 or value.is_floating_point() or value.is_complex() or len(value) < 2:
        return False
    return bool((value[1:].long() - value[:-1].long() == 1).all())


def _names_files(values: Any) -> bool:
    some = [str(_first_name(value)) for value in (values[0], values[-1])]
    return all(any(c.isspace() for c in text) or Path(text).is_file() for text in some)


def _first_name(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _identifies(column: Any) -> bool:
    """Whether equal entries mean the same row: pictures and files do, a number or two do not."""
    if isinstance(column, (Tensor, np.ndarray)):
        return column.ndim > 1 and int(np.prod(column.shape[1:])) >= 4
    first = _first_name(column[0])
    if isinstance(first, (str, Path)):
        return _names_files(column)
    return isinstance(first, (Tensor, np.ndarray)) and first.ndim > 0


def _hashed(column: Any, rows: tuple[int, ...]) -> list[bytes]:
    if isinstance(column, (Tensor, np.ndarray)):
        whole = torch.as_tensor(column)
        return row_hashes(whole[torch.tensor(rows, dtype=torch.long)])
    return [_hash_of(column[i]) for i in rows]


def _hash_of(value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        return b"|".join(_hash_of(each) for each in value)
    if isinstance(value, (Tensor, np.ndarray)):
        return row_hashes(torch.as_tensor(value)[None])[0]
    return repr(value).encode()
