"""Which group each stored row belongs to: the patient, the recording, the document it comes from.

Rows of one group are alike in what has nothing to do with the target, so a network that was trained
on some of them knows the others. Which group a row is of is told by a column that is named so, in
the data set, in its table, or in its items, or by the names of files: ``patient_012/slice_3.png``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnaudit.errors import user_code
from nnaudit.measure.stored_rows import Stored

MOST_ITEMS = 2048
SECONDS = 2.0
"""Items are read for their columns up to so many, or so long, of each set."""

_MOST_NUMBERS = 64
"""Rows of more whole numbers than this are pictures or texts."""

_KINDS = frozenset(
    {
        "animal", "article", "author", "case", "donor", "document", "doc", "family", "group",
        "household", "individual", "participant", "patient", "person", "recording", "scaffold",
        "scan", "scene", "slide", "speaker", "specimen", "study", "subject", "user", "video",
        "volunteer",
    }
)  # fmt: skip
_BESIDE = frozenset(
    {"id", "ids", "key", "name", "no", "nr", "num", "number", "idx", "index", "uid"}
)
_SHORT = {"pat": "patient", "spk": "speaker", "sub": "subject", "subj": "subject"}
_NUMBERED = re.compile(
    rf"(?<![a-z])({'|'.join(sorted({*_KINDS, *_SHORT}, key=len, reverse=True))})[-_ ]?(\d+)",
    re.IGNORECASE,
)
"""A group in the name of a file, and its number."""

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class Groups:
    """One column that says of which group the rows of both sets are.

    Attributes:
        kind: of what: "patient".
        column: how the program calls it; of files, the column of their names.
        train, val: the group of each row that was read.
        rows: the numbers of the training rows among them in their store, in the order of ``train``.
    """

    kind: str
    column: str
    train: tuple[Hashable, ...]
    val: tuple[Hashable, ...]
    rows: tuple[int, ...]


def kind_of(name: str) -> str:
    """Return what ``name`` says its values are of ("patient" of ``patient_ids``); else nothing."""
    words = [word.lower() for word in _WORDS.findall(name)]
    singular = [word if word in _BESIDE | _KINDS else word.removesuffix("s") for word in words]
    kinds = [word for word in singular if word in _KINDS]
    return kinds[0] if len(kinds) == 1 and set(singular) <= _BESIDE | _KINDS else ""


def groups_of(train: Stored, val: Stored) -> Iterator[Groups]:
    """Yield every column of groups that the stores of both sets have.

    Where the two sets have stores of their own, whole numbers may be counted in each from zero, and
    equal ones then mean nothing: such a column is left out.

    Raises:
        UserCodeError: a data set raised.
    """
    mine = dict(_columns(train))
    for named, theirs in _columns(val):
        ours = mine.get(named)
        if ours is None or (train.base is not val.base and _are_counted(theirs[1])):
            continue
        yield Groups(*named, ours[1], theirs[1], ours[0])


_Named = tuple[str, str]
"""Of what the groups are, and how the program calls the column."""

_Column = tuple[tuple[int, ...], tuple[Hashable, ...]]
"""Row numbers, and the group of each."""


def _columns(stored: Stored) -> Iterator[tuple[_Named, _Column]]:
    base, rows = stored.base, stored.rows
    if not rows or not hasattr(base, "__len__"):
        return
    for name, values in _held(base, len(base)):
        if kind_of(name):
            found = tuple(_plain(values[i]) for i in rows)
            if all(each is not None for each in found):
                yield (kind_of(name), name), (rows, found)
        else:
            yield from _of_files(name, values, rows)
    yield from _of_items(base, rows)


def _of_files(
    name: str, values: Sequence[Any], rows: tuple[int, ...]
) -> Iterator[tuple[_Named, _Column]]:
    """Yield what the names of files say, where all of them say it."""
    if isinstance(_file(values[rows[0]]), str):
        yield from _told_by_names(name, [values[i] for i in rows], rows)


def _told_by_names(
    name: str, files: Sequence[Any], rows: tuple[int, ...]
) -> Iterator[tuple[_Named, _Column]]:
    """Yield the group of each of ``rows``, where the names of all their ``files`` say it."""
    found = [_NUMBERED.search(str(_file(each))) for each in files]
    told = [match for match in found if match is not None]
    kinds = {match[1].lower() for match in told}
    if len(told) == len(rows) and len(kinds) == 1:
        kind = kinds.pop()
        yield (_SHORT.get(kind, kind), name), (rows, tuple(f"{match[2]}" for match in told))


def _file(value: Any) -> str | None:
    """Return the name of a file, alone or before its label; None where there is none."""
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    return str(value) if isinstance(value, (str, Path)) else None


def _held(base: Any, length: int) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield what the data set itself holds one of per row, in attributes or in a table."""
    for name, value in vars(base).items() if hasattr(base, "__dict__") else ():
        columns = getattr(value, "columns", None)
        if columns is not None and hasattr(value, "iloc") and len(value) == length:
            for column in columns:
                if isinstance(column, str) and kind_of(column):
                    yield column, value[column].tolist()
        elif _is_listed(value) and len(value) == length:
            if all(isinstance(record, Mapping) for record in value):
                yield from _of_records(value)
            else:
                yield name, value


def _of_records(records: Sequence[Mapping[Any, Any]]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the fields that tell groups, or may, and that all records have."""
    for name in records[0] if len(records) else ():
        told = isinstance(name, str) and (kind_of(name) or _file(records[0][name]) is not None)
        if told and all(name in record for record in records):
            yield name, [record[name] for record in records]


def _is_listed(value: Any) -> bool:
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim == 1
    return isinstance(value, (list, tuple)) or hasattr(value, "iloc")


def _of_items(base: Any, rows: tuple[int, ...]) -> Iterator[tuple[_Named, _Column]]:
    """Yield the fields of the items, where these have names."""
    with user_code("reading items of a data set"):
        first = _fields(base[rows[0]])
        names = [name for name, value in first.items() if kind_of(name) or _file(value) is not None]
        if not names:
            return
        order = np.random.default_rng(0).permutation(len(rows))[:MOST_ITEMS]
        started, read, found = time.perf_counter(), list[int](), list[dict[str, Any]]()
        for i in order.tolist():
            if read and time.perf_counter() - started > SECONDS:
                break
            read.append(rows[i])
            found.append(_fields(base[rows[i]]))
    for name in names:
        if not kind_of(name):
            files = [each.get(name) for each in found]
            yield from _told_by_names(name, files, tuple(read))
            continue
        values = tuple(_plain(each.get(name)) for each in found)
        if all(value is not None for value in values):
            yield (kind_of(name), name), (tuple(read), values)


def _fields(item: Any) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return {str(key): value for key, value in item.items()}
    names: Iterable[str] = getattr(item, "_fields", getattr(item, "__dataclass_fields__", ()))
    return {name: getattr(item, name) for name in names}


def _plain(value: Any) -> Hashable | None:
    """Return a value that can be compared; None for what is no name and no whole number."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if np.size(value) == 1 else None
    return value if isinstance(value, (str, int, bytes)) else None


def _are_counted(values: Sequence[Hashable]) -> bool:
    return all(isinstance(value, int) for value in values)


def tells_group(values: Sequence[Tensor], groups: Sequence[Hashable]) -> bool:
    """Whether some whole number of the rows' ``values`` is the group, or what it is known by.

    ``values`` holds one tensor per row.
    """
    first = values[0]
    if first.is_floating_point() or first.is_complex() or first.numel() > _MOST_NUMBERS:
        return False
    if any(value.shape != first.shape for value in values):
        return False
    table = torch.stack([value.flatten() for value in values]).cpu()
    return any(_is_one_per_group(column.tolist(), groups) for column in table.T)


def _is_one_per_group(values: Sequence[Hashable], groups: Sequence[Hashable]) -> bool:
    """Whether ``values`` are one per group, and nine in ten groups have one of their own."""
    of_group: dict[Hashable, Hashable] = {}
    for group, value in zip(groups, values, strict=True):
        if of_group.setdefault(group, value) != value:
            return False
    return len(set(of_group.values())) >= 0.9 * len(of_group)
