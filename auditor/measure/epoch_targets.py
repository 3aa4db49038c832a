"""The targets of an epoch's rows, in the order in which they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnaudit import stats


@dataclass(frozen=True)
class Targets:
    """The targets along an epoch.

    Attributes:
        values: a class or a quantity per row (rows,).
        sizes: rows of each batch.
        near: how many of the rows follow each other without a gap; the rest was looked up in
            batches spread over the rest of the epoch.
        discrete: whether ``values`` are classes.
    """

    values: NDArray[Any]
    sizes: tuple[int, ...]
    near: int
    discrete: bool

    @property
    def kinds(self) -> int:
        """How many different values there are."""
        return len(np.unique(self.values))


def as_one_value(values: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """Return (rows,) values and whether they are classes.

    Several labels per row are one class by their combination or, where there are too many of
    those, by the label that splits the rows most evenly.
    """
    if values.ndim == 2:
        combinations, which = np.unique(values, axis=0, return_inverse=True)
        if len(combinations) <= len(values) / 4:
            return which.reshape(-1), True
        return values[:, int(np.abs(values.mean(0) - 0.5).argmin())], True
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    distinct = np.unique(finite)
    whole = values.dtype.kind in "iub" or (
        len(distinct) <= 50 and bool((distinct == np.round(distinct)).all())
    )
    return values, whole and len(distinct) <= max(len(values) / 2, 2)


def codes_of(values: NDArray[Any], most: int = 16) -> NDArray[np.intp]:
    """Number the classes of ``values`` from 0; more than ``most`` are merged with neighbours.

    Merging is by rank into groups of equal mass, so that sorted data stay sorted.
    """
    distinct, codes = np.unique(values, return_inverse=True)
    codes = codes.reshape(-1)
    if len(distinct) <= most:
        return codes
    share = (stats.rank(values) + 0.5) / len(values)
    return np.minimum((share * most).astype(np.intp), most - 1)


def counts_of(codes: Sequence[int] | NDArray[np.intp], sizes: Sequence[int]) -> NDArray[np.float64]:
    """Return how often each code occurs in each run of ``sizes`` rows: (runs, codes)."""
    table = np.zeros((len(sizes), int(np.max(codes)) + 1))
    owners = np.repeat(np.arange(len(sizes)), sizes)
    np.add.at(table, (owners, np.asarray(codes)), 1)
    return table
