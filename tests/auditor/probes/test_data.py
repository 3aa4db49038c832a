from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.data import Contents, Field, TrainingData
from nnaudit.targets.target import Target


def contents(loader: Any) -> Contents:
    loop = DirectLoop(Target(lambda: nn.Linear(3, 2), loader), torch.device("cpu"), seed=0)
    return Audit(loop).probe(TrainingData)


def test_a_field_of_whole_numbers_is_counted() -> None:
    field = Field("[0]", torch.int64, counts={})
    field.add(torch.tensor([[3, 3], [-1, 3]]))
    field.add(torch.tensor([[7, 7]]))
    assert field.counts == {3: 3, -1: 1, 7: 2}
    assert (field.rows, field.low, field.high, field.bad) == (3, -1, 7, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_a_field_of_floats_tells_what_is_not_finite(dtype: torch.dtype) -> None:
    field = Field("[0]", dtype)
    values = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]]).to(dtype)
    field.add(values)
    field.add(torch.tensor([[float("inf"), -3.0], [float("-inf"), 0.0]]).to(dtype))
    assert (field.missing, field.infinite, field.positive_infinite) == (1, 2, 1)
    assert field.bad_rows == [1, 2, 3]
    assert (field.low, field.high) == (-3, 4)


def test_nothing_is_read_of_an_empty_field() -> None:
    field = Field("[0]", torch.float32)
    field.add(torch.zeros(0, 3))
    assert field.low > field.high


class Listed(Dataset[Any]):
    def __init__(self, n: int) -> None:
        self.n, self.asked = n, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        self.asked += 1
        return torch.full((3,), float(i)), i % 2


def test_a_data_set_in_memory_is_read_whole() -> None:
    data = TensorDataset(torch.randn(10_000, 3), torch.arange(10_000))
    found = contents(lambda: DataLoader(data, 10, shuffle=True))
    assert found.whole
    assert found.fields["[1]"].rows == 10_000
    assert found.fields["[1]"].high == 9999


def test_another_is_looked_up_here_and_there() -> None:
    data = Listed(50_000)
    found = contents(lambda: DataLoader(data, 10))
    assert 2048 <= found.rows < 2048 + 10
    assert found.fields["[0]"].high > 49_000
    assert data.asked < 2500


def test_a_short_epoch_is_all_there_is() -> None:
    found = contents(lambda: DataLoader(Listed(40), 10))
    assert found.ended
    assert found.fields["[0]"].rows == 40


def test_the_first_bad_batch_is_kept() -> None:
    x = torch.zeros(100, 3)
    x[37, 1] = float("nan")
    found = contents(lambda: [(x[i : i + 10], torch.zeros(10).long()) for i in range(0, 100, 10)])
    assert found.bad_batch[0][7].isnan().any()
    assert [each.path for each in found.bad_fields] == ["[0]"]
