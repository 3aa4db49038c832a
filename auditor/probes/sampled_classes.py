"""How often a weighted sampler draws each class, beside how many rows the class has."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.random_access import RandomAccess
from nnaudit.state.snapshot import preserved

ROWS, SECONDS = 2048, 5.0
"""Rows whose classes are read, and how long."""

_AT_ONCE = 64

_ALIKE = 1e-4
"""How much weights of one class may differ, as a share, and be the same."""


@dataclass(frozen=True)
class SampledClasses:
    """What the rows of the data set show, drawn evenly.

    Attributes:
        rows: how many were read of each class, (classes,).
        weights: the sampler's weight of each class's rows, the same for all; 0 without a row.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def drawn(self) -> NDArray[np.float64]:
        """The share of each class among the rows that the sampler draws."""
        share = self.rows * self.weights
        return np.asarray(share / share.sum())


class SampledByClass(Probe[SampledClasses | None]):
    """Reads the classes of some rows, and the weights that the sampler has for these."""

    def measure(self, audit: Audit) -> SampledClasses | None:
        """Return None without torch's weighted sampler, or where its weights are not by class.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        access = RandomAccess.of(audit.loop.train_loader)
        if access is None or type(access.sampler) is not WeightedRandomSampler:
            return None
        weights = access.sampler.weights.detach().cpu().double()
        try:
            size = len(access.loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            return None
        if len(weights) != size:
            return None  # DATA105 asks whether there is one for each row
        generator = torch.Generator().manual_seed(audit.seed)
        chosen = torch.randperm(size, generator=generator)[:ROWS]
        with preserved(audit.loop.subjects):
            labels = _labels(audit, access, chosen)
        return None if labels is None else by_class(labels, weights[chosen[: len(labels)]])


def _labels(audit: Audit, access: RandomAccess, chosen: Tensor) -> Tensor | None:
    """Return the class of each row that there is time for, (N,); None without a single class."""
    found: list[Tensor] = []
    begun = time.monotonic()
    try:
        for start in range(0, len(chosen), _AT_ONCE):
            audit.clock.check()
            part = chosen[start : start + _AT_ONCE].tolist()
            target = audit.loop.split_batch(access.fetch(part)).target
            if not isinstance(target, Tensor) or target.numel() != len(part):
                return None
            found.append(target.detach().cpu().reshape(-1))
            if time.monotonic() - begun > SECONDS:
                break
    except UserCodeError:
        return None
    labels = torch.cat(found)
    whole = torch.equal(labels, labels.long().to(labels.dtype))
    return labels.long() if whole and int(labels.min()) >= 0 else None


def by_class(labels: Tensor, weights: Tensor) -> SampledClasses | None:
    """Return rows and weights by class, of rows with ``labels`` and ``weights``, (N,) each.

    None where rows of one class have different weights.
    """
    rows = torch.bincount(labels)
    sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, labels, weights)
    mean = sums / rows.clamp(min=1)
    if bool(((weights - mean[labels]).abs() > _ALIKE * mean[labels]).any()):
        return None
    return SampledClasses(np.asarray(rows), np.asarray(mean))
