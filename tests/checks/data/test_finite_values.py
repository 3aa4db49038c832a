from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nnaudit.checks.data.finite_values import FiniteValues
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def ask(model: Callable[[], nn.Module], loader: Any, **parts: Any) -> Result:
    loop = DirectLoop(Target(model, loader, **parts), torch.device("cpu"), seed=0)
    return run_check(FiniteValues, Audit(loop))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def rows(n: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator), torch.arange(n) % 2


def spoiled(value: float, at: int, n: int = 200) -> tuple[Tensor, Tensor]:
    x, y = rows(n)
    x[at, 2] = value
    return x, y


class Listed(Dataset[Any]):
    """A data set that is not tensors in memory."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, i: int) -> Any:
        return tuple(column[i] for column in self.columns)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_fails_and_is_found(value: float) -> None:
    result = ask(mlp, lambda: DataLoader(TensorDataset(*spoiled(value, 137)), 16))
    assert result.status is Status.FAIL
    assert "batch[0]" in result.message
    assert "row 137" in result.message
    assert result.fix


def test_one_row_in_many_is_found_where_the_data_lie_in_memory() -> None:
    data = TensorDataset(*spoiled(float("nan"), 8765, n=9000))
    result = ask(mlp, lambda: DataLoader(data, 16, shuffle=True))
    assert result.status is Status.FAIL
    assert "8765" in result.message


def test_a_column_of_missing_values_beyond_the_first_rows_is_found_elsewhere() -> None:
    x, y = rows(6000)
    x[4000:, 1] = float("nan")
    result = ask(mlp, lambda: DataLoader(Listed(x, y), 16))
    assert result.status is Status.FAIL


def test_targets_count_too() -> None:
    x, _ = rows()
    y = x[:, :1].clone()
    y[3] = float("nan")
    net = lambda: nn.Linear(4, 1)  # noqa: E731
    result = ask(net, lambda: DataLoader(TensorDataset(x, y), 16))
    assert result.status is Status.FAIL
    assert "batch[1]" in result.message


def test_a_step_that_raises_because_of_it_is_harm() -> None:
    def strict(output: Tensor, target: Tensor) -> Tensor:
        if output.isnan().any():
            raise ValueError("NaN in the output")
        return F.cross_entropy(output, target)

    data = TensorDataset(*spoiled(float("nan"), 5))
    result = ask(mlp, lambda: DataLoader(data, 16), loss=strict)
    assert result.status is Status.FAIL
    assert "NaN in the output" in result.message


class Imputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x.nan_to_num(0.0), x.isnan().float()], dim=1))


def test_a_network_that_imputes_is_noted() -> None:
    data = TensorDataset(*spoiled(float("nan"), 5))
    assert ask(Imputing, lambda: DataLoader(data, 16)).status is Status.NOTE


def test_a_loss_that_masks_is_noted() -> None:
    x, _ = rows()
    y = x[:, :2].clone()
    y[::3, 0] = float("nan")

    def masked(output: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        return F.mse_loss(output[known], target[known])

    data = TensorDataset(x, y)
    assert ask(mlp, lambda: DataLoader(data, 16), loss=masked).status is Status.NOTE


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = torch.softmax(mask, dim=1)
        return self.net((weights[:, :, None] * x).sum(1))


def test_an_attention_mask_of_minus_infinity_is_no_fault() -> None:
    x = torch.randn(64, 5, 3)
    mask = torch.zeros(64, 5)
    mask[:, 3:] = float("-inf")
    data = TensorDataset(x, mask, torch.arange(64) % 2)
    assert ask(Attending, lambda: DataLoader(data, 16)).status is Status.NOTE


def test_another_fault_is_not_blamed_on_the_data() -> None:
    def broken(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * float("nan")

    data = TensorDataset(*spoiled(float("nan"), 5))
    assert ask(mlp, lambda: DataLoader(data, 16), loss=broken).status is Status.INCONCLUSIVE


class Few(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*rows(3), strict=True))


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(9, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids)


@pytest.mark.parametrize(
    "name", ["rows", "listed", "stream", "tokens", "inputs", "dicts", "double", "chosen rows"]
)
def test_finite_data_pass(name: str) -> None:
    x, y = rows()
    chosen = list(range(100))
    bad, _ = spoiled(float("nan"), 150)
    loaders: dict[str, Any] = {
        "rows": lambda: DataLoader(TensorDataset(x, y), 16),
        "listed": lambda: DataLoader(Listed(x, y), 16),
        "stream": lambda: DataLoader(Few(), 2),
        "tokens": lambda: DataLoader(TensorDataset(torch.randint(9, (50, 6)), y[:50]), 16),
        "inputs": lambda: DataLoader(TensorDataset(x), 16),
        "dicts": lambda: [{"input": x, "label": y}],
        "double": lambda: DataLoader(TensorDataset(x, y), 16),
        # The row with a NaN exists and is never visited.
        "chosen rows": lambda: DataLoader(TensorDataset(bad, y), 16, sampler=chosen),
    }
    nets: dict[str, Any] = {"tokens": Reading, "inputs": lambda: nn.Linear(4, 4)}
    result = ask(nets.get(name, mlp), loaders[name])
    assert result.status is Status.PASS, result.message


def test_a_model_without_parameters_is_run_forward() -> None:
    data = TensorDataset(*spoiled(float("nan"), 5))
    assert ask(nn.Identity, lambda: DataLoader(data, 16)).status in (Status.FAIL, Status.ERROR)
