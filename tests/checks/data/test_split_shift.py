from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.checks.data.split_shift import SplitShift
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.channels import channel_axis
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

SILENT = (Status.PASS, Status.SKIP, Status.INCONCLUSIVE)


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.float().flatten(1).mean(1, keepdim=True))


def ask(train: Any, val: Any, **parts: Any) -> Result:
    target = Target(
        Anything,
        lambda: DataLoader(with_targets(train), 32, shuffle=True),
        val_loader=lambda: DataLoader(with_targets(val), 32),
        loss=lambda output, y: F.mse_loss(output[:, 0], y),
        **parts,
    )
    return run_check(SplitShift, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def with_targets(x: Any) -> Any:
    return TensorDataset(x, torch.zeros(len(x))) if isinstance(x, Tensor) else x


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colours(n: int, seed: int, side: int = 16) -> Tensor:
    """Pictures in [0, 1] of reddish things: patches of a colour each."""
    base = torch.tensor([0.6, 0.45, 0.3])[:, None, None]
    patches = torch.randn(n, 3, 4, 4, generator=generator(seed)) * 0.15
    noise = torch.randn(n, 3, side, side, generator=generator(seed + 1)) * 0.15
    return (base + F.interpolate(patches, side) + noise).clamp(0, 1)


MEAN, SD = torch.tensor([0.6, 0.45, 0.3]).view(3, 1, 1), torch.tensor(0.2)


def digits() -> Tensor:
    return torch.tensor(load_digits().images, dtype=torch.float32)[:, None]


def columns(load: Any) -> Tensor:
    x = torch.tensor(load(return_X_y=True)[0], dtype=torch.float32)
    return x[torch.randperm(len(x), generator=generator())]


def standardised(x: Tensor, by: Tensor) -> Tensor:
    return (x - by.mean(0)) / by.std(0)


# --- targets --------------------------------------------------------------------------------------


def numbers(rows: Tensor, targets: Tensor) -> TensorDataset:
    return TensorDataset(rows, targets)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda y: 150 + 75 * y, Status.NOTE),
        (lambda y: 40 * y, Status.NOTE),
        (lambda y: y / 30, Status.NOTE),
        (lambda y: 12 + 5 * y, Status.NOTE),
        (lambda y: y, Status.PASS),
        (lambda y: 6 + 2 * y, Status.PASS),  # a series with a trend
        (lambda y: 20 + y, Status.PASS),
    ],
)
def test_targets_in_other_units(change: Callable[[Tensor], Tensor], status: Status) -> None:
    x, y = torch.randn(400, 4, generator=generator()), torch.randn(400, generator=generator(1))
    result = ask(numbers(x[:300], y[:300]), numbers(x[300:], change(y[300:])))
    assert result.status is status, result.message


def test_classes_are_no_numbers_in_units() -> None:
    x = torch.randn(400, 4, generator=generator())
    result = ask(
        numbers(x[:300], torch.zeros(300)), numbers(x[300:], 60.0 * (torch.arange(100) % 3))
    )
    assert result.status is Status.PASS, result.message


# --- pipelines ------------------------------------------------------------------------------------

WINE, CANCER = columns(load_wine), columns(load_breast_cancer)
DIABETES = columns(lambda return_X_y: load_diabetes(return_X_y=True, scaled=False))

FAULTS: dict[str, tuple[Tensor, Tensor]] = {
    "not divided by 255": (colours(200, 0), 255 * colours(100, 9)),
    "only validation is divided": (255 * colours(200, 0), colours(100, 9)),
    "bytes": (colours(200, 0), (255 * colours(100, 9)).byte()),
    "not normalised": ((colours(200, 0) - MEAN) / SD, colours(100, 9)),
    "not normalised, of little contrast": (
        (0.3 + 0.4 * colours(200, 0) - 0.5) / 0.15,
        0.3 + 0.4 * colours(100, 9),
    ),
    "only validation is normalised": (colours(200, 0), (colours(100, 9) - MEAN) / SD),
    "one channel": ((digits()[:1400] / 16 - 0.3) / 0.37, digits()[1400:] / 16),
    "other colours": (colours(400, 0), colours(200, 9).flip(1)),
    "channels last": (colours(400, 0).movedim(1, 3), colours(200, 9).flip(1).movedim(1, 3)),
    "wine as it is": (standardised(WINE[:130], WINE[:130]), WINE[130:]),
    "only validation standardised": (WINE[:130], standardised(WINE[130:], WINE[:130])),
    "cancer as it is": (standardised(CANCER[:450], CANCER[:450]), CANCER[450:]),
    "sensors of like units": (
        torch.randn(200, 4, generator=generator()),
        20 + torch.randn(80, 4, generator=generator(1)),
    ),
    "diabetes as it is": (standardised(DIABETES[:350], DIABETES[:350]), DIABETES[350:]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_another_pipeline_fails(name: str) -> None:
    result = ask(*FAULTS[name])
    assert result.status is Status.FAIL, f"{result.status}: {result.message}"
    assert result.fix


def test_a_step_that_scales_its_inputs_leaves_a_doubt() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(model((x.float() - 100) / 50)[:, 0], y)

    train, val = 255 * colours(200, 0), colours(100, 9)
    assert ask(train, val, training_step=step).status is Status.WARN


# --- differences ----------------------------------------------------------------------------------


def test_a_shift_by_more_than_a_deviation_warns_and_a_smaller_one_is_noted() -> None:
    x = torch.randn(600, 5, generator=generator())
    moved = x[400:] + torch.tensor([0, 0, 1.5, 0, 0])
    assert ask(x[:400], moved).status is Status.WARN
    moved = x[400:] + torch.tensor([0, 0, 0.7, 0, 0])
    assert ask(x[:400], moved).status is Status.NOTE


def random_walks(seed: int, columns: int) -> Tensor:
    steps = torch.randn(800, columns, generator=generator(seed))
    return steps.cumsum(0)


@pytest.mark.parametrize("seed", range(4))
def test_series_split_by_time_never_fail(seed: int) -> None:
    walk = random_walks(seed, 1)[:, 0]
    walk = (walk - walk[:600].mean()) / walk[:600].std()
    windows = walk.unfold(0, 24, 1)
    assert ask(windows[:570], windows[600:]).status in (*SILENT, Status.NOTE)


@pytest.mark.parametrize("seed", range(4))
def test_prices_of_a_share_in_a_rising_market_never_fail(seed: int) -> None:
    close = (0.02 * torch.randn(900, generator=generator(seed)) + 0.002).cumsum(0).exp()
    spread = 0.01 * torch.rand(900, 3, generator=generator(seed + 50))
    table = torch.cat([close[:, None] * (1 + spread), close[:, None]], 1)
    table = standardised(table, table[:600])
    assert ask(table[:600], table[600:]).status is not Status.FAIL


# --- nothing to say -------------------------------------------------------------------------------


def same_pipeline() -> tuple[Tensor, Tensor]:
    return (colours(200, 0) - MEAN) / SD, (colours(100, 9) - MEAN) / SD


def other_sizes() -> tuple[Any, Any]:
    return colours(200, 0, side=16), colours(60, 9, side=32)


def unlike_sizes_within_validation() -> tuple[Any, Any]:
    val = [(colours(1, i, side=(16, 24, 32)[i % 3])[0], 0.0) for i in range(60)]
    return colours(200, 0), Ragged(val)


class Ragged(Dataset):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


def scaled_row_by_row() -> tuple[Tensor, Tensor]:
    x = torch.randn(300, 1, 8, 8, generator=generator()) * torch.rand(300, 1, 1, 1) * 9
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    return x[:200], x[200:]


def heavy_tails() -> tuple[Tensor, Tensor]:
    x = torch.tensor(np.random.default_rng(0).standard_t(1.2, (600, 6))).float()
    return x[:400], x[400:]


def rare_one_hot_columns() -> tuple[Tensor, Tensor]:
    x = F.one_hot(torch.randint(0, 40, (500,), generator=generator()), 40).float()
    return x[:400], x[400:]


def flattened_pictures() -> tuple[Tensor, Tensor]:
    x = digits().flatten(1) / 16
    return x[:1400], x[1400:]


def token_ids() -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 500, (400, 12), generator=generator())
    return x[:300], x[300:] // 9


def few_rows() -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 3, generator=generator())
    return x[:30], x[30:] + 9


def noisy_training() -> tuple[Any, Tensor]:
    class Noisy(Dataset):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, i: int) -> tuple[Tensor, float]:
            picture = colours(1, 3 * i)[0]
            return picture + 0.1 * torch.randn(picture.shape), 0.0

    return Noisy(), colours(80, 9000)


HEALTHY = (
    same_pipeline, other_sizes, scaled_row_by_row, heavy_tails, rare_one_hot_columns,
    flattened_pictures, token_ids, few_rows, noisy_training,
)  # fmt: skip


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_one_pipeline_is_silent(make: Callable[[], tuple[Any, Any]]) -> None:
    result = ask(*make())
    assert result.status in SILENT, f"{result.status}: {result.message}"


@pytest.mark.parametrize("load", ["WINE", "CANCER", "DIABETES"])
def test_standardised_tables_are_silent(load: str) -> None:
    x = globals()[load]
    n = int(0.75 * len(x))
    result = ask(standardised(x[:n], x[:n]), standardised(x[n:], x[:n]))
    assert result.status in SILENT, result.message
    assert ask(x[:n], x[n:]).status in SILENT


def test_random_splits_of_one_table_are_noted_no_more_often_than_chance() -> None:
    found = 0
    for seed in range(60):
        x = torch.randn(160, 12, generator=generator(seed)).exp()
        found += ask(x[:120], x[120:]).status not in SILENT
    assert found == 0


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 32, 32), 0), ((32, 32, 3), 2), ((28, 28), None), ((1, 28, 28), 0), ((12,), 0),
        ((784,), None), ((100, 6), 1), ((6, 100), 0), ((), None), ((3, 8, 32, 32), 0),
        ((8, 3, 32, 32), 1), ((13, 64, 64), 0), ((64, 64, 64), None),
    ],
)  # fmt: skip
def test_which_axis_holds_different_things(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


# --- fitted again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [True, False])
def test_a_scaler_that_is_fitted_to_validation_too(again: bool) -> None:
    x = torch.tensor(load_breast_cancer().data).float()
    x = x[torch.randperm(len(x), generator=generator())]
    train, val = x[:450], x[450:]
    by = val if again else train
    result = ask((train - train.mean(0)) / train.std(0), (val - by.mean(0)) / by.std(0))
    assert (result.status is Status.FAIL) is again, result.message
    assert again is ("of its own" in result.message)


def test_one_set_for_both_has_the_statistics_of_both() -> None:
    x = torch.tensor(load_wine().data).float()
    x = (x - x.mean(0)) / x.std(0)
    assert ask(x, x).status in SILENT


class Worded(TensorDataset):
    """Rows of a data set that holds its own list of words."""

    def __init__(self, x: Tensor, words: list[str]) -> None:
        super().__init__(x, torch.zeros(len(x)))
        self.words = words


@pytest.mark.parametrize(("order", "warns"), [(1, False), (-1, True)])
def test_words_that_each_set_numbers_itself(order: int, warns: bool) -> None:
    x, words = torch.randn(400, 4, generator=generator()), ["a", "bag", "boot", "coat"]
    result = ask(Worded(x[:200], words), Worded(x[200:], words[::order]))
    assert (result.status is Status.WARN) is warns, result.message
    assert not warns or "words" in result.message
