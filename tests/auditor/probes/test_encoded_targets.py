"""Columns that are the mean target of their group, over training alone and over both sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit.probes.encoded_targets import encoded

ROWS, HELD = 1200, 900


def means(
    group: NDArray[np.intp], target: NDArray[np.float64], smooth: float
) -> NDArray[np.float64]:
    """The smoothed mean target of each group."""
    rows = np.bincount(group, minlength=200)
    sums = np.bincount(group, weights=target, minlength=200)
    overall = float(target.mean())
    safe = np.where(rows + smooth > 0, rows + smooth, 1)
    return np.where(rows + smooth > 0, (sums + smooth * overall) / safe, overall)


def tables(
    *, leak: bool, smooth: float = 5.0, noise: float = 1.0, binary: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A table with an encoded column, standardised, and targets in other units for each set."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 200, ROWS)
    size, level = rng.normal(0, 1, ROWS), rng.normal(0, 2, 200)
    target = level[group] + size + noise * rng.normal(0, 1, ROWS)
    target = (target > 0).astype(float) if binary else target
    seen = slice(None) if leak else slice(0, HELD)
    column = means(group[seen], target[seen], smooth)[group]
    x = torch.tensor(np.stack([size, (column - 3) / 2], 1), dtype=torch.float32)
    y = torch.tensor(target, dtype=torch.float32)
    return x[:HELD], (y[:HELD] - 1) / 3, x[HELD:], 100 * y[HELD:]


@pytest.mark.parametrize("smooth", [0.0, 5.0])
def test_means_over_both_sets_are_found(smooth: float) -> None:
    found = encoded(*tables(leak=True, smooth=smooth))
    assert found is not None
    assert found[0] == 1


def test_so_are_plain_shares_of_a_class() -> None:
    assert encoded(*tables(leak=True, smooth=0.0, binary=True)) is not None


@pytest.mark.parametrize("smooth", [0.0, 5.0])
def test_means_over_training_rows_are_none(smooth: float) -> None:
    assert encoded(*tables(leak=False, smooth=smooth)) is None


def test_a_column_that_says_the_target_is_none() -> None:
    """A toy of which the target is the column: the sums are linear in it by nature."""
    value = torch.randint(0, 50, (ROWS, 1), generator=torch.Generator().manual_seed(0)) / 7.0
    assert encoded(value[:HELD], value[:HELD], value[HELD:], value[HELD:]) is None


def test_a_column_of_measured_values_is_none() -> None:
    rng = np.random.default_rng(1)
    age = torch.tensor(rng.integers(18, 90, (ROWS, 1)), dtype=torch.float32)
    y = torch.tensor(rng.normal(0, 1, ROWS), dtype=torch.float32) + age[:, 0] / 40
    assert encoded(age[:HELD], y[:HELD], age[HELD:], y[HELD:]) is None


def test_a_balanced_panel_is_none() -> None:
    """As many rows of each value in both sets together: then e n is linear in e."""
    value = torch.arange(100).repeat(12)[:, None] / 7.0
    y = torch.randn(1200, generator=torch.Generator().manual_seed(0)) + value[:, 0]
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(1))
    x, y = value[order], y[order]
    assert encoded(x[:HELD], y[:HELD], x[HELD:], y[HELD:]) is None
