from __future__ import annotations

import torch

from nnaudit.measure.told_targets import told_target

SERIES = torch.randn(400, generator=torch.Generator().manual_seed(0)).cumsum(0)


def windows(start: int, ahead: int = 6, past: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of the series beside another, and what follows from ``start`` steps after."""
    x = torch.stack([SERIES[i : i + past] for i in range(300)])
    y = torch.stack([SERIES[i + past + start :][:ahead] for i in range(300)])
    return torch.stack([x, x.flip(0)], -1), y


def test_a_forecast_of_the_last_step_is_told() -> None:
    x, y = windows(-1)
    found = told_target([(x, y)], [y])
    assert found is not None
    assert found.place == (23, 0)
    assert (found.number, found.told, found.targets) == (0, 1, 6)


def test_one_target_is_told() -> None:
    x, y = windows(-1, ahead=1)
    assert told_target([(x, y)], [y]) is not None


def test_what_follows_the_window_is_not() -> None:
    x, y = windows(0)
    assert told_target([(x, y)], [y]) is None


def test_a_series_to_be_moved_by_a_step_is_not() -> None:
    x, _ = windows(0)
    y = torch.cat([x[:, 1:, 0], windows(0, ahead=1)[1]], 1)
    assert told_target([(x, y)], [y]) is None


def test_few_kinds_of_values_are_not() -> None:
    x, y = windows(-1)
    assert told_target([((x > 0).float(), (y > 0).float())], [(y > 0).float()]) is None


def test_a_target_that_is_an_input_is_not() -> None:
    x, _ = windows(0)
    assert told_target([(x,)], [x]) is None


def test_a_constant_part_of_a_state_is_not() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0] + 0.1 * x[:, 1], x[:, 1] - 0.1 * x[:, 0], x[:, 2]], 1)
    assert told_target([(x, y)], [y]) is None


def test_what_stays_the_same_through_a_window_is_not() -> None:
    x, y = windows(0)
    store = torch.randn(300, generator=torch.Generator().manual_seed(1))
    x[..., 1] = store[:, None]
    y = torch.cat([y, store[:, None]], 1)
    assert told_target([(x, y)], [y]) is None


def test_one_series_whose_forecast_begins_too_early_is() -> None:
    x, y = windows(-1)
    found = told_target([(x[..., 0], y)], [y])
    assert found is not None
    assert found.place == (23,)
